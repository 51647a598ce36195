"""Steel Pipe: 1227 pictures of steel pipes with boxes and pixel masks, published like Casting Billet."""

from __future__ import annotations

from datasets_builders.casting_billet import CastingBillet


class SteelPipe(CastingBillet):
    """Reads the layout that both sets of the paper share."""
