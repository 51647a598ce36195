"""Overlap audit: which images of a corpus or a dataset are copies of, or cut from, images of another.

`command.audit` is the whole of it; `python -m datasets_builders audit` calls it. How it works, what it finds
and what it cannot find: docs/audit.md.
"""
