"""Elementary functions as branch-free expressions, one file for each family."""
