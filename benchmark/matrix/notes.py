"""Notes of executed nodes, `<cache>/matrix/nodes/<id>.json`: a dry run tells by them what is there, without torch.

Nothing is ever left out because of a note; what is done is decided by content keys, when a node is executed.
"""

from __future__ import annotations

import json
from collections.abc import Container, Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from baselines import artifacts
from benchmark.matrix.graph import Node
from benchmark.matrix.schedule import Outcome
from datasets_builders import corpus, prepared, storage


def folder() -> Path:
    """Returns where notes and logs of matrices lie."""
    return storage.home() / "matrix"


def log_file(node: Node) -> Path:
    """Returns the file that all printing of a node goes to; later attempts are appended."""
    return folder() / "logs" / f"{node.id}.log"


def write(node: Node, outcome: Outcome) -> None:
    """Notes the result of a node that is done or was found."""
    with storage.atomic_file(_nodes() / _name(node)) as temporary:
        temporary.write_text(json.dumps({"key": outcome.key, "record": outcome.record}), encoding="utf-8")


def there(nodes: Iterable[Node]) -> frozenset[str]:
    """Returns the ids of nodes whose results seem to be there; cheap, and no promise."""
    noted = {path.name for path in _nodes().glob("*.json")}
    return frozenset(node.id for node in nodes if _is_there(node, noted))


def _is_there(node: Node, noted: Container[str]) -> bool:
    if node.kind == "dataset":
        return prepared.is_ready(node.spec["name"])
    if node.kind == "corpus":
        return corpus.is_ready(node.spec["name"])
    if _name(node) not in noted:
        return False
    try:
        note: dict[str, Any] = json.loads((_nodes() / _name(node)).read_bytes())
    except (OSError, ValueError):
        return False
    if node.kind in ("cell", "anomaly"):
        return Path(note["record"]).is_file()
    if node.kind in ("weights", "efficiency"):
        return True
    return (artifacts.artifact_folder(node.kind, note["key"]) / artifacts.MANIFEST).is_file()


def _nodes() -> Path:
    return folder() / "nodes"


def _name(node: Node) -> str:
    """Returns the name of a node's note; what leaves a record has one for each results folder."""
    if "results" not in node.spec:
        return f"{node.id}.json"
    return f"{node.id}-{_short(node.spec['results'])}.json"


@lru_cache
def _short(text: str) -> str:
    return storage.content_key(text)[:12]
