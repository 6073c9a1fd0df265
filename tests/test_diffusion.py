"""The diffusion backbone: its attention maps, and what is not computed for them."""

from __future__ import annotations

import shutil
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from einops import rearrange
from torch import Tensor

from clips import noise
from diffusions import save_diffusion
from ovss.backbones import registry
from ovss.backbones.diffusion import DiffusionBackbone, mixed, vae_tiling
from ovss.backbones.diffusion.backbone import LAYERS
from ovss.errors import CheckpointError, OvssError, UnknownNameError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_diffusion(tmp_path_factory.mktemp("zoo") / "sd")


@pytest.fixture(scope="module")
def backbone(folder: Path) -> DiffusionBackbone:
    return DiffusionBackbone.load(folder)


def test_maps_are_those_of_the_whole_network(backbone: DiffusionBackbone) -> None:
    picture, layers = noise(50, 40), (-4, -2, 0, -6, 12)
    found = backbone.attention(picture, layers, noise=3)
    expected = reference(backbone, picture, layers, seed=3)
    assert [one.shape[-1] for one in found] == [64, 64, 64, 64, 1]
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(ours.sum(-1), torch.ones(ours.shape[:-1]))


def reference(
    backbone: DiffusionBackbone, picture: Any, layers: tuple[int, ...], seed: int
) -> list[Tensor]:
    """softmax(q k^T / sqrt(d)) of what each module gets while all of the U-Net runs."""
    inputs: dict[int, Tensor] = {}
    modules = [backbone.attentions[layer] for layer in layers]
    handles = [
        module.register_forward_pre_hook(lambda one, given: inputs.update({id(one): given[0]}))
        for module in modules
    ]
    latents = backbone.latents(backbone.preprocess(picture)[None])
    time = backbone.timestep(45)
    noisy = backbone.scheduler.add_noise(latents, backbone.noise(seed), time[None])
    with torch.no_grad():
        backbone.unet(noisy, time, encoder_hidden_states=backbone.prompt)
        maps = [one_map(module, inputs[id(module)]) for module in modules]
    for handle in handles:
        handle.remove()
    return maps


def one_map(module: Any, tokens: Tensor) -> Tensor:
    query, key = (
        rearrange(side(tokens), "1 l (h d) -> h l d", h=module.heads)
        for side in (module.to_q, module.to_k)
    )
    return (query @ key.mT / query.shape[-1] ** 0.5).softmax(-1)


def test_batch_equals_single_images(backbone: DiffusionBackbone) -> None:
    pictures = [noise(50, 40), noise(33, 64, seed=1), noise(64, 64, seed=2)]
    together = backbone.attention(pictures)
    for index, picture in enumerate(pictures):
        alone = backbone.attention(picture)
        for batch, single in zip(together, alone, strict=True):
            torch.testing.assert_close(batch[index], single, rtol=1e-4, atol=1e-4)


def test_projections_give_the_maps_one_at_a_time(backbone: DiffusionBackbone) -> None:
    pictures = [noise(50, 40), noise(33, 64, seed=1)]
    layers = (-6, -4)
    maps = backbone.attention(pictures, layers)
    for found, whole in zip(backbone.projections(pictures, layers), maps, strict=True):
        heads, length = whole.shape[1:3]
        assert found.query.shape[:3] == found.key.shape[:3] == (2, heads, length)
        torch.testing.assert_close(found.map(1, heads - 1), whole[1, heads - 1])
        torch.testing.assert_close(found.heads(1)[0][3:5], whole[1, 0, 3:5])


def test_noise_is_seeded_or_given(backbone: DiffusionBackbone) -> None:
    picture = noise(50, 40)
    first, again, given, other = (
        backbone.attention(picture, (-4,), noise=value)[0]
        for value in (0, torch.Generator().manual_seed(0), backbone.noise(0), 1)
    )
    assert torch.equal(first, again) and torch.equal(first, given)
    assert not torch.allclose(first, other)


