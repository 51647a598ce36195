"""Entry point of `python -m datasets_builders`."""

from datasets_builders.cli import main

main()
