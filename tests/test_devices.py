"""Devices by name: those that are not here, float32 on a GPU, what fits, whose random states."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch

from ovss.backbones import devices
from ovss.backbones.devices import find_device, forked_rng, is_out_of_memory, max_attention
from ovss.cli import main
from ovss.errors import OvssError
from ovss.paths import data
from ovss.provenance import device_name

PHOTO = data("lab", "JPEGImages", "val_0000.jpg")


@pytest.fixture(autouse=True)
def precision_afterwards() -> Iterator[None]:
    """What find_device says to torch holds for the process."""
    before = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    yield
    torch.backends.cudnn.allow_tf32 = before[0]
    torch.set_float32_matmul_precision(before[1])
    devices._precision["tf32"] = False


ABSENT = ("hpu", "mps", "meta", "gpu", "cuda:97", "0", "xla", "xpu", "mtia", "vulkan", "opengl")
MISSPELT = ("", "CUDA", " cpu", "cuda:", "cuda:-1", "cuda:99999999999999999999", "privateuseone:3")


@pytest.mark.parametrize("name", [*ABSENT, *MISSPELT, None, 0, 1.5])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_device_that_is_not_here_is_one_line(name: object) -> None:
    """What was given and what there is; not torch's table of sixty lines."""
    if name == "mps" and torch.backends.mps.is_available():
        pytest.skip("it is here")
    with pytest.raises(OvssError) as error:
        find_device(name)  # type: ignore[arg-type]
    message = str(error.value)
    assert message.startswith(f"cannot use device {name!r}") and "there is cpu" in message
    assert "\n" not in message and len(message) < 250


@pytest.mark.parametrize("name", ["gpu", "0"])
def test_a_gpu_by_another_name_is_told_its_own(name: str) -> None:
    with pytest.raises(OvssError, match='an NVIDIA GPU is called "cuda"'):
        find_device(name)


@pytest.mark.parametrize("name", ["cpu", "cpu:0", torch.device("cpu")])
def test_the_processor_is_one_device(name: str | torch.device) -> None:
    assert find_device(name) == torch.device("cpu")


@pytest.mark.parametrize("name", ["meta", "gpu", "cuda:97"])
def test_the_commands_say_it_in_one_line(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Before anything is loaded or trained."""
    assert (
        main(["segment", str(PHOTO), "--classes", "car", "--out", "o.png", "--device", name]) == 2
    )
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and said[0].startswith(f"ovss: error: cannot use device {name!r}")


# ---- an NVIDIA GPU, as far as it shows without one


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two cards that can be named and asked for their memory, and compute on the CPU."""
    ones = torch.ones
    monkeypatch.setattr(torch, "ones", lambda *size, device=None: ones(*size))
    monkeypatch.setattr(
        torch.cuda,
        "get_device_properties",
        lambda device: SimpleNamespace(total_memory=(80 if device.index == 1 else 2) * 2**30),
    )
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    names = {"cuda": "first", "cuda:0": "first", "cuda:1": "second"}
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: names[str(device)])


def test_float32_means_float32(gpu: None) -> None:
    """cuDNN's convolutions use TF32 unless they are told not to; the results row says which."""
    torch.backends.cudnn.allow_tf32 = True
    find_device("cuda")
    assert not torch.backends.cudnn.allow_tf32
    assert torch.get_float32_matmul_precision() == "highest"
    assert device_name(["cuda:1"]) == "cuda:1 (second, float32)"


def test_tf32_is_a_choice_that_stays_and_is_recorded(gpu: None) -> None:
    find_device("cuda", tf32=True)
    find_device("cuda:1")  # as every network does that is loaded afterwards
    assert torch.backends.cudnn.allow_tf32 and torch.get_float32_matmul_precision() == "high"
    assert device_name(["cuda", "cuda:1"]) == "cuda (first, TF32) + cuda:1 (second, TF32)"
    find_device("cuda", tf32=False)
    assert devices.precision() == "float32"


def test_the_cpu_leaves_the_precision_alone() -> None:
    torch.backends.cudnn.allow_tf32 = True
    find_device("cpu")
    assert torch.backends.cudnn.allow_tf32
    assert device_name(["cpu"]).startswith("cpu (") and "TF32" not in device_name(["cpu"])


def test_larger_cards_take_larger_batches(gpu: None) -> None:
    sizes = [max_attention(torch.device(name)) for name in ("cpu", "cuda:0", "cuda:1")]
    assert sizes == [2**26, 2**26, 80 * 2**30 // 64]


# ---- random states


def test_random_states_of_other_gpus_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """An evaluation on the CPU opens no context on a GPU, one on `cuda:1` none on `cuda:0`."""
    asked: list[str] = []
    monkeypatch.setattr(
        torch.cuda,
        "get_rng_state",
        lambda device: asked.append(str(device)) or torch.get_rng_state(),  # type: ignore[func-returns-value]
    )
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    with forked_rng(["cpu"]):
        torch.rand(1)
    assert asked == []
    with forked_rng(["cuda:1", "cpu", "mps"]):
        torch.rand(1)
    assert asked == ["cuda:1"]


def test_the_random_state_is_restored() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with forked_rng(["cpu"]):
        torch.manual_seed(0)
        torch.rand(9)
    assert torch.equal(torch.rand(3), expected)


# ---- memory


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        MemoryError(),
        RuntimeError("MPS backend out of memory (MPS allocated: 8.86 GB)"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"),
    ],
)
def test_full_memory_is_known_by_its_messages(error: Exception) -> None:
    assert is_out_of_memory(error)
    assert not is_out_of_memory(RuntimeError("shapes cannot be multiplied"))


@pytest.mark.parametrize(
    "error, told",
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a"),
            "memory is full (2.00 GiB more was asked for): try fewer images at once (--batch 1)",
        ),
        (MemoryError(), "memory is full: try fewer images at once (--batch 1)"),
    ],
)
def test_full_memory_is_one_line(
    error: Exception,
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def full(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("ovss.load", full)
    assert main(["segment", str(PHOTO), "--classes", "car", "--out", "o.png"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and said[0].startswith(f"ovss: error: {told}")


def test_other_errors_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("shapes cannot be multiplied")

    monkeypatch.setattr("ovss.load", broken)
    with pytest.raises(RuntimeError, match="shapes"):
        main(["segment", str(PHOTO), "--classes", "car", "--out", "o.png"])
