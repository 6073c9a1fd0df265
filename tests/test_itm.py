"""The image-text backbone: its maps and gradients against autograd on the whole graph."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from clips import noise
from itms import MEAN, STD, save_albef, save_blip, save_bridgetower
from ovss.backbones.itm import ItmBackbone
from ovss.errors import ImageError, OvssError, UnknownNameError, VocabularyError

SAVE: dict[str, Callable[[Path], Path]] = {
    "blip": save_blip,
    "bridgetower": save_bridgetower,
    "albef": save_albef,
}
NAMES = (["cat", "potted plant"], ["traffic light"], ["dog", "tvmonitor", "grass"])


@pytest.fixture(scope="module", params=SAVE)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model of each family, on disk."""
    return SAVE[request.param](tmp_path_factory.mktemp("zoo") / request.param)


@pytest.fixture(scope="module")
def backbone(folder: Path) -> ItmBackbone:
    """The same, loaded."""
    return ItmBackbone.load(folder)


def by_autograd(
    backbone: ItmBackbone, pixels: Tensor, names: list[str], objective: str = "logit"
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Logits, all layers' maps and gradients with a graph over everything; hooks only look."""
    model, maps = backbone.network.model, []
    model.requires_grad_(True)
    hooks = [
        module.register_forward_hook(lambda _, __, output: maps.append(output[1]))
        for module in backbone.network.cross_attention
    ]
    ids = backbone.prompt(names).ids[None]
    logits = backbone.network.logits(backbone.network.encode(pixels), ids, torch.ones_like(ids))
    for hook in hooks:
        hook.remove()
    model.requires_grad_(False)
    match = torch.ones(len(logits), dtype=torch.long)
    loss = nn.functional.cross_entropy(logits, match, reduction="sum")
    value = -loss if objective == "ce" else logits[:, 1].sum()
    return logits, maps, list(torch.autograd.grad(value, maps))


@pytest.mark.parametrize("objective", ["logit", "ce"])
def test_several_layers_in_one_pass_are_autograds(backbone: ItmBackbone, objective: str) -> None:
    pixels = torch.randn(1, 3, 48, 48)
    logits, maps, slopes = by_autograd(backbone, pixels, NAMES[0], objective)
    prompt, layers = backbone.prompt(NAMES[0]), range(backbone.layers)
    found = backbone.match(pixels, [prompt], layers, objective=objective)  # type: ignore[arg-type]
    torch.testing.assert_close(found.logits, logits)
    assert list(found.attention) == list(found.gradient) == list(layers)
    for layer in layers:
        assert found.attention[layer].shape == (1, backbone.heads, len(prompt.ids), 1 + 6 * 6)
        torch.testing.assert_close(found.attention[layer], maps[layer])
        torch.testing.assert_close(found.gradient[layer], slopes[layer], rtol=1e-4, atol=1e-7)
        one = backbone.match(pixels, [prompt], [layer], objective=objective)  # type: ignore[arg-type]
        torch.testing.assert_close(one.gradient[layer], slopes[layer], rtol=1e-4, atol=1e-7)
    assert min(slope.abs().max() for slope in slopes) > 1e-4


def test_the_graph_begins_at_the_lowest_layer_and_nothing_stays(backbone: ItmBackbone) -> None:
    graph: list[bool] = []
    modules = backbone.network.cross_attention
    hooks = [
        m.query.register_forward_hook(lambda *a: graph.append(a[2].requires_grad)) for m in modules
    ]
    before = count_hooks(backbone)
    backbone.match(torch.randn(1, 3, 32, 32), [backbone.prompt(["cat"])], [1])
    assert graph == [False, False, True, True][: len(graph)] and count_hooks(backbone) == before
    graph.clear()
    backbone.match(torch.randn(1, 3, 32, 32), [backbone.prompt(["cat"])], [1], gradient=False)
    assert not any(graph)
    for hook in hooks:
        hook.remove()
    for weight in backbone.network.model.parameters():
        assert not weight.requires_grad and weight.grad is None
    with pytest.raises(RuntimeError):
        backbone.match(torch.randn(1, 5, 32, 32), [backbone.prompt(["cat"])], [0])
    assert count_hooks(backbone) == 0 and torch.is_grad_enabled()


def count_hooks(backbone: ItmBackbone) -> int:
    modules = backbone.network.model.modules()
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules)


def test_threads_share_a_network(backbone: ItmBackbone) -> None:
    jobs = [(torch.randn(1, 3, side, side), layer) for side in (16, 32, 48, 64) for layer in (0, 1)]
    prompt = backbone.prompt(NAMES[0])

    def gradient(job: tuple[Tensor, int]) -> Tensor:
        return backbone.match(job[0], [prompt], [job[1]]).gradient[job[1]]

    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(gradient, jobs * 3))
    for job, found in zip(jobs * 3, together, strict=True):
        torch.testing.assert_close(found, gradient(job), rtol=1e-4, atol=1e-7)
    assert count_hooks(backbone) == 0


