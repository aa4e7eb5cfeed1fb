"""One file per operator family; every facet of an operator in one place."""
