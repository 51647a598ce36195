"""EfficientNet-Lite0's names: those of the package `efficientnet-pytorch` and its kin, and timm's, which are ours."""

from __future__ import annotations

import re

# timm puts the 16 blocks into groups of one width each; the others number them through.
_GROUPS = (1, 2, 2, 3, 3, 4, 1)
_PLACES = [f"blocks.{group}.{place}" for group, size in enumerate(_GROUPS) for place in range(size)]
_STEM_AND_HEAD = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
_BLOCK = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
# The first block has nothing to expand, and timm counts from what is there.
_FIRST_BLOCK = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}


def our_name(name: str) -> str:
    """Returns timm's name of a tensor; a name that is not of this network stays."""
    block = re.fullmatch(r"_blocks\.(\d{1,2})\.(\w+)\.(\w+)", name)
    if block and int(block[1]) < len(_PLACES):
        number, part, tensor = int(block[1]), block[2], block[3]
        return f"{_PLACES[number]}.{(_BLOCK if number else _FIRST_BLOCK).get(part, part)}.{tensor}"
    part, _, tensor = name.partition(".")
    return f"{_STEM_AND_HEAD.get(part, part)}.{tensor}"