def test_without_gradient_the_maps_and_logits_are_the_same(backbone: ItmBackbone) -> None:
    pixels, prompts = torch.randn(1, 3, 32, 32), [backbone.prompt(["cat"])]
    plain = backbone.match(pixels, prompts, [0, 1], gradient=False)
    found = backbone.match(pixels, prompts, [1, 0])
    assert not plain.gradient and list(found.attention) == [1, 0]
    torch.testing.assert_close(plain.logits, found.logits)
    torch.testing.assert_close(plain.attention[1], found.attention[1])
    none = backbone.match(pixels, prompts)
    assert not none.attention and not none.gradient and not found.attention[0].requires_grad
    torch.testing.assert_close(none.logits, found.logits)


def test_a_padded_batch_is_what_each_pair_gives(backbone: ItmBackbone) -> None:
    pixels, prompts = torch.randn(3, 3, 40, 40), [backbone.prompt(names) for names in NAMES]
    batch = backbone.match(pixels, prompts, [0, 1])
    assert batch.mask.sum(1).tolist() == [len(prompt.ids) for prompt in prompts]
    for index, prompt in enumerate(prompts):
        one = backbone.match(pixels[index : index + 1], [prompt], [0, 1])
        length = len(prompt.ids)
        torch.testing.assert_close(batch.logits[index], one.logits[0], rtol=1e-4, atol=1e-5)
        for part in ("attention", "gradient"):
            for layer in (0, 1):
                found, expected = (getattr(x, part)[layer] for x in (batch, one))
                torch.testing.assert_close(
                    found[index, :, :length], expected[0], rtol=1e-3, atol=1e-6
                )
        assert not batch.gradient[0][index, :, length:].any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_loses_no_gradient(folder: Path, dtype: torch.dtype) -> None:
    whole, half = ItmBackbone.load(folder), ItmBackbone.load(folder, dtype=dtype)
    for one in (whole, half):  # a match that hangs on little: float16 alone would give zeros
        head = list(one.network.model.parameters())[-2]
        assert head.shape[0] == 2
        head.mul_(1e-3)
    pixels, prompts = torch.randn(1, 3, 32, 32), [whole.prompt(NAMES[0])]
    expected, found = (one.match(pixels, prompts, [1]) for one in (whole, half))
    assert found.gradient[1].dtype == found.logits.dtype == torch.float32
    pair = torch.stack([expected.gradient[1].flatten(), found.gradient[1].flatten()])
    assert torch.corrcoef(pair)[0, 1] > (0.999 if dtype == torch.float16 else 0.98)


def test_names_and_their_pieces(backbone: ItmBackbone) -> None:
    prompt = backbone.prompt(["cat", "potted plants", "traffic light", "tvmonitor"])
    assert prompt.text == "A picture of cat potted plants traffic light tvmonitor"
    spelled = [[prompt.pieces[place].strip("#Ġ") for place in word] for word in prompt.words]
    assert [word[0] for word in spelled] == ["cat", "potted", "traffic", "tv"]
    assert ["".join(word) for word in spelled[2:]] == ["trafficlight", "tvmonitor"]
    flat = [place for word in prompt.words for place in word]
    assert flat == list(range(4, len(prompt.ids) - 1))
    assert len(prompt.ids) == len(prompt.pieces)


def test_joined_names_and_other_prefixes(backbone: ItmBackbone) -> None:
    prompt = backbone.prompt(["traffic light", "tv-monitor"], joined=True, prefix="a ")
    assert prompt.text == "a trafficlight tvmonitor"
    assert [len(word) for word in prompt.words] == [2, 2]
    assert backbone.prompt(["  traffic \n light "], prefix="").text == "traffic light"
    assert backbone.prompt(["cat"], prefix="").words == ((1,),) or backbone.name == "bridgetower"


def test_blips_first_token_is_its_own(backbone: ItmBackbone) -> None:
    prompt = backbone.prompt(["cat"])
    words = len(backbone.tokenizer)
    first = {"blip": (words + 1, "[ENC]"), "bridgetower": (0, "<s>"), "albef": (2, "[CLS]")}
    assert (int(prompt.ids[0]), prompt.pieces[0]) == first[backbone.name]
    assert backbone.prompt(["[SEP] cat"]).pieces.count("[SEP]") <= 1  # a name is never a command


def test_names_that_make_no_prompt(backbone: ItmBackbone) -> None:
    for names in ([], "cat", [" "], ["cat", "--"], [None]):
        with pytest.raises(VocabularyError, match=r"a (prompt|class name)"):
            backbone.prompt(names)  # type: ignore[arg-type]
    if backbone.name != "bridgetower":  # its tokens are bytes: it sees everything
        with pytest.raises(VocabularyError, match=r"reads no word in '\\x00'"):
            backbone.prompt(["cat", "\0"])
    with pytest.raises(VocabularyError, match=r"of 90 classes has \d+ tokens.* takes \d\d: give"):
        backbone.prompt(["cat"] * 90)