def test_nothing_runs_behind_the_last_layer_that_is_read(backbone: DiffusionBackbone) -> None:
    picture = noise(50, 40)
    backbone.attention(picture)  # encodes the prompt
    names = {
        module: f"{part}.{name}".rstrip(".")
        for part in ("unet", "vae", "text_encoder")
        for name, module in getattr(backbone, part).named_modules()
    }
    called: list[str] = []
    handles = [
        module.register_forward_pre_hook(lambda one, _: called.append(names[one]))
        for module in names
    ]
    backbone.attention(picture, LAYERS)
    for handle in handles:
        handle.remove()
    end = "unet.up_blocks.3.attentions.1.transformer_blocks.0.attn1"
    assert called[-3:] == [end, f"{end}.to_q", f"{end}.to_k"]
    assert called.count(end) == 1 and called.count("unet") == 1
    assert "unet.up_blocks.3.attentions.0.transformer_blocks.0.attn2.to_v" in called
    parts = ("vae.decoder", "text_encoder", "unet.conv_out", "unet.up_blocks.3.attentions.2")
    assert not [name for name in called if name.startswith(parts)]


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_left_behind(
    backbone: DiffusionBackbone, fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = [module.processor for module in backbone.attentions]
    if fails:
        monkeypatch.setattr(backbone.unet.up_blocks[3], "forward", None)
        with pytest.raises(TypeError):
            backbone.attention(noise(50, 40))
    else:
        backbone.attention(noise(50, 40))
    after = [module.processor for module in backbone.attentions]
    assert all(old is new for old, new in zip(before, after, strict=True))
    hooks = [
        (module._forward_hooks, module._forward_pre_hooks) for module in backbone.unet.modules()
    ]
    assert not any(map(any, hooks))


def test_time_steps_of_pndm(backbone: DiffusionBackbone) -> None:
    assert backbone.timestep(45) == 101 and backbone.timestep(0) == 981
    with pytest.raises(OvssError, match="step must be 0 to 50, got 51"):
        backbone.timestep(51)


@pytest.mark.parametrize("layer", [-3, 1, 40, -34])
def test_layers_that_are_no_self_attention(backbone: DiffusionBackbone, layer: int) -> None:
    with pytest.raises(OvssError, match="even index from -32 to 31"):
        backbone.attention(noise(8, 8), (layer,))


def test_no_layer(backbone: DiffusionBackbone) -> None:
    with pytest.raises(OvssError, match="at least one layer"):
        backbone.attention(noise(8, 8), ())


def test_images_become_squares_by_the_nearest_pixel(backbone: DiffusionBackbone) -> None:
    picture = noise(32, 16)
    pixels = backbone.preprocess(picture)
    assert pixels.shape == (3, 64, 64) and pixels.min() >= -1 and pixels.max() <= 1
    corner = torch.tensor(picture.getpixel((31, 15))) / 127.5 - 1
    torch.testing.assert_close(pixels[:, -4:, -2:], corner[:, None, None].expand(3, 4, 2))


def test_lower_precision(folder: Path, backbone: DiffusionBackbone) -> None:
    lowered = DiffusionBackbone.load(folder, dtype=torch.bfloat16)
    picture = noise(50, 40)
    layers = (-4, -6, 22)  # the last is of an inner stage
    pairs = zip(
        lowered.attention(picture, layers), backbone.attention(picture, layers), strict=True
    )
    for ours, exact in pairs:
        assert 0 < (ours.float() - exact).abs().mean() < 0.2 * exact.mean()


# ---- strips


@pytest.mark.parametrize("positions", [1, 100, 3 * 64, 1 << 13])
@pytest.mark.parametrize("shape", [(1, 64, 64), (2, 48, 80)])
def test_strips_are_the_whole_encoder(
    backbone: DiffusionBackbone, shape: tuple[int, int, int], positions: int
) -> None:
    batch, height, width = shape
    pixels = torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(0)) + 3
    before = pixels.clone()
    ours = vae_tiling.encode(backbone.vae, pixels, positions)
    with torch.no_grad():
        exact = backbone.vae.encode(pixels).latent_dist.mean
    torch.testing.assert_close(ours, exact, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(pixels, before, atol=0, rtol=0)


def test_large_means_cost_the_statistics_of_strips_no_digits(backbone: DiffusionBackbone) -> None:
    pixels = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1)) + 100
    with torch.no_grad():
        exact = backbone.vae.encode(pixels).latent_dist.mean
    torch.testing.assert_close(vae_tiling.encode(backbone.vae, pixels), exact, atol=1e-4, rtol=1e-4)


def test_other_encoders_run_as_diffusers_runs_them(backbone: DiffusionBackbone) -> None:
    from diffusers import AutoencoderKL

    kinds = ("AttnDownEncoderBlock2D", "DownEncoderBlock2D")
    vae: Any = AutoencoderKL(
        down_block_types=kinds,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(32, 32),
        norm_num_groups=32,
    ).eval()
    assert vae_tiling.supported(backbone.vae) and not vae_tiling.supported(vae)
    pixels = torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        expected = vae.encode(pixels).latent_dist.mean * vae.config.scaling_factor
    mixed.lower(deepcopy(backbone.unet), vae)  # and leaves them in float32
    found = replace(backbone, vae=vae).latents(pixels)
    torch.testing.assert_close(found, expected)


def test_identity(backbone: DiffusionBackbone) -> None:
    assert backbone.name == "sd" and backbone.checkpoint.startswith("sd@")
    assert backbone.size == 64 and len(backbone.attentions) == 32


# ---- loading


def test_folders_that_hold_something_else(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no unet, vae, text_encoder, tokenizer, sch"):
        DiffusionBackbone.load(tmp_path)
    broken = shutil.copytree(folder, tmp_path / "broken")
    weights = broken / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="is damaged"):
        DiffusionBackbone.load(broken)
    weights.unlink()
    with pytest.raises(CheckpointError, match="holds no diffusion_pytorch_model"):
        DiffusionBackbone.load(broken)


def test_names_that_are_no_diffusion_model() -> None:
    with pytest.raises(CheckpointError, match="dino-vits8 is no Stable Diffusion but: DINO"):
        DiffusionBackbone.load("dino-vits8")
    with pytest.raises(UnknownNameError, match="stable-diffusion-2-1-base"):
        DiffusionBackbone.load("stable-diffusion-2-1")


def test_hub_ids_are_tried_in_turn(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked: list[str] = []

    def download(hub: str, **_: Any) -> str:
        asked.append(hub)
        if len(asked) == 1:
            raise OSError("repository not found")
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    found = DiffusionBackbone.load("stable-diffusion-2-1-base")
    assert asked == list(registry.CHECKPOINTS["stable-diffusion-2-1-base"].hubs)
    assert found.checkpoint.startswith("stable-diffusion-2-1-base@")
    asked.clear()
    with pytest.raises(CheckpointError, match=r"cannot download.*repository not found.*give its"):
        DiffusionBackbone.load("stable-diffusion-1-4")


def test_unusable_device(folder: Path) -> None:
    with pytest.raises(OvssError, match="cannot use device 'nonsense'"):
        DiffusionBackbone.load(folder, device="nonsense")
