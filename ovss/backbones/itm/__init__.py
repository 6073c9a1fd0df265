"""Image-text matching models with cross-attention, opened up."""

from __future__ import annotations

from .backbone import ItmBackbone, Matching, Prompt

__all__ = ["ItmBackbone", "Matching", "Prompt"]
