"""The encoder of a VAE, strip after strip of rows: what diffusers gives, in a third of the memory.

On the CPU a 512 x 512 image costs Stable Diffusion's encoder most of the time and the peak of the
memory: at 128 channels each activation is 134 MB, and four or five of them are held at once. Here
no more than two are: a residual block reads strips with a row more on both sides and writes its sum
over its own input. Weights and modules are diffusers' own. With weights in a lower precision only
the convolutions run in it; activations are kept, summed and normalised in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

POSITIONS = 1 << 13  # of a strip: at 128 channels 4 MB, which stay in a processor's cache

Prepare = Callable[[Tensor], Tensor]


def supported(vae: Any) -> bool:
    """Tell whether the encoder is built of known blocks, as Stable Diffusion's is."""
    from diffusers.models.unets.unet_2d_blocks import DownEncoderBlock2D

    blocks = vae.encoder.down_blocks
    return all(isinstance(block, DownEncoderBlock2D) for block in blocks)


@torch.no_grad()
def encode(vae: Any, pixels: Tensor, positions: int = POSITIONS) -> Tensor:
    """Encode pixels [B, 3, H, W] in tiles: the latent's mean [B, C, h, w].

    Args:
        vae: a diffusers `AutoencoderKL` which is `supported`.
        positions: how many of a layer are computed at a time (at least a row).
    """
    encoder, middle = vae.encoder, vae.encoder.mid_block
    hidden = _convolve(pixels, encoder.conv_in, positions)
    for block in encoder.down_blocks:
        for resnet in block.resnets:
            hidden = _residual(resnet, hidden, positions)
        for down in block.downsamplers or ():
            hidden = _convolve(hidden, down.conv, positions)
    first, *others = middle.resnets
    hidden = _residual(first, hidden, positions)
    for attention, resnet in zip(middle.attentions, others, strict=True):
        if attention is not None:
            hidden = attention(hidden.to(encoder.conv_in.weight.dtype)).to(hidden.dtype)
        hidden = _residual(resnet, hidden, positions)
    activate = _activation(encoder.conv_norm_out, encoder.conv_act, hidden, positions)
    moments = _convolve(hidden, encoder.conv_out, positions, activate)
    if vae.quant_conv is not None:
        moments = vae.quant_conv(moments.to(vae.quant_conv.weight.dtype))
    return moments.chunk(2, dim=1)[0]


def _residual(block: Any, hidden: Tensor, positions: int) -> Tensor:
    """diffusers' ResnetBlock2D without a time embedding; may write over `hidden`."""
    activate = _activation(block.norm1, block.nonlinearity, hidden, positions)
    inner = _convolve(hidden, block.conv1, positions, activate)
    activate = _activation(block.norm2, block.nonlinearity, inner, positions)
    shortcut = block.conv_shortcut
    outer = hidden if shortcut is None else _empty(hidden, block.conv2)
    for rows, strip in _strips(inner, block.conv2, positions, activate):
        before = hidden[:, :, rows]
        if shortcut is not None:
            before = shortcut(before.to(shortcut.weight.dtype))
        torch.add(before, strip, out=outer[:, :, rows])
    return outer


def _convolve(hidden: Tensor, conv: Any, positions: int, prepare: Prepare | None = None) -> Tensor:
    """All strips of a 3 x 3 convolution together, float32 at least, channels last."""
    found = _empty(hidden, conv)
    for rows, strip in _strips(hidden, conv, positions, prepare):
        found[:, :, rows] = strip
    return found


def _strips(
    hidden: Tensor, conv: Any, positions: int, prepare: Prepare | None
) -> Iterator[tuple[slice, Tensor]]:
    """Some rows of the convolution's output and where they belong, from top to bottom.

    A convolution without padding is that of diffusers' Downsample2D: a row of zeros is added below
    and a column on the right.
    """
    stride, padding = conv.stride[0], conv.padding[0]
    height, width = hidden.shape[2:]
    last = height // stride
    count = max(1, positions // width)
    for start in range(0, last, count):
        stop = min(start + count, last)
        top, bottom = start * stride - padding, (stop - 1) * stride + 3 - padding
        strip = hidden[:, :, max(top, 0) : bottom]
        strip = (strip if prepare is None else prepare(strip)).to(conv.weight.dtype)
        missing = (0, 1 - padding, max(-top, 0), max(bottom - height, 0))
        if any(missing):
            strip = F.pad(strip, missing)
        rows = F.conv2d(strip, conv.weight, conv.bias, conv.stride, (0, padding))
        yield slice(start, stop), rows


def _activation(norm: Any, nonlinearity: Any, hidden: Tensor, positions: int) -> Prepare:
    """Group norm with the whole image's statistics, and what follows: a function of a strip."""
    batch, channels, height, width = hidden.shape
    sums = hidden.new_zeros(2, batch, channels, dtype=torch.float64)
    for strip in hidden.split(max(1, positions // width), dim=2):
        sums[0] += strip.sum((2, 3))
        sums[1] += strip.square().sum((2, 3))
    of_groups = sums.unflatten(-1, (norm.num_groups, -1))  # [2, B, groups, C / groups]
    mean, square = of_groups.sum(-1, keepdim=True) / (of_groups.shape[-1] * height * width)
    deviation = (square - mean**2 + norm.eps).sqrt()
    weight, bias = (side.double().view(norm.num_groups, -1) for side in (norm.weight, norm.bias))
    scale, shift = weight / deviation, bias - weight * mean / deviation
    scale, shift = (side.view(batch, channels, 1, 1).to(hidden.dtype) for side in (scale, shift))
    return lambda strip: nonlinearity(torch.addcmul(shift, strip, scale))


def _empty(hidden: Tensor, conv: Any) -> Tensor:
    """Room for the convolution of `hidden`."""
    height, width = (side // conv.stride[0] for side in hidden.shape[2:])
    return torch.empty(
        (len(hidden), conv.out_channels, height, width),
        dtype=torch.promote_types(torch.float32, conv.weight.dtype),
        device=hidden.device,
        memory_format=torch.channels_last,
    )
