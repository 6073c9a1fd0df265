"""Blur against SciPy, the dense CRF against pydensecrf, and what goes wrong with both."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from clips import noise
from ovss.errors import OvssError
from ovss.refine import crf
from ovss.refine.blur import Blur, gaussian, minmax_normalise
from ovss.refine.crf import DenseCrf

# ---- blur


@pytest.mark.parametrize("size", [(37, 50), (50, 3), (1, 64), (2, 2), (1, 1), (61, 83)])
@pytest.mark.parametrize("deviation", [0.3, 2.5, 25.0])
def test_blur_is_scipys(size: tuple[int, int], deviation: float) -> None:
    """Kernels wider than the map too."""
    ndimage = pytest.importorskip("scipy.ndimage")
    maps = torch.rand(2, *size, generator=torch.Generator().manual_seed(1))
    expected = np.stack([ndimage.gaussian_filter(one, deviation) for one in maps.numpy()])
    np.testing.assert_allclose(gaussian(maps, deviation).numpy(), expected, rtol=0, atol=3e-7)


def test_the_deviation_is_relative_to_the_longer_side() -> None:
    maps = torch.rand(3, 20, 40)
    (found,) = Blur(0.05)([maps], [noise(40, 20)])
    torch.testing.assert_close(found, minmax_normalise(gaussian(maps, 2.0)))
    assert found.amin((1, 2)).eq(0).all() and found.amax((1, 2)).eq(1).all()


def test_a_constant_map_stays_what_it_is() -> None:
    """A background that is everywhere remains everywhere, a class that is nowhere nowhere."""
    maps = torch.stack([torch.ones(9, 13), torch.zeros(9, 13), torch.rand(9, 13)])
    (found,) = Blur()([maps], [noise(13, 9)])
    assert found[0].eq(1).all() and found[1].eq(0).all() and found.isfinite().all()


def test_the_nan_quirk() -> None:
    maps = torch.stack([torch.zeros(9, 13), torch.rand(9, 13)])
    (found,) = Blur(nan_quirk=True)([maps], [noise(13, 9)])
    assert found[0].isnan().all() and found[1].isfinite().all()


def test_the_blur_needs_a_deviation() -> None:
    with pytest.raises(OvssError, match="deviation must be a number from 1e-06 to 1000"):
        Blur(0)


# ---- dense CRF


def two_halves(height: int = 24, width: int = 32) -> Image.Image:
    """Dark at the left, bright at the right."""
    pixels = np.full((height, width, 3), 40, dtype=np.uint8)
    pixels[:, width // 2 :] = 200
    return Image.fromarray(pixels)


def test_the_crf_is_pydensecrfs() -> None:
    """A plain transcription, with the library's own unary potential."""
    densecrf = pytest.importorskip("pydensecrf.densecrf")
    from pydensecrf.utils import unary_from_softmax

    image, maps = noise(31, 17, 3), torch.rand(3, 17, 31)
    model = densecrf.DenseCRF2D(31, 17, 3)
    model.setUnaryEnergy(np.ascontiguousarray(unary_from_softmax(maps.softmax(0).numpy())))
    model.addPairwiseGaussian(sxy=3, compat=7)
    model.addPairwiseBilateral(sxy=50, srgb=5, rgbim=np.array(image), compat=10)
    expected = np.array(model.inference(10)).reshape(3, 17, 31)
    (found,) = DenseCrf()([maps], [image])
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-5)


def test_the_crf_follows_the_colours() -> None:
    maps = torch.zeros(2, 24, 32)
    maps[0, :, :13], maps[1, :, 13:] = 1, 1  # three columns too early
    maps[:, 4, 5] = torch.tensor([0.0, 1.0])  # and one wrong pixel
    (found,) = DenseCrf()([maps], [two_halves()])
    assert found.argmax(0)[:, :16].eq(0).all() and found.argmax(0)[:, 16:].eq(1).all()
    torch.testing.assert_close(found.sum(0), torch.ones(24, 32))


def test_coarse_maps_are_brought_to_the_image() -> None:
    coarse = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])
    (found,) = DenseCrf()([coarse], [two_halves()])
    assert found.shape == (2, 24, 32) and found.argmax(0)[0, 0] == 0 and found.argmax(0)[0, -1] == 1


@pytest.mark.parametrize("size", [(1, 1), (1, 90), (70, 2)])
def test_images_of_any_shape(size: tuple[int, int]) -> None:
    (found,) = DenseCrf()([torch.rand(3, *size)], [noise(size[1], size[0])])
    assert found.shape == (3, *size) and found.isfinite().all()


