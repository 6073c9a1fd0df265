"""bfloat16 on the CPU: where it is fast and where it would move labels.

With bfloat16 everywhere 0.3 % of the labels change in the bench. What the last stage of the U-Net
rounds goes into its attention at once, what the first rounds comes back to it over the skips; these
two stay float32, and so do norms and sums. Convolutions and products of all other stages are most
of the work.
"""

from __future__ import annotations

from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

from . import vae_tiling


def wanted(device: torch.device, dtype: torch.dtype) -> bool:
    """Tell whether a model in `dtype` on `device` is to be lowered instead."""
    return device.type == "cpu" and dtype == torch.bfloat16


def lower(unet: Any, vae: Any, dtype: torch.dtype = torch.bfloat16) -> None:
    """Make float32 models compute in mixed precision from now on.

    The VAE's encoder only if `vae_tiling.encode` runs it, which keeps sums and norms in float32.
    """
    for stage in (*unet.down_blocks[1:], unet.mid_block, *unet.up_blocks[:-1]):
        if stage is not None:
            _lower_weights(stage, dtype)
            stage.forward = _autocast(stage.forward, dtype)
    if vae_tiling.supported(vae):
        _lower_weights(vae.encoder, dtype)


def _lower_weights(model: nn.Module, dtype: torch.dtype) -> None:
    """Those of convolutions and linear layers; autocast would cast them in each pass."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.to(dtype)


def _autocast(forward: Any, dtype: torch.dtype) -> Any:
    """`forward` under autocast, with float32 outputs."""

    @wraps(forward)
    def wrapped(*args: Any, **options: Any) -> Any:
        with torch.autocast("cpu", dtype):
            return _float32(forward(*args, **options))

    return wrapped


def _float32(found: Any) -> Any:
    """A tensor, or tuples of tensors, as diffusers' stages return them."""
    return found.float() if isinstance(found, Tensor) else tuple(_float32(one) for one in found)
