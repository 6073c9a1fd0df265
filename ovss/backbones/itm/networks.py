"""Networks that match an image with a caption, each a library's own, behind one interface.

mPLUG, the fourth of the paper's Table 8, is not here. Its checkpoints hold a CLIP, a BERT and a
fusion network whose blocks are partly cross-attention and partly self-attention over image and
text together ("cross-modal skip-connections"). No library has such a network, so loading them
would mean to copy its authors' code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor, nn


class Network(Protocol):
    """Say what `ItmBackbone` needs to know of a network."""

    @property
    def model(self) -> Any:
        """The module itself, in evaluation mode."""

    @property
    def size(self) -> int:
        """Side in pixels of the images it was trained on."""

    @property
    def patch(self) -> int:
        """Side of a patch in pixels."""

    @property
    def heads(self) -> int:
        """Of its cross-attention."""

    @property
    def positions(self) -> int:
        """The longest caption in tokens."""

    @property
    def cross_attention(self) -> Sequence[nn.Module]:
        """List the cross-attention modules from words to patches, in their order."""

    def encode(self, pixels: Tensor) -> Tensor:
        """Encode images [B, 3, H, W] as far as no word is needed: [B, ...] for `logits`."""

    def logits(self, image: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """Match what `encode` gave with ids and mask [B, T] (1 at tokens): [B, 2], no and yes."""


@dataclass(frozen=True)
class _FromTransformers:
    """What the configurations of transformers' models spell alike."""

    model: Any = field(repr=False)

    @property
    def size(self) -> int:
        return int(self.model.config.vision_config.image_size)

    @property
    def patch(self) -> int:
        return int(self.model.config.vision_config.patch_size)

    @property
    def heads(self) -> int:
        return int(self.model.config.text_config.num_attention_heads)


@dataclass(frozen=True)
class Blip(_FromTransformers):
    """Wrap transformers' `BlipForImageTextRetrieval`: a text encoder with cross-attention."""

    @property
    def positions(self) -> int:
        return int(self.model.config.text_config.max_position_embeddings)

    @property
    def cross_attention(self) -> Sequence[nn.Module]:
        return [layer.crossattention.self for layer in self.model.text_encoder.encoder.layer]

    def encode(self, pixels: Tensor) -> Tensor:
        image = self.model.vision_model(pixel_values=pixels, interpolate_pos_encoding=True)
        tokens: Tensor = image.last_hidden_state  # [B, 1+L, E]
        return tokens

    def logits(self, image: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        text = self.model.text_encoder(
            input_ids=ids, attention_mask=mask, encoder_hidden_states=image
        )
        logits: Tensor = self.model.itm_head(text.last_hidden_state[:, 0])  # [B, 2]
        return logits


@dataclass(frozen=True)
class BridgeTower(_FromTransformers):
    """Wrap transformers' `BridgeTowerForImageAndTextRetrieval`: cross-attention both ways.

    Only the text's side of the cross-modal layers has maps from words to patches. The library runs
    both encoders in one call, so `encode` leaves the pixels as they are.
    """

    @property
    def positions(self) -> int:
        text = self.model.config.text_config
        return int(text.max_position_embeddings - text.pad_token_id - 1)  # as RoBERTa counts

    @property
    def cross_attention(self) -> Sequence[nn.Module]:
        layers = self.model.bridgetower.cross_modal_text_layers
        return [layer.crossattention.self for layer in layers]

    def encode(self, pixels: Tensor) -> Tensor:
        return pixels

    def logits(self, image: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        output = self.model(
            input_ids=ids, attention_mask=mask, pixel_values=image, interpolate_pos_encoding=True
        )
        logits: Tensor = output.logits  # [B, 2]
        return logits
