"""Latent diffusion models (Stable Diffusion), opened up."""

from __future__ import annotations

from .backbone import DiffusionBackbone

__all__ = ["DiffusionBackbone"]
