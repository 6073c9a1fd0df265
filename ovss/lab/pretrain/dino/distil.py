"""Learning from films without labels: contrast, and self-distillation.

Contrast: the frames of a film are found among those of others. Then DINOv2's losses (Oquab et al.
2023, section 4), where the student predicts what its moving average (EMA) does. DINO: the class
tokens of crops are compared with those of the teacher. iBOT: the student's hidden patches are
compared with what the teacher sees there. Both through one head, whose outputs are logits of
prototypes; the teacher's are balanced by Sinkhorn-Knopp. KoLeo spreads the class tokens of a batch.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import ViTConfig, ViTModel

from ovss.training.optim import ema_update

STUDENT_TEMPERATURE = 0.1
CONTRAST_TEMPERATURE = 0.15


class Head(nn.Module):
    """DINO's: three layers to a unit vector, then its cosines with the prototypes."""

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

    def forward(self, tokens: Tensor) -> Tensor:
        """Compute the cosines [..., P] of tokens [..., D]."""
        unit = F.normalize(self.layers(tokens), dim=-1)
        return unit @ F.normalize(self.prototypes, dim=-1).T


class Projector(nn.Module):
    """The contrastive loss's: two layers and batch normalisation, as in MoCo v3.

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


class Pair(nn.Module):
    """Student and teacher with their heads.

    The teacher starts as the student and is its moving average; no gradient reaches it.
    """

    def __init__(self, config: ViTConfig, prototypes: int) -> None:
        super().__init__()
        self.student: Any = ViTModel(config, add_pooling_layer=False, use_mask_token=True)
        self.head = Head(config.hidden_size, prototypes)
        self.projector = Projector(config.hidden_size)
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


def others(film: Tensor, frame: Tensor) -> Tensor:
    """Which views show the same film in another frame: [n, n] booleans.

    Never the view's own frame, whose colours and ground it shares.

    Args:
        film, frame: of each view [n].
    """
    return (film[:, None] == film) & (frame[:, None] != frame)


def class_loss(wanted: Tensor, logits: Tensor, film: Tensor, frame: Tensor) -> Tensor:
    """Compare each view with the teacher's views of the film's other frames: DINO, Eq. 3.

    Args:
        wanted: the teacher's probabilities [n, P].
        logits: the student's [n, P].
        film, frame: of each view [n].
    """
    weight = others(film, frame).to(wanted)
    return cross_entropy(weight @ wanted / weight.sum(1, keepdim=True), logits)


def contrast_loss(units: Tensor, film: Tensor, frame: Tensor) -> Tensor:
    """Find a film's other frames among the frames of all films: InfoNCE with several right answers.

    The mean log-probability of the right ones, as in SupCon (Khosla et al. 2020, Eq. 2), where the
    film takes the label's place.

    Args:
        units: unit vectors [n, N].
        film, frame: of each view [n].
    """
    logits = units @ units.T / CONTRAST_TEMPERATURE  # [n, n]
    logits = logits.masked_fill(frame[:, None] == frame, float("-inf"))
    right = others(film, frame)
    told = logits.log_softmax(1).masked_fill(~right, 0.0)
    return -(told.sum(1) / right.sum(1)).mean()


def koleo(tokens: Tensor) -> Tensor:
    """Spread tokens [B, D]: the Kozachenko-Leonenko estimate of their entropy, negated.

    Minus the mean logarithm of the distance to the nearest other unit vector (Sablayrolles et al.
    2019, Eq. 3).
    """
    unit = F.normalize(tokens.float(), dim=-1)
    cosines = (unit @ unit.T).fill_diagonal_(-2)  # [B, B]
    nearest = unit[cosines.detach().argmax(1)]
    return -(F.pairwise_distance(unit, nearest) + 1e-8).log().mean()
