"""Everything that takes a device, on a pretend one: what it gives there is what the CPU gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import ovss
from clips import noise, save_clip
from diffusions import save_diffusion
from dinos import save_dino
from itms import save_albef, save_blip, save_bridgetower
from ovss import Vocabulary
from ovss.backbones import devices
from ovss.backbones.caching import CachedClip, CachedDiffusion, CachedItm
from ovss.backbones.clip import ClipBackbone
from ovss.backbones.devices import available_devices, find_device, has_float64
from ovss.backbones.diffusion import DiffusionBackbone
from ovss.backbones.dino import DinoBackbone
from ovss.backbones.itm import ItmBackbone
from ovss.evaluation.many import evaluate_many
from ovss.methods import METHODS
from ovss.methods.cliper import VARIANTS
from ovss.refine.blur import gaussian
from ovss.refine.crf import DenseCrf
from ovss.taggers import ClipTagger
from pretend_device import PRETEND, without_float64

CPU = torch.device("cpu")
WORDS = Vocabulary.of("cat, dog, sky")
IMAGES = [noise(40, 32, 1), noise(32, 56, 2)]  # of different shapes
Networks = dict[str, Any]


@pytest.fixture(autouse=True)
def equal_arithmetic() -> Iterator[None]:
    """The CPU's fused attention rounds otherwise; and what find_device says to torch stays."""
    before = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    with sdpa_kernel(SDPBackend.MATH):
        yield
    torch.backends.cudnn.allow_tf32 = before[0]
    torch.set_float32_matmul_precision(before[1])


# ---- what the device refuses, and what it does not


def there(*shape: int) -> Tensor:
    """Random numbers on the device."""
    return torch.rand(shape or (3,)).to(PRETEND)


