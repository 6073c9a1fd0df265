"""Self-distillation without labels: the student predicts what its moving average (EMA) does.

DINO (Caron et al. 2021, section 3.1): the class tokens of all crops are compared with those of the
teacher's large crops. iBOT (Zhou et al. 2022, Eq. 2): the student's masked patches are compared
with what the teacher sees there. Both through one head, whose outputs are `prototypes` logits.
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
CENTRE_MOMENTUM = 0.9


class Head(nn.Module):
    """Three layers to a unit vector, then cosines with the prototypes: [..., D] -> [..., P]."""

    def __init__(self, width: int, prototypes: int, hidden: int = 256, neck: int = 64) -> None:
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
        """Cosines."""
        return F.normalize(self.layers(tokens), dim=-1) @ F.normalize(self.prototypes, dim=-1).T


class Pair(nn.Module):
    """Student and teacher with their heads, and the teacher's centres.

    The teacher starts as the student and is its moving average; no gradient reaches it.
    """

    def __init__(self, config: ViTConfig, prototypes: int) -> None:
        super().__init__()
        self.student: Any = ViTModel(config, add_pooling_layer=False, use_mask_token=True)
        self.head = Head(config.hidden_size, prototypes)
        self.teacher: Any = copy.deepcopy(self.student).requires_grad_(False)
        self.teacher_head = copy.deepcopy(self.head).requires_grad_(False)
        self.register_buffer("centres", torch.zeros(2, prototypes))  # of class tokens, of patches

    def ema_update(self, momentum: float) -> None:
        """teacher <- momentum * teacher + (1 - momentum) * student."""
        teacher = [*self.teacher.parameters(), *self.teacher_head.parameters()]
        student = [*self.student.parameters(), *self.head.parameters()]
        ema_update(teacher, student, momentum)

    @torch.no_grad()
    def targets(self, logits: Tensor, kind: int, temperature: float) -> Tensor:
        """Centred and sharpened (DINO, Eq. 1 and 4): [n, P] -> probabilities; moves the centre."""
        centre = self.get_buffer("centres")[kind]
        wanted = ((logits - centre) / temperature).softmax(-1)
        centre.lerp_(logits.mean(0), 1 - CENTRE_MOMENTUM)
        return wanted


def cross_entropy(wanted: Tensor, logits: Tensor) -> Tensor:
    """Of the student's logits [..., P] against the teacher's probabilities, averaged."""
    return -(wanted * (logits / STUDENT_TEMPERATURE).log_softmax(-1)).sum(-1).mean()


def class_loss(wanted: Tensor, large: Tensor, small: Tensor) -> Tensor:
    """All crops against the teacher's other large crop: DINO, Eq. 3.

    Args:
        wanted: the teacher's probabilities [2, B, P] of the large crops.
        large: the student's logits [2, B, P] of the same crops, compared with the other one.
        small: the student's logits [n, B, P] of the small crops, compared with both.
    """
    both = len(large) * cross_entropy(wanted.flip(0), large)
    each = 2 * len(small) * cross_entropy(wanted.mean(0, keepdim=True), small)
    return (both + each) / (len(large) + 2 * len(small))
