"""Helpers for every wing: files, optional packages, memory, timing, modules, plots, tables and the records of runs."""