ONE = torch.tensor(1.0)
REFUSED: dict[str, Callable[[], Any]] = {
    "tensors of two devices": lambda: there() + torch.rand(3),
    "a matrix product of two": lambda: there(3, 3) @ torch.rand(3, 3),
    "a layer without its input": lambda: nn.Linear(3, 2).to(PRETEND)(torch.rand(3)),
    "a masked fill by a mask of the CPU": lambda: there().masked_fill(torch.rand(3) > 0.5, 0),
    "a gather by indices of the CPU": lambda: there().gather(0, torch.tensor([0])),
    "an embedding of ids of the CPU": lambda: F.embedding(torch.tensor([0]), there(3, 3)),
    "a loss against labels of the CPU": lambda: F.cross_entropy(there(2, 3), torch.tensor([0, 1])),
    "indices of the device in the CPU": lambda: torch.rand(3)[torch.zeros(1).long().to(PRETEND)],
    "a mask of the device in the CPU": lambda: torch.rand(3)[there() > 0.5],
    "values of the CPU at a place": lambda: there().index_put_(
        (torch.tensor([0, 1]),), torch.rand(2)
    ),
    "a number of the CPU in a list": lambda: torch.stack([there().sum(), ONE]),
    "a result in a number of the CPU": lambda: ONE.clone().add_(there().sum()),
    "a comparison of two": lambda: torch.equal(there(), torch.rand(3)),
    "numpy()": lambda: there().numpy(),
    "numpy.asarray": lambda: np.asarray(there()),
    "pinned memory": lambda: there().pin_memory(),
    "a generator of the CPU": lambda: torch.randn(
        3, device=PRETEND, generator=torch.Generator().manual_seed(0)
    ),
    "a generator of the CPU, in place": lambda: there().uniform_(generator=torch.Generator()),
    "a matrix product of integers": lambda: there(3, 3).long() @ there(3, 3).long(),
}
TAKEN: dict[str, Callable[[torch.device], Any]] = {
    "a number of the CPU": lambda device: torch.arange(3.0, device=device) + ONE,
    "indices of the CPU": lambda device: torch.arange(3, device=device)[torch.tensor([2, 0])],
    "a list of indices": lambda device: torch.arange(3, device=device)[[2, 0]],
    "a mask of the CPU": lambda device: torch.arange(3, device=device)[torch.tensor([True] * 3)],
    "a copy": lambda device: torch.zeros(3, device=device).copy_(torch.arange(3)),
    "a tensor of a list": lambda device: torch.tensor([[1, 2], [3, 4]], device=device),
    "an identity": lambda device: torch.eye(2, 3, device=device),
    "a change of shape in place": lambda device: torch.arange(3, device=device).unsqueeze_(0),
    "a quantile": lambda device: torch.arange(5.0, device=device).quantile(0.3),
    "a number": lambda device: torch.full((1,), 2.5, device=device).item(),
    "a list": lambda device: torch.arange(3, device=device).tolist(),
    "a text": lambda device: f"{torch.full((), 2.5, device=device):.2f}",
    "attention": lambda device: F.scaled_dot_product_attention(
        *torch.linspace(-1, 1, 72).reshape(3, 1, 2, 4, 3).to(device)
    ),
    "a convolution": lambda device: F.conv2d(
        torch.linspace(0, 1, 16).reshape(1, 1, 4, 4).to(device), torch.ones(1, 1, 2, 2).to(device)
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_the_device_refuses_what_cuda_refuses(case: str) -> None:
    with pytest.raises((RuntimeError, TypeError)):
        REFUSED[case]()


@pytest.mark.parametrize("case", TAKEN)
def test_the_device_gives_what_the_cpu_gives(case: str) -> None:
    found, expected = TAKEN[case](PRETEND), TAKEN[case](CPU)
    if isinstance(expected, Tensor):
        assert found.device == PRETEND and found.shape == expected.shape
        torch.testing.assert_close(found.cpu(), expected)
    else:
        assert found == expected


def test_gradients_and_optimisers_are_the_cpus(tmp_path: Path) -> None:
    """Three steps of AdamW, saved in between and read again as a CPU's file."""

    def learnt(device: torch.device) -> Tensor:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.LayerNorm(4), nn.Linear(4, 2))
        inputs = torch.rand(5, 3).to(device)
        optimiser = torch.optim.AdamW(model.to(device).parameters(), 0.1, fused=True)
        for step in range(3):
            model(inputs).square().mean().backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            if step == 1:
                torch.save([model.state_dict(), optimiser.state_dict()], tmp_path / "state.pt")
                state = torch.load(tmp_path / "state.pt", weights_only=True, map_location="cpu")
                model.load_state_dict(state[0])
                optimiser.load_state_dict(state[1])
        return model[0].weight.detach().cpu()

    assert torch.equal(learnt(PRETEND), learnt(CPU))


def test_double_precision_can_be_refused() -> None:
    """As on Apple's MPS."""
    assert has_float64(PRETEND)
    with without_float64():
        assert not has_float64(PRETEND) and has_float64(CPU)
        with pytest.raises(TypeError, match="float64"):
            there().double()
        assert (there() * 2.0).dtype == torch.float32
    assert there().double().dtype == torch.float64


def test_the_device_is_found_by_name() -> None:
    torch.backends.cudnn.allow_tf32 = True
    assert find_device("pretend") == torch.device("pretend") and "pretend:0" in available_devices()
    assert devices.precision() == "float32"


# ---- networks


def load_networks(folder: Path, device: torch.device) -> Networks:
    """One random network of each kind."""
    return {
        "clip": ClipBackbone.load(folder / "clip", device=device),
        "dino": DinoBackbone.load(folder / "dino", device=device),
        "sd": DiffusionBackbone.load(folder / "sd", device=device),
        "blip": ItmBackbone.load(folder / "blip", device=device),
        "bridgetower": ItmBackbone.load(folder / "bridgetower", device=device),
        "albef": ItmBackbone.load(folder / "albef" / "albef.pth", device=device),
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random networks, saved."""
    place = tmp_path_factory.mktemp("networks")
    save_clip(place / "clip")
    save_dino(place / "dino")
    save_diffusion(place / "sd")
    save_blip(place / "blip")
    save_bridgetower(place / "bridgetower")
    save_albef(place / "albef")
    return place


@pytest.fixture(scope="module")
def here(folder: Path) -> Networks:
    """On the CPU."""
    return load_networks(folder, CPU)


@pytest.fixture(scope="module")
def away(folder: Path) -> Networks:
    """On the pretend device."""
    return load_networks(folder, PRETEND)


# Method and options; "clip", "sd" ... stand for the networks.
SMALL = {"short_side": 32, "templates": ["{}", "a {}"]}
MATCHED = {"layer": 1, "head": 1, "size": 32, "drop": 2, "rounds": 1, "crf": False}
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    **{
        name: (name, SMALL)
        for name in METHODS
        if name not in ("cliper", "proxyclip", "pnp-ovss", "fmbseg", "s-seg")
    },
    "proxyclip": ("proxyclip", SMALL | {"dino": "dino"}),
    **{f"cliper {variant}": ("cliper", SMALL | {"variant": variant}) for variant in VARIANTS},
    "cliper, windows": (
        "cliper",
        SMALL | {"variant": "official", "short_side": 48, "sliding_crop": 32, "sliding_stride": 16},
    ),
    "cliper, compensation": ("cliper", SMALL | {"compensation": "sd"}),
    "pnp-ovss": ("pnp-ovss", MATCHED | {"itm": "blip"}),
    "pnp-ovss paper": ("pnp-ovss", MATCHED | {"itm": "blip", "variant": "paper"}),
    "pnp-ovss, mean of heads": ("pnp-ovss", MATCHED | {"itm": "blip", "head": None, "blur": None}),
    "pnp-ovss, attention": ("pnp-ovss", MATCHED | {"itm": "blip", "gradcam": False}),
    "pnp-ovss, rescaled": ("pnp-ovss", MATCHED | {"itm": "blip", "rescale": True}),
    "pnp-ovss, CRF": ("pnp-ovss", MATCHED | {"itm": "blip", "crf": DenseCrf(workers=1)}),
    "pnp-ovss, BridgeTower": ("pnp-ovss", MATCHED | {"itm": "bridgetower"}),
    "pnp-ovss, ALBEF": ("pnp-ovss", MATCHED | {"itm": "albef"}),
}


def build(row: str, networks: Networks) -> ovss.Segmenter:
    """The segmenter of a row on these networks."""
    method, options = ROWS[row]
    own = {"itm": options["itm"]} if method == "pnp-ovss" else {"clip": "clip"}
    given = {**options, **own}
    return ovss.load(
        method, **{name: networks.get(str(value), value) for name, value in given.items()}
    )


def test_every_method_has_a_row() -> None:
    assert {method for method, _ in ROWS.values()} == set(METHODS)


@pytest.mark.parametrize("row", ROWS)
def test_labels_are_the_cpus(row: str, here: Networks, away: Networks) -> None:
    expected, found = build(row, here)(IMAGES, WORDS), build(row, away)(IMAGES, WORDS)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.labels, other.labels)
        torch.testing.assert_close(one.scores, other.scores, equal_nan=True)
        torch.testing.assert_close(one.image_scores, other.image_scores, equal_nan=True)


@pytest.mark.parametrize("row", ["proxyclip", "cliper, compensation", "pnp-ovss, CRF"])
def test_no_method_needs_double_precision(row: str, here: Networks, away: Networks) -> None:
    expected = build(row, here)(IMAGES, WORDS)
    with without_float64():
        found = build(row, away)(IMAGES, WORDS)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.labels, other.labels)


def test_words_of_each_image(here: Networks, away: Networks) -> None:
    """Synonyms and a list of words for each image."""
    words = [Vocabulary.of([["cat", "dog"], ["sky"]]), WORDS]
    for row in ("cliper official", "pnp-ovss"):
        expected, found = build(row, here)(IMAGES, words), build(row, away)(IMAGES, words)
        assert all(torch.equal(a.labels, b.labels) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("name", ["clip", "dino", "sd", "blip", "bridgetower", "albef"])
def test_every_network_moves_its_input(name: str, here: Networks, away: Networks) -> None:
    """Pixels may lie on the CPU: the network knows where it is."""
    found, expected = _features(away[name]), _features(here[name])
    assert found.device == PRETEND
    torch.testing.assert_close(found.cpu(), expected)


def _features(network: Any) -> Tensor:
    """What a network says of pixels on the CPU."""
    if isinstance(network, ClipBackbone):
        pixels = torch.stack([network.preprocess(noise(32, 32, 3), 32)])
        assert network.embed(pixels).device == network.features(pixels).inputs[-1].device
        return network.image_embedding(pixels)
    if isinstance(network, DinoBackbone):
        return network.features(network.preprocess(noise(32, 32, 3), 32, 32)[None])
    if isinstance(network, DiffusionBackbone):
        return network.attention([noise(32, 32, 3)])[0]
    prompts, pixels = [network.prompt(["cat"])], network.pixels([noise(32, 32, 3)], network.size)
    return network.match(pixels, prompts, (1,)).gradient[1].detach()


def test_blur_of_maps_on_the_device() -> None:
    maps = torch.rand(2, 9, 13)
    assert torch.equal(gaussian(maps.to(PRETEND), 1.5).cpu(), gaussian(maps, 1.5))
    with without_float64():
        assert torch.equal(gaussian(maps.to(PRETEND), 1.5).cpu(), gaussian(maps, 1.5))


# ---- taggers, caches, evaluations


def test_the_tagger_names_what_it_names_on_the_cpu(here: Networks, away: Networks) -> None:
    taggers = [ClipTagger(networks["clip"], keep=0.99) for networks in (here, away)]
    assert taggers[0](IMAGES, WORDS) == taggers[1](IMAGES, WORDS)
    scores = [tagger.scores(IMAGES, WORDS) for tagger in taggers]
    torch.testing.assert_close(scores[1], scores[0])


def test_caches_give_what_the_cpu_gives(folder: Path, here: Networks, voc: Path) -> None:
    """The rows of a table that share three caches, on the device."""
    cached = {
        "clip": CachedClip.load(folder / "clip", device=PRETEND),
        "sd": CachedDiffusion.load(folder / "sd", device=PRETEND),
        "blip": CachedItm.load(folder / "blip", device=PRETEND),
    }
    rows = ("clip", "cliper official", "cliper, compensation", "pnp-ovss", "pnp-ovss, attention")
    found, again, expected = (
        evaluate_many(
            {row: build(row, networks) for row in rows},
            "voc21",
            root=voc,
            limit=3,
            progress=False,
            bootstrap=10,
        )
        for networks in (cached, cached, here)
    )
    for row in rows:
        assert np.array_equal(found[row].areas, expected[row].areas)
        assert np.array_equal(again[row].areas, expected[row].areas)


def test_an_evaluation_leaves_the_random_state(away: Networks, voc: Path) -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    result = ovss.evaluate(
        build("clip", away), "voc21", root=voc, limit=2, progress=False, bootstrap=10
    )
    assert torch.equal(torch.rand(2), expected) and result.device == "pretend:0"
