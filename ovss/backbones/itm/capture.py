"""Capture the maps of chosen cross-attention modules by forward hooks, within autograd's graph.

No weight of the network asks for a gradient and no input does, so a pass builds no graph at all.
The hook makes the first chosen map a leaf that does: from there on the graph is built, and the
backward pass ends there. Maps of later layers are inside the graph and differentiated as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from threading import get_ident
from typing import Any

from einops import rearrange
from torch import Tensor, nn


@contextmanager
def captured_attention(modules: Mapping[int, Any], gradient: bool) -> Iterator[dict[int, Tensor]]:
    """Capture the maps of `modules` into a dictionary while open; no hook is left behind.

    Args:
        modules: layer -> an attention module of transformers: it has a submodule `value` and
            returns what its maps have mixed [B, T, D] and the maps [B, heads, T, 1+L].
        gradient: whether the maps are to be differentiated.
    """
    maps: dict[int, Tensor] = {}
    values: dict[int, Tensor] = {}
    with ExitStack() as stack:
        for layer, module in modules.items():
            if gradient:
                keep = _mine(partial(_keep, values, layer))
                stack.callback(module.value.register_forward_hook(keep).remove)
            read = _mine(partial(_read, maps, values, layer))
            stack.callback(module.register_forward_hook(read).remove)
        yield maps


def _mine(hook: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a hook so that it ignores what other threads send through the same network."""
    thread = get_ident()
    return lambda *given: hook(*given) if get_ident() == thread else None


def _keep(values: dict[int, Tensor], layer: int, _: nn.Module, __: Any, output: Tensor) -> None:
    values[layer] = output


def _read(
    maps: dict[int, Tensor],
    values: dict[int, Tensor],
    layer: int,
    _: nn.Module,
    __: Any,
    output: tuple[Tensor, Tensor],
) -> tuple[Tensor, Tensor] | None:
    """Keep the map; where the graph is to begin, mix the values once more, with a leaf."""
    maps[layer] = output[1]
    value = values.pop(layer, None)
    if value is None or output[1].requires_grad:
        return None
    leaf = maps[layer] = output[1].detach().requires_grad_()
    heads = rearrange(value, "b l (n d) -> b n l d", n=leaf.shape[1])
    return rearrange(leaf @ heads, "b n t d -> b t (n d)"), leaf