def test_one_map_and_large_scores() -> None:
    (alone,) = DenseCrf()([torch.rand(1, 4, 4)], [noise(4, 4)])
    assert alone.eq(1).all()
    scores = torch.tensor([-500.0, 500.0])[:, None, None].expand(2, 4, 4)
    assert DenseCrf()([scores], [noise(4, 4)])[0][1].eq(1).all()


def test_several_images_in_parallel_are_one_by_one() -> None:
    images = [noise(20, 12, 1), noise(9, 30, 2), noise(16, 16, 3)]
    maps = [torch.rand(k + 2, image.height, image.width) for k, image in enumerate(images)]
    together = DenseCrf(workers=2)(maps, images)
    for found, own, image in zip(together, maps, images, strict=True):
        assert torch.equal(found, DenseCrf(workers=1)([own], [image])[0])
    assert DenseCrf(workers=2)([], []) == []


def test_without_pydensecrf_the_message_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(OvssError) as error:
        DenseCrf()
    assert 'pip install "cython<3" setuptools wheel' in str(error.value)
    command = "CYTHON_FORCE_REGEN=1 pip install --pre --no-build-isolation pydensecrf"
    assert command in str(error.value) and "crf=None" in str(error.value)


def test_a_killed_process_is_explained_and_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    images, maps = [noise(8, 8, 1), noise(8, 8, 2)], [torch.rand(2, 8, 8), torch.rand(2, 8, 8)]
    expected = DenseCrf(workers=2)(maps, images)
    for process in crf.PROCESSES.idle:
        process.kill()
        process.wait()
    for found, wanted in zip(DenseCrf(workers=2)(maps, images), expected, strict=True):
        assert torch.equal(found, wanted)
    take = crf.PROCESSES._take

    def taken_and_killed() -> Any:
        process = take()
        process.kill()
        return process

    monkeypatch.setattr(crf.PROCESSES, "_take", taken_and_killed)
    with pytest.raises(OvssError, match=r"was killed: try DenseCrf\(workers=1\)"):
        DenseCrf(workers=2)(maps, images)
    monkeypatch.setattr(crf.PROCESSES, "_take", take)
    for found, wanted in zip(DenseCrf(workers=2)(maps, images), expected, strict=True):
        assert torch.equal(found, wanted)


def test_processes_are_kept_few_and_no_forks() -> None:
    """A batch starts none if the last one's are there; none holds torch, and so none a GPU."""
    images, maps = [noise(8, 8, seed) for seed in range(6)], [torch.rand(2, 8, 8)] * 6
    DenseCrf(workers=2)(maps, images)
    first = {process.pid for process in crf.PROCESSES.idle}
    DenseCrf(workers=2)(maps, images)
    assert 0 < len(first) <= crf.processors() and len(first) <= 2
    assert {process.pid for process in crf.PROCESSES.idle} == first
    DenseCrf(workers=0)(maps[:1], images[:1])
    DenseCrf(workers=9)(maps[:1], images[:1])  # one image needs no process
    assert {process.pid for process in crf.PROCESSES.idle} == first
    for process in first:
        assert psutil.Process(process).ppid() == os.getpid()
        libraries = {one.path for one in psutil.Process(process).memory_maps()}
        assert not any("libtorch" in path for path in libraries)


def test_processes_end_with_their_parent() -> None:
    """Asked to, or because the parent was killed."""
    processes = crf.CrfProcesses()
    process = processes._take()
    processes.idle.append(process)
    processes.close()
    assert process.poll() is not None and not processes.idle
    program = (
        "import os, signal\n"
        "from ovss.refine.crf import CrfProcesses\n"
        "processes = CrfProcesses()\n"
        "print(processes._take().pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    child = int(done.stdout)
    for _ in range(100):
        if not psutil.pid_exists(child):
            return
        time.sleep(0.1)
    raise AssertionError(f"process {child} is still there")


def test_an_error_in_a_process_is_the_callers() -> None:
    flat = np.zeros((4, 4), dtype=np.uint8)  # no RGB image
    energy = np.zeros((2, 4, 4), dtype=np.float32)
    options = {"iterations": 1, "near": 3, "near_weight": 7, "far": 50, "colour": 5}
    with pytest.raises((KeyError, ValueError, IndexError)):
        crf.PROCESSES.map([(options, energy, flat)] * 2, 2)
    assert len(DenseCrf(workers=2)([torch.rand(2, 4, 4)] * 2, [noise(4, 4)] * 2)) == 2


def test_ranks_share_the_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    assert crf.processors() == 16
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert crf.processors() == 4
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "64")
    assert crf.processors() == 1


def test_workers_are_not_negative() -> None:
    with pytest.raises(OvssError, match="workers must be a whole number from 0 to 1024, got -1"):
        DenseCrf(workers=-1)
