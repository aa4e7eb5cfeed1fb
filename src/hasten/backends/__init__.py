"""Engines that run a graph; `native` is ours."""
