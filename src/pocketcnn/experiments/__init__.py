"""Experiments of many runs: comparisons, searches, published tables, timings."""
