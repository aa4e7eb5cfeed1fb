"""Pruning: which units of a graph can be removed (`units`, `layers`), and their removal (`remove`)."""
