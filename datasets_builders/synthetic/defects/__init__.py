"""Kinds of defect: one function each, `kind(site) -> Mark | None` (None: no room, try again)."""

from __future__ import annotations

from collections.abc import Callable

from datasets_builders.synthetic.defects import cuts, lines, raised, stains
from datasets_builders.synthetic.marks import Mark, Site

KINDS: dict[str, Callable[[Site], Mark | None]] = {
    "crease": lines.crease,
    "crescent_gap": cuts.crescent_gap,
    "cutting_opening": cuts.cutting_opening,
    "external_fold": lines.external_fold,
    "inclusion": stains.inclusion,
    "longitudinal_crack": lines.longitudinal_crack,
    "oil_spot": stains.oil_spot,
    "punching_hole": cuts.punching_hole,
    "rolled_pit": raised.rolled_pit,
    "scratch": lines.scratch,
    "silk_spot": stains.silk_spot,
    "slag_skin": raised.slag_skin,
    "waist_folding": lines.waist_folding,
    "warp": raised.warp,
    "water_slag_mark": stains.water_slag_mark,
    "water_spot": stains.water_spot,
    "weld_slag": raised.weld_slag,
    "welding_line": lines.welding_line,
    "wrinkle": raised.wrinkle,
}
"""Kinds by the name that configs use."""
