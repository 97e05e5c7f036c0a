"""What every wing may use: files, optional packages, timing, figures, tables, the records of runs."""
