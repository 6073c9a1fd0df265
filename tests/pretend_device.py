"""A pretend accelerator: it keeps its values on the CPU and refuses what CUDA refuses.

Importing this module registers the device `pretend` with torch (its "private use" backend). A
tensor there is a `PretendTensor` around an ordinary CPU tensor, so results equal the CPU's bit for
bit wherever the same kernels run, and code that forgets to move a tensor fails as it would on a
GPU:

- operations on tensors of two devices (a number in a tensor without dimensions may be on the CPU);
- results written into a tensor of another device;
- a CPU tensor indexed with indices of the device;
- a CPU generator for random numbers of the device;
- `numpy()` and `numpy.asarray` without `cpu()`;
- matrix products of integers;
- within `without_float64()`, double precision, which Apple's MPS does not have.

It models neither kernels nor rounding, memory, streams or TF32: what passes here may still fail on
a GPU, what fails here fails there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, partial
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.utils._mode_utils import no_dispatch
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import (
    _DummyBackendModule,
    _setup_privateuseone_for_python_backend,
)

aten = torch.ops.aten
NAME = "pretend"
Arguments = Sequence[Any]
Options = Mapping[str, Any]

# What moves values between devices.
COPIES = {aten.copy_.default, aten._to_copy.default}
# CUDA moves indices from the CPU to the indexed tensor's device, never the other way round.
INDEXED = {
    aten.index.Tensor,
    aten._unsafe_index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
    aten._unsafe_index_put.default,
}
# Operations that take no number of another device, in which others are lenient.
STRICT = {aten.cat.default, aten.stack.default, aten.mm.default, aten.bmm.default, aten.dot.default}
PRODUCTS = {aten.mm.default, aten.bmm.default, aten.addmm.default, aten.baddbmm.default}
_refused_kinds: set[torch.dtype] = set()  # dtypes that the device does not have at present


class PretendTensor(Tensor):
    """A tensor of the pretend device; `held` has its values, on the CPU."""

    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: Tensor) -> PretendTensor:
        """Wrap a CPU tensor; its values are shared, not copied."""
        if held.dtype in _refused_kinds:
            raise TypeError(f"Cannot convert a {NAME} tensor to {held.dtype}: it has none")
        wrapped: PretendTensor = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            layout=held.layout,
            device=torch.device(NAME, 0),
        )
        wrapped.held = held
        return wrapped

    @classmethod
    def __torch_dispatch__(
        cls, operation: Any, types: Any, args: Arguments = (), kwargs: Options | None = None
    ) -> Any:
        """Run an operation, below autograd."""
        return run(operation, args, kwargs or {})

    def numpy(self, *_: Any, **__: Any) -> NoReturn:
        """Refuse, in CUDA's words."""
        raise TypeError(
            f"can't convert {self.device} device type tensor to numpy. Use Tensor.cpu() to copy "
            "the tensor to host memory first."
        )

    def __array__(self, *_: Any, **__: Any) -> NoReturn:
        """Refuse `numpy.asarray`."""
        self.numpy()

    def pin_memory(self, *_: Any, **__: Any) -> NoReturn:
        """Refuse: only memory of the host can be pinned."""
        raise RuntimeError(f"cannot pin '{self.device}' only dense CPU tensors can be pinned")

    def tolist(self) -> Any:
        """Copy the values to the host, as CUDA does by itself."""
        return self.held.tolist()

    def __format__(self, form: str) -> str:
        """Format the value of a single number."""
        return format(self.held.detach(), form)

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        """Show the values and the device."""
        return f"{self.held.detach()!r} on {self.device}"

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Save a CPU tensor: what `torch.load(..., map_location="cpu")` reads of a GPU's file."""
        return self.held.detach().__reduce_ex__(protocol)


def run(operation: Any, args: Arguments, kwargs: Options) -> Any:
    """Run an operation of ATen on the held values, if CUDA would take these arguments.

    Raises:
        RuntimeError: CUDA would refuse them.
    """
    tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
    there = any(isinstance(tensor, PretendTensor) for tensor in tensors)
    if there:
        _check_devices(operation, args, kwargs, tensors)
    wanted = kwargs.get("device")
    to_device = there if wanted is None else torch.device(wanted).type == NAME
    options = {**kwargs, "device": torch.device("cpu")} if wanted is not None else kwargs
    found = operation(*tree_map(_values, args), **tree_map(_values, options))
    if to_device:
        _check_kinds(operation, args, kwargs)
    return _wrapped(operation, args, kwargs, found) if to_device else found


@contextmanager
def without_float64() -> Iterator[None]:
    """Refuse double precision within, as Apple's MPS does."""
    _refused_kinds.add(torch.float64)
    try:
        yield
    finally:
        _refused_kinds.clear()