def test_the_longest_prompt_runs(backbone: ItmBackbone) -> None:
    longest = backbone.network.positions
    prompt = backbone.prompt(["cat"] * (longest - 5))
    assert len(prompt.ids) == longest
    assert backbone.match(torch.randn(1, 3, 32, 32), [prompt]).mask.shape == (1, longest)
    with pytest.raises(VocabularyError):
        backbone.prompt(["cat"] * (longest - 4))


def test_pixels(backbone: ItmBackbone) -> None:
    found = backbone.pixels([noise(50, 30), noise(20, 70)], 48)
    assert found.shape == (2, 3, 48, 48)
    white = Image.new("RGB", (9, 7), (255, 255, 255))
    mean, std = torch.tensor(MEAN), torch.tensor(STD)
    torch.testing.assert_close(backbone.pixels([white], 8)[0, :, 0, 0], (1 - mean) / std)
    raw = backbone.pixels([white], 8, normalize=False, resample=Image.Resampling.BILINEAR)
    assert raw.eq(1).all()
    assert (backbone.size, backbone.patch, backbone.patch_grid(768)) == (32, 8, 96)
    with pytest.raises(OvssError, match=r"size=50 is no multiple .*\(8 pixels\): take 56"):
        backbone.pixels([white], 50)
    with pytest.raises(ImageError, match="at least one"):
        backbone.pixels([], 48)


def test_what_cannot_be_matched(backbone: ItmBackbone) -> None:
    pixels, prompt = torch.randn(2, 3, 32, 32), backbone.prompt(["cat"])
    with pytest.raises(OvssError, match="2 images and 1 prompts"):
        backbone.match(pixels, [prompt])
    with pytest.raises(OvssError, match="0 images and 0 prompts"):
        backbone.match(pixels[:0], [])
    with pytest.raises(OvssError, match=r"layer 9 is none of \w+'s: they count from 0 to [13]"):
        backbone.match(pixels, [prompt, prompt], [9])
    with pytest.raises(OvssError, match="layer -1"):
        backbone.match(pixels, [prompt, prompt], [-1])
    with pytest.raises(UnknownNameError, match="unknown objective 'logits'"):
        backbone.match(pixels, [prompt, prompt], objective="logits")  # type: ignore[arg-type]
    with pytest.raises(OvssError, match="size=33"):
        backbone.match(torch.randn(1, 3, 32, 33), [prompt])


@pytest.mark.parametrize(
    ("save", "patch", "side"), [(save_blip, 16, 768), (save_bridgetower, 14, 770)]
)
def test_the_largest_inputs_of_the_paper(save: Any, patch: int, side: int, tmp_path: Path) -> None:
    """Section 4 and the supplement: far beyond the positions that were learnt."""
    vision = {"patch_size": patch, "image_size": 4 * patch}
    found = ItmBackbone.load(save(tmp_path / "itm", vision_config=vision))
    prompt = found.prompt(["cat", "dog"])
    match = found.match(found.pixels([noise(50, 40)], side), [prompt], [0], gradient=True)
    assert found.patch_grid(side) == side // patch
    columns = 1 + (side // patch) ** 2  # the image's class token, then the patches
    assert match.attention[0].shape[-1] == match.gradient[0].shape[-1] == columns
    assert match.gradient[0][..., 1:].abs().amax(-1).gt(0).any()


LEFT = (1.10546875, 0.7734375, 0.2265625, -0.10546875)  # 2 -> 4 by hand, Keys' kernel, a = -0.75


@pytest.mark.parametrize("family", SAVE)
def test_positions_are_resized_bicubically(family: str, tmp_path: Path) -> None:
    """Two columns of 1 and 0 become four; the class token's embedding stays."""
    if family == "albef":
        path = save_albef(tmp_path, grid=2)
    else:
        path = SAVE[family](tmp_path, vision_config={"image_size": 16})  # type: ignore[call-arg]
    backbone = ItmBackbone.load(path)
    model, seen = backbone.network.model, []
    if family == "blip":
        vision = model.vision_model
        table, reader = vision.embeddings.position_embedding, vision.encoder.layers[0]
    elif family == "bridgetower":
        vision = model.bridgetower.vision_model.visual
        table, reader = vision.embeddings.position_embedding.weight, vision.ln_pre
    else:
        vision = model.visual_encoder
        table, reader = vision.pos_embed, vision.blocks[0]
    for name, weight in vision.named_parameters():
        if "patch_emb" in name or name.endswith(("class_embedding", "cls_token")):
            weight.zero_()
    table.view(5, -1).copy_(torch.tensor([7.0, 1, 0, 1, 0])[:, None])
    with reader.register_forward_pre_hook(lambda _, given: seen.append(given[0])):
        backbone.match(torch.randn(1, 3, 32, 32), [backbone.prompt(["cat"])])
    (found,) = seen
    torch.testing.assert_close(found[0, 0], torch.full_like(found[0, 0], 7))
    square = found[0, 1:, 0].unflatten(0, (4, 4))
    torch.testing.assert_close(square, torch.tensor(LEFT).expand(4, 4))
