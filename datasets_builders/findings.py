"""What a builder finds in a raw folder: faults that it cleans by rule, and faults that stop it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from datasets_builders.errors import UserError

# Every fault is counted; this many of a kind are named.
NAMED_PROBLEMS = 20


@dataclass
class Cleaning:
    """What stated rules changed between the owner's files and the dataset; all of it is counted.

    Attributes:
        rules: Rule in words -> how often it was applied, and the first images that it was applied to.
        images: Number of images that rules left out.
        boxes: Class -> number of boxes that rules left out.
    """

    rules: dict[str, dict[str, Any]] = field(default_factory=dict)
    images: int = 0
    boxes: Counter[str] = field(default_factory=Counter)

    def note(self, rule: str, where: str, images: int = 0, boxes: Sequence[str] = ()) -> None:
        """Notes one application of a rule.

        Args:
            rule: The rule in words.
            where: The image, or the file.
            images: Number of images that were left out for it.
            boxes: Classes of the boxes that were left out for it.
        """
        entry = self.rules.setdefault(rule, {"count": 0, "examples": []})
        entry["count"] += 1
        if len(entry["examples"]) < NAMED_PROBLEMS:
            entry["examples"].append(where)
        self.images += images
        self.boxes.update(boxes)


@dataclass
class Problems:
    """Everything that is wrong with a raw folder, collected so that it is said at once."""

    found: list[tuple[str, str]] = field(default_factory=list)

    def add(self, kind: str, detail: str) -> None:
        """Notes one problem: its kind, and the file or image with the reason."""
        self.found.append((kind, detail))

    def raise_if_any(self, dataset: str, where: str) -> None:
        """Raises a UserError that counts every kind and names the first problems.

        Raises:
            UserError: There is at least one problem.
        """
        if not self.found:
            return
        counts = "; ".join(f"{kind}: {count}" for kind, count in Counter(k for k, _ in self.found).items())
        lines = [f"  {kind}: {detail}" for kind, detail in self.found[:NAMED_PROBLEMS]]
        if len(self.found) > NAMED_PROBLEMS:
            lines.append(f"  and {len(self.found) - NAMED_PROBLEMS} more")
        raise UserError(
            f"{dataset}: {len(self.found)} problem(s) in {where}, nothing was built ({counts}).\n"
            + "\n".join(lines)
            + f"\nRepair these files, then: python -m datasets_builders prepare {dataset} --raw DIR"
        )
