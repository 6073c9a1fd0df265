"""CLIPer for tables whose rows share a CLIP: equal embeddings are computed once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from ..backbones.caching import CachedFeatures
from ..backbones.clip import ClipFeatures
from .cliper import Cliper


@dataclass(frozen=True)
class CachedCliper(Cliper):
    """A `Cliper` on a `CachedClip`; rows that differ only behind the embeddings share them."""

    def embed(self, features: ClipFeatures) -> tuple[Iterable[Tensor], Tensor]:
        """As `Cliper.embed`, once for each choice of inputs and attention."""
        if not isinstance(features, CachedFeatures):
            return super().embed(features)
        own = type(self)  # a subclass may choose others
        choice = (own.inputs, own.weights, self.attention, self.fuse_features)
        key = (*choice, self.variant == "paper", self.select_layer)
        if key not in features.derived:
            embeddings, attention = super().embed(features)
            features.derived[key] = list(embeddings), attention
        return features.derived[key]
