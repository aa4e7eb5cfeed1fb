"""Graph transformations, one per file."""
