"""How sure the benchmark's numbers are: see docs/statistics.md for every method, its assumptions and its limits."""
