"""Many runs under one recipe: comparisons, searches, published tables, timings."""