def _values(value: Any) -> Any:
    """What an argument is on the CPU."""
    return value.held if isinstance(value, PretendTensor) else value


def _check_devices(operation: Any, args: Arguments, kwargs: Options, given: list[Tensor]) -> None:
    """Refuse tensors of two devices where CUDA does."""
    strange = [tensor for tensor in given if not isinstance(tensor, PretendTensor)]
    if not strange or operation in COPIES:
        return
    if operation in INDEXED:
        if not isinstance(args[0], PretendTensor):
            raise RuntimeError(
                "indices should be either on cpu or on the same device as the indexed tensor (cpu)"
            )
        indices = tree_leaves(args[1])
        strange = [tensor for tensor in strange if not any(tensor is one for one in indices)]
    lenient = operation not in STRICT and not any(
        tensor is one for tensor in strange for one in _written(operation, args, kwargs)
    )
    if any(tensor.dim() > 0 or not lenient for tensor in strange):
        raise RuntimeError(
            "Expected all tensors to be on the same device, but found at least two devices, "
            f"{NAME}:0 and cpu! ({operation})"
        )


def _check_kinds(operation: Any, args: Arguments, kwargs: Options) -> None:
    """Refuse generators and dtypes that CUDA has no kernel for."""
    for value in tree_leaves((args, kwargs)):
        if isinstance(value, torch.Generator) and value.device.type != NAME:
            raise RuntimeError(f"Expected a '{NAME}' device type for generator but found 'cpu'")
        if operation in PRODUCTS and isinstance(value, Tensor) and not value.is_floating_point():
            raise RuntimeError(f'"{operation}" not implemented for {value.dtype}')


@cache
def _outputs(operation: Any) -> tuple[tuple[int, str], ...]:
    """Positions and names of the arguments that an operation writes to."""
    return tuple(
        (place, argument.name)
        for place, argument in enumerate(operation._schema.arguments)
        if argument.alias_info and argument.alias_info.is_write
    )


def _written(operation: Any, args: Arguments, kwargs: Options) -> list[Any]:
    """The tensors that an operation writes to."""
    given = (
        args[place] if place < len(args) else kwargs.get(name)
        for place, name in _outputs(operation)
    )
    return tree_leaves(list(given))


def _wrapped(operation: Any, args: Arguments, kwargs: Options, found: Any) -> Any:
    """Results as tensors of the device; what was written to is given back as it came."""
    written = [one for one in _written(operation, args, kwargs) if isinstance(one, PretendTensor)]
    if torch.Tag.inplace_view in operation.tags:
        _change_shape(operation, args, kwargs)
    elif any(one.held.shape != one.shape for one in written):
        raise NotImplementedError(f"the pretend device cannot resize a tensor: {operation}")
    own = {id(one.held): one for one in written}

    def wrap(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        known = own.get(id(value))
        return PretendTensor(value) if known is None else known

    return tree_map(wrap, found)


def _change_shape(operation: Any, args: Arguments, kwargs: Options) -> None:
    """Let the wrapper follow what was held, as for `unsqueeze_`."""
    before = torch._C._meta_in_tls_dispatch_include()
    torch._C._set_meta_in_tls_dispatch_include(True)
    try:
        with no_dispatch():
            operation(*args, **kwargs)
    finally:
        torch._C._set_meta_in_tls_dispatch_include(before)


class _Module(_DummyBackendModule):
    """What torch asks of `torch.pretend`."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        """The dtypes of autocast, which changes nothing here."""
        return [torch.bfloat16, torch.float16]

    def get_rng_state(self, device: Any = None) -> Tensor:
        """The state of the device's generator, which is the CPU's."""
        return torch.get_rng_state()

    def set_rng_state(self, state: Tensor, device: Any = None) -> None:
        """Set the state of the device's generator."""
        torch.set_rng_state(state)


FACTORIES = (  # operations that need no tensor of the device
    aten.empty.memory_format,
    aten.empty_strided.default,
    aten.arange.default,
    aten.arange.start,
    aten.arange.start_step,
    aten.eye.default,
    aten.eye.m,
    aten.copy_.default,  # `torch.tensor` calls it below `__torch_dispatch__`
)


def _register() -> list[torch.library.Library]:
    """Give the device its name, and send operations to `run` that reach no `PretendTensor`."""
    _setup_privateuseone_for_python_backend(NAME, _Module())
    device = torch.library.Library("aten", "IMPL")
    for operation in FACTORIES:
        device.impl(operation, partial(_run, operation), "PrivateUse1")
    autocast = torch.library.Library("_", "IMPL")
    autocast.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    return [device, autocast]


def _run(operation: Any, *args: Any, **kwargs: Any) -> Any:
    return run(operation, args, kwargs)


LIBRARIES = _register()  # it holds the registrations
PRETEND = torch.device(NAME, 0)
