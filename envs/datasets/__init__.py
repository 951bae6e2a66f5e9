"""Recorded data: Minari data sets, tables, noise of known density."""
