"""Prints how many procedural images one core renders a second."""

from __future__ import annotations

import time

from datasets_builders.synthetic import config_names, load_config, render

IMAGES = 150


def main() -> None:
    """Times `render` over the first images of every config, in processor time."""
    for name in config_names():
        render(name, 0, "validation")
        start = time.process_time()
        for index in range(IMAGES):
            render(name, index, "train")
        seconds = time.process_time() - start
        rows, columns = load_config(name)["size"]
        print(f"{name:28s} {columns}x{rows}  {IMAGES / seconds:6.0f} images/s on one core")


if __name__ == "__main__":
    main()
