"""Engines run the graph of a matrix: `local` on this machine, `ray` on many.

Each is a `benchmark.matrix.schedule.Engine`.
"""
