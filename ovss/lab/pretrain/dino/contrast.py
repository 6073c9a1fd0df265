"""Learning from films without labels: the frames of a film are found among those of others.

Three embeddings of a frame are compared: its class token, its mean patch, and a few of its patches
one by one, each with the most alike of the other frame. The last asks the patches themselves to
know what they show; a mean of many that know a little each would do for the first two.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import ViTConfig, ViTModel

from ovss.lab.pretrain.batches import take

TEMPERATURE = 0.15
LIKE = 1.0  # difference of cosine at which a neighbour counts less by e
NEAR = 1.5  # patches, deviation of the filter
POSITIONS = 0.2  # amplitude of the initial positions; a patch's embedding is about 1


class Encoder(nn.Module):
    """A ViT for crops smaller than the image that it is made for.

    A crop gets the positions of a window of the grid, as if it were cut out of a whole image. The
    library's way, to stretch the grid over the crop, would train distances between patches that no
    whole image has.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.vit: Any = ViTModel(config, add_pooling_layer=False)
        self.side = grid_side(config)
        start(self.vit)

    def forward(self, pixels: Tensor, corner: Tensor, seen: Tensor) -> Tensor:
        """Compute the last layer's tokens [n, 1 + L, D] of patches of crops [n, 3, s, s].

        Args:
            corner: row and column at which each crop's window of the grid begins [n, 2].
            seen: indices of the patches that are read [n, L].
        """
        parts = self.vit.embeddings
        patches = parts.patch_embeddings.projection(pixels)  # [n, D, h, w]
        steps = torch.arange(patches.shape[-1], device=pixels.device)
        rows, columns = corner[:, :1] + steps, corner[:, 1:] + steps  # [n, h], [n, w]
        window = (1 + rows[:, :, None] * self.side + columns[:, None]).flatten(1)  # [n, h * w]
        positions = parts.position_embeddings[0]  # [1 + side * side, D]
        tokens = take(patches.flatten(2).mT + positions[window], seen)  # [n, L, D]
        first = (parts.cls_token + positions[:1]).expand(len(tokens), -1, -1)
        tokens = torch.cat([first, tokens], 1)
        for layer in self.vit.layers:
            tokens = layer(tokens)
        normed: Tensor = self.vit.layernorm(tokens)
        return normed


@torch.no_grad()
def start(vit: Any) -> None:
    """Draw initial weights by width and depth, as CLIP's vision transformer has them; positions
    are smooth, faint waves, so that neighbours differ little.

    transformers draws all with a deviation of 0.02, with which a narrow network is nearly linear.
    """
    width, depth = vit.config.hidden_size, vit.config.num_hidden_layers
    deviations = {"o_proj": (2 * width * depth) ** -0.5, "fc2": (2 * width * depth) ** -0.5}
    deviations["fc1"] = (2 * width) ** -0.5
    for name, weight in vit.named_parameters():
        if weight.ndim > 1:
            part = name.removesuffix(".weight").rsplit(".", 1)[-1]
            nn.init.normal_(weight, std=deviations.get(part, width**-0.5))
    side = grid_side(vit.config)
    vit.embeddings.position_embeddings[0, 1:] = POSITIONS * waves(side, width)


def grid_side(config: Any) -> int:
    """Count the patches along a side of the image."""
    return int(config.image_size // config.patch_size)


def waves(side: int, width: int) -> Tensor:
    """Encode the places of a grid by sines and cosines [side * side, D]: rows in the first half of
    the channels, columns in the second (as in MAE, after Vaswani et al. 2017, section 3.5)."""
    frequencies = 10_000 ** -torch.linspace(0, 1, width // 4 + 1)[:-1]  # [D / 4]
    angles = torch.arange(side)[:, None] * frequencies  # [side, D / 4]
    one = torch.cat([angles.sin(), angles.cos()], 1)  # [side, D / 2]
    return torch.cat([one.repeat_interleave(side, 0), one.repeat(side, 1)], 1)


class Projector(nn.Module):
    """Two layers and batch normalisation, as in MoCo v3.

    Without it all class tokens of an untrained network are nearly the same, and stay so.
    """

    def __init__(self, width: int, hidden: int = 256, out: int = 64) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, hidden),
            nn.BatchNorm1d(hidden),
            nn.GELU(),
            nn.Linear(hidden, out),
            nn.BatchNorm1d(out, affine=False),
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """Compute unit vectors [n, N] of tokens [n, D]."""
        return F.normalize(self.layers(tokens), dim=-1)


def cosines(units: Tensor) -> Tensor:
    """Compute the cosines [n, n] of unit vectors [n, N]."""
    return units @ units.T


def matched_similarity(units: Tensor, share: float) -> Tensor:
    """Compare frames by their best matched patches: [n, n].

    Each patch of a frame is matched with the most alike of another frame; the similarity is the
    mean cosine of the best `share` of these pairs. (With all of them it is FILIP's, Yao et al.
    2021, Eq. 3 and 4.) Which pairs these are is found without gradient.

    Args:
        units: unit vectors of some patches of each frame [n, A, N].
    """
    frames, asked = units.shape[:2]
    with torch.no_grad():
        flat = units.flatten(0, 1)
        pairs = (flat @ flat.T).view(frames, asked, frames, asked)
        best, match = pairs.max(3)  # [n, A, n]
        chosen = best.topk(max(1, round(share * asked)), 1).indices  # [n, B, n]
        match = match.gather(1, chosen)  # [n, B, n]
    number = torch.arange(frames, device=units.device)
    one, other = number[:, None, None], number
    return (units[one, chosen] * units[other, match]).sum(-1).mean(1)


def others(film: Tensor) -> Tensor:
    """Which frames belong to the same film, without the frame itself: booleans [n, n]."""
    return (film[:, None] == film).fill_diagonal_(False)


def contrast_loss(similarity: Tensor, film: Tensor) -> Tensor:
    """Find a film's other frames among the frames of all films: InfoNCE with several right answers.

    The mean log-probability of the right ones, as in SupCon (Khosla et al. 2020, Eq. 2), where the
    film takes the label's place.

    Args:
        similarity: of each frame with each [n, n].
        film: of each frame [n].
    """
    itself = torch.eye(len(film), dtype=torch.bool, device=film.device)
    logits = (similarity / TEMPERATURE).masked_fill(itself, float("-inf"))
    right = others(film)
    told = logits.log_softmax(1).masked_fill(~right, 0.0)
    return -(told.sum(1) / right.sum(1)).mean()


def settle_loss(tokens: Tensor, places: Tensor) -> Tensor:
    """Draw each patch to the mean of those near it that look like it: a step of bilateral filter.

    One minus the cosine of a patch and its target, the mean over the image weighted by nearness
    and likeness (Tomasi and Manduchi 1998); no gradient reaches the target. What differs from
    patch to patch by chance, such as the phase of a texture, is not in the mean. Cosines are those
    of tokens less the image's mean: what all patches share would be settled for nothing.

    Args:
        tokens: of an image's patches [n, L, D].
        places: their rows and columns on the grid [n, L, 2].
    """
    units = F.normalize(tokens - tokens.mean(1, keepdim=True), dim=-1)
    with torch.no_grad():
        far = torch.cdist(places.float(), places.float()).square()  # [n, L, L]
        weights = units @ units.mT / LIKE - far / (2 * NEAR**2)
        target = F.normalize(weights.softmax(2) @ units, dim=-1)
    return 1 - (units * target).sum(-1).mean()


def draw(rows: int, length: int, count: int) -> Tensor:
    """Draw different indices below `length` for each row: [rows, count]."""
    return torch.rand(rows, length).topk(count, 1).indices
