"""AdamW as transformers are trained with it, and schedules."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn


def adamw(
    model: nn.Module, rate: float, weight_decay: float, beta2: float = 0.98
) -> torch.optim.AdamW:
    """AdamW of the parameters that require a gradient; vectors (biases, norms) do not decay."""
    learnt = [p for p in model.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in learnt if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in learnt if p.ndim < 2]},
    ]
    return torch.optim.AdamW(groups, rate, (0.9, beta2), weight_decay=0.0, fused=True)


@torch.no_grad()
def ema_update(
    average: Iterable[nn.Parameter], current: Iterable[nn.Parameter], momentum: float
) -> None:
    """Exponential moving average: average <- momentum * average + (1 - momentum) * current."""
    torch._foreach_lerp_(list(average), list(current), 1 - momentum)


def warmup_cosine(step: int, warmup: int, steps: int) -> float:
    """Factor of the learning rate: linear warm-up to 1, then a cosine to 0.01."""
    if step < warmup:
        return (step + 1) / warmup
    return cosine(1.0, 0.01, (step - warmup) / (steps - warmup))


def cosine(start: float, end: float, progress: float) -> float:
    """Half a cosine from `start` at progress 0 to `end` at 1."""
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * progress))
