"""Self-distillation without labels: the student predicts what its moving average (EMA) does.

DINOv2's losses (Oquab et al. 2023, section 4). DINO: the class tokens of all crops are compared
with those of the teacher's large crops. iBOT: the student's hidden patches are compared with what
the teacher sees there. Both through one head, whose outputs are logits of prototypes; the teacher's
are balanced by Sinkhorn-Knopp. KoLeo spreads the class tokens of a batch.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import ViTConfig, ViTModel

from ovss.training.optim import ema_update

STUDENT_TEMPERATURE = 0.1
CONTRAST_TEMPERATURE = 0.1


class Head(nn.Module):
    """Three layers to a unit vector, then cosines with the prototypes."""

    def __init__(self, width: int, prototypes: int, hidden: int = 384, neck: int = 64) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, hidden),
            nn.GELU(),
            nn.Linear(hidden, hidden),
            nn.GELU(),
            nn.Linear(hidden, neck),
        )
        self.prototypes = nn.Parameter(torch.randn(prototypes, neck))

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Compute unit vectors [..., N] and their cosines with the prototypes [..., P]."""
        unit = F.normalize(self.layers(tokens), dim=-1)
        return unit, unit @ F.normalize(self.prototypes, dim=-1).T


class Pair(nn.Module):
    """Student and teacher with their heads.

    The teacher starts as the student and is its moving average; no gradient reaches it.
    """

    def __init__(self, config: ViTConfig, prototypes: int) -> None:
        super().__init__()
        self.student: Any = ViTModel(config, add_pooling_layer=False, use_mask_token=True)
        self.head = Head(config.hidden_size, prototypes)
        self.teacher: Any = copy.deepcopy(self.student).requires_grad_(False)
        self.teacher_head = copy.deepcopy(self.head).requires_grad_(False)

    def ema_update(self, momentum: float) -> None:
        """Move the teacher: teacher <- momentum * teacher + (1 - momentum) * student."""
        teacher = [*self.teacher.parameters(), *self.teacher_head.parameters()]
        student = [*self.student.parameters(), *self.head.parameters()]
        ema_update(teacher, student, momentum)


@torch.no_grad()
def sinkhorn_knopp(logits: Tensor, temperature: float, rounds: int = 3) -> Tensor:
    """Balance sharpened logits [n, P] to probabilities that use all prototypes alike.

    SwAV's iterations (Caron et al. 2020) as DINOv2 has them: columns and rows are scaled by turns,
    the rows last, so that each sums to 1.
    """
    found = ((logits - 1) / temperature).exp()  # [n, P], of cosines
    for _ in range(rounds):
        found = found / (found.sum(0) * found.shape[1]).clamp(min=1e-12)
        found = found / found.sum(1, keepdim=True).clamp(min=1e-12)
    return found


def cross_entropy(wanted: Tensor, logits: Tensor) -> Tensor:
    """Average the cross-entropy of logits [..., P] and the teacher's probabilities."""
    return -(wanted * (logits / STUDENT_TEMPERATURE).log_softmax(-1)).sum(-1).mean()


def class_loss(wanted: Tensor, crops: Sequence[Tensor]) -> Tensor:
    """Compare the crops of each frame with the teacher's view of the other one: DINO, Eq. 3.

    A crop is never compared with its own frame, whose colours and ground it shares.

    Args:
        wanted: the teacher's probabilities [2, B, P] of the large crops of both frames.
        crops: the student's logits [2, B, P] of large and of small crops.
    """
    return torch.stack([cross_entropy(wanted.flip(0), logits) for logits in crops]).mean()


def contrast_loss(keys: Tensor, queries: Sequence[Tensor]) -> Tensor:
    """Find the other frame among the films of the batch: InfoNCE with the teacher's keys (MoCo v3).

    Keys and queries are standardised over the films first, as batch normalisation does in MoCo v3's
    head: what all films of a batch share says nothing.

    Args:
        keys: the teacher's unit vectors [2, B, N] of the large crops of both frames.
        queries: the student's unit vectors [2, B, N] of crops, whole or averaged over patches.
    """
    right = torch.arange(keys.shape[1], device=keys.device).expand(2, -1)  # [2, B]
    wanted = over_films(keys).flip(0).mT / CONTRAST_TEMPERATURE  # [2, N, B]
    scaled = [over_films(query) @ wanted for query in queries]  # [2, B, B]
    return torch.stack([F.cross_entropy(logits.mT, right) for logits in scaled]).mean()


def over_films(vectors: Tensor) -> Tensor:
    """Standardise each channel over the films, then scale to unit vectors: [2, B, N]."""
    centred = vectors - vectors.mean(1, keepdim=True)
    return F.normalize(centred / (centred.square().mean(1, keepdim=True) + 1e-8).sqrt(), dim=-1)


def koleo(tokens: Tensor) -> Tensor:
    """Spread tokens [B, D]: the Kozachenko-Leonenko estimate of their entropy, negated.

    Minus the mean logarithm of the distance to the nearest other unit vector (Sablayrolles et al.
    2019, Eq. 3).
    """
    unit = F.normalize(tokens.float(), dim=-1)
    cosines = (unit @ unit.T).fill_diagonal_(-2)  # [B, B]
    nearest = unit[cosines.detach().argmax(1)]
    return -(F.pairwise_distance(unit, nearest) + 1e-8).log().mean()
