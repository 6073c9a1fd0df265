"""The recipe of the lab CLIP: its loss, its views, its schedule; killed and resumed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import avg_pool2d, cross_entropy, normalize

from ovss.backbones.clip import ClipBackbone
from ovss.errors import CheckpointError, OvssError
from ovss.lab import cards, zoo
from ovss.lab.pretrain.attention_in_mask import middle_of_largest
from ovss.lab.pretrain.batches import MEAN, STD, normalise
from ovss.lab.pretrain.clip import train as recipe_file
from ovss.lab.pretrain.clip.recipe import MODEL, Recipe, Stage
from ovss.lab.pretrain.clip.tokenizer import train_tokenizer
from ovss.lab.pretrain.clip.train import ClipTrainer
from ovss.lab.pretrain.clip.views import Views, contrastive_loss
from ovss.lab.scenes import World
from ovss.methods.dense_clip import DenseClip
from resuming import assert_same_weights, kill

TINY = Recipe(
    warmup=2,
    evaluate_every=16,
    curve_scenes=2,
    card_scenes=2,
    stages=(
        Stage(16, 8, World(), 0.5, ("class", "local")),
        Stage(16, 8, World(), 0.0, ("class", "local", "mosaic")),
    ),
)


@pytest.fixture(autouse=True)
def eager() -> Iterator[None]:
    """Compiling takes longer than these few steps."""
    torch.compiler.set_stance("force_eager")
    yield
    torch.compiler.set_stance("default")


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A smaller model of the same kind."""
    small = {
        "embed_dim": 16,
        "vision_cfg": {**MODEL["vision_cfg"], "width": 32, "layers": 2, "head_width": 16},
        "text_cfg": {**MODEL["text_cfg"], "width": 16, "heads": 2, "layers": 1},
    }
    monkeypatch.setattr(recipe_file, "MODEL", small)
    monkeypatch.setattr(recipe_file, "CAPTIONS", 100)


def unit_vectors(*shape: int) -> torch.Tensor:
    return normalize(torch.randn(*shape, dtype=torch.float64), dim=-1)


def test_the_loss_is_clips_when_all_captions_differ() -> None:
    torch.manual_seed(0)
    image, text = unit_vectors(6, 8), unit_vectors(6, 8)
    logits = 5 * image @ text.T
    target = torch.arange(6)
    expected = (cross_entropy(logits, target) + cross_entropy(logits.T, target)) / 2
    loss = contrastive_loss(image, text, target[:, None], torch.tensor(5.0))
    torch.testing.assert_close(loss, expected)


def test_equal_captions_are_equally_right() -> None:
    """Two images, one caption: whatever the images, the loss is the entropy of a fair coin."""
    text = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    tokens = torch.tensor([[3, 4], [3, 4]])
    loss = contrastive_loss(torch.eye(2), text, tokens, torch.tensor(1.0))
    rows = torch.log(torch.tensor(2.0))  # each image sees two equal logits
    columns = -torch.eye(2)[0].log_softmax(0).mean()  # each caption: half of each image
    torch.testing.assert_close(loss, (rows + columns) / 2)


def test_the_loss_draws_matching_pairs_together() -> None:
    torch.manual_seed(1)
    raw = torch.randn(4, 8, requires_grad=True)
    text, tokens = normalize(torch.randn(4, 8), dim=-1), torch.arange(4)[:, None]
    contrastive_loss(normalize(raw, dim=-1), text, tokens, torch.tensor(3.0)).backward()
    assert raw.grad is not None
    moved = normalize(raw.detach() - raw.grad, dim=-1)
    before = (normalize(raw.detach(), dim=-1) * text).sum(-1)
    assert ((moved * text).sum(-1) > before).all()


def test_the_schedule_warms_up_and_ends_near_zero() -> None:
    recipe = Recipe()
    rates = [recipe.learning_rate(step) for step in range(recipe.steps)]
    shared = sum(stage.steps for stage in recipe.stages if stage.rate is None)
    assert rates[0] < recipe.rate / 100
    assert max(rates) == pytest.approx(recipe.rate)
    assert rates.index(max(rates)) in (recipe.warmup - 1, recipe.warmup)
    assert rates[shared - 1] < 0.011 * recipe.rate
    late = recipe.stages[-1]
    assert late.rate is not None and max(rates[shared:]) == pytest.approx(late.rate)
    assert rates[shared] < late.rate / 20 and rates[-1] < 0.011 * late.rate


def test_sides_take_turns(narrow: None) -> None:
    recipe = replace(TINY, stages=(Stage(16, 4, World(), 0.0, sides=(64, 128)),))
    batches = ClipTrainer(recipe).batches()
    assert [batches[step][0].shape[-1] for step in range(4)] == [64, 128, 64, 128]


def test_a_mosaic_cannot_lose_patches() -> None:
    with pytest.raises(ValueError, match="patch_dropout must be 0"):
        Stage(8, 8, World(), 0.5, ("class", "mosaic"))


def test_every_step_sees_fresh_scenes(narrow: None) -> None:
    batches = ClipTrainer(TINY).batches()
    assert len(batches) == TINY.steps == 4
    torch.testing.assert_close(batches[3], batches[3])
    pixels = [batches[step][0] for step in range(4)]
    assert all(batch.shape == (8, 3, 64, 64) and batch.dtype == torch.uint8 for batch in pixels)
    pictures = {picture.numpy().tobytes() for batch in pixels for picture in batch}
    assert len(pictures) == TINY.images, "every step sees fresh scenes"


def test_the_tokenizer_can_spell_any_word() -> None:
    tokenizer = train_tokenizer(["a red car", "a blue cup"], vocab_size=400, context_length=24)
    ids = tokenizer.encode("a Zebra-crossing é").ids
    assert len(ids) == 24
    assert max(ids) == tokenizer.token_to_id("<end>"), "open_clip reads the text at the highest id"
    assert tokenizer.decode(ids).strip() == "a zebra-crossing é"


@pytest.mark.parametrize("side", [64, 128])
def test_the_views_are_those_of_the_package(narrow: None, side: int) -> None:
    """The class view is open_clip's own image embedding; the local view the mean of MaskCLIP's."""
    trainer = ClipTrainer(TINY)
    trainer.model.eval()
    pixels = normalise(torch.randint(0, 256, (4, 3, side, side), dtype=torch.uint8))
    views = Views(trainer.model.visual)
    whole, local, mosaic = views(pixels, ("class", "local", "mosaic"))
    backbone = ClipBackbone(trainer.model, lambda *_: None, MEAN, STD, "clip", "test")  # type: ignore[arg-type,return-value]
    near = {"atol": 1e-5, "rtol": 1e-5}
    torch.testing.assert_close(whole, backbone.image_embedding(pixels), **near)

    dense = DenseClip(backbone, attention="identity", block="attention", short_side=side)

    def patches(pictures: torch.Tensor) -> torch.Tensor:
        return normalize(dense.embeddings(backbone.features(pictures, attention=False)), dim=-1)

    torch.testing.assert_close(local, normalize(patches(pixels).mean(1), dim=-1), **near)
    small = avg_pool2d(pixels, 2)
    rows = [torch.cat([small[0], small[1]], -1), torch.cat([small[2], small[3]], -1)]
    grid = patches(torch.cat(rows, -2)[None]).reshape(side // 8, side // 8, -1)
    half = side // 16
    quarters = [grid[:half, :half], grid[:half, half:], grid[half:, :half], grid[half:, half:]]
    expected = torch.stack([normalize(q.mean((0, 1)), dim=-1) for q in quarters])
    torch.testing.assert_close(mosaic, expected, **near)
    assert len(views(pixels, ("class",))) == 1


def test_a_killed_training_ends_with_the_same_weights(narrow: None, tmp_path: Path) -> None:
    ClipTrainer(TINY).train(tmp_path / "whole")
    folder = tmp_path / "killed"
    folder.mkdir()
    (folder / "tokenizer.json").write_text("of an older model")
    kill(lambda: ClipTrainer(TINY), tmp_path / "killed", 16)
    assert sorted(p.name for p in folder.iterdir()) == ["tokenizer.json", "training.pt"]
    assert (folder / "tokenizer.json").read_text() == "of an older model"
    ClipTrainer(TINY).train(tmp_path / "killed")
    assert_same_weights(tmp_path / "whole", tmp_path / "killed")
    card = json.loads((tmp_path / "killed" / "card.json").read_text())
    assert card["images_seen"] == TINY.images
    assert [gate["name"] for gate in card["gates"]] == ["naming", "things", "stuff", "lab20"]
    assert not (tmp_path / "killed" / "training.pt").exists()
    assert ClipBackbone.load(tmp_path / "killed").width == 32


def test_a_state_of_another_recipe_is_refused(narrow: None) -> None:
    state = ClipTrainer(TINY).state()
    with pytest.raises(OvssError, match="another recipe"):
        ClipTrainer(replace(TINY, seed=1)).restore(state)


def test_a_flipped_byte_in_the_weights_is_seen(narrow: None, tmp_path: Path) -> None:
    ClipTrainer(TINY).train(tmp_path)
    weights = tmp_path / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-5] ^= 1
    weights.write_bytes(content)
    with pytest.raises(CheckpointError, match="SHA-256"):
        ClipBackbone.load(tmp_path)


def test_an_unknown_model_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        zoo.main(["clop"])
    assert error.value.code == 2
    assert "known: clip" in capsys.readouterr().err


def test_the_committed_card_belongs_to_the_committed_weights() -> None:
    card, curve = cards.read_card("clip"), cards.read_curve("clip")
    ClipBackbone.load("clip")  # compares the SHA-256
    assert curve[-1]["images"] <= card["images_seen"]
    assert set(card["val"]) == {"naming", "miou", "things", "stuff", "lab20"}


def test_the_middle_of_the_largest_thing_lies_on_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ring's middle is empty: the nearest of its own patches is taken."""
    numbers = np.zeros((64, 64), dtype=np.uint8)
    numbers[:8, :8] = 2
    numbers[16:56, 16:56] = 1
    numbers[24:48, 24:48] = 0
    path = tmp_path / "lab" / "SegmentationObject" / "ring.png"
    path.parent.mkdir(parents=True)
    Image.fromarray(numbers).save(path)
    monkeypatch.setenv("OVSS_DATA", str(tmp_path))
    row, column = middle_of_largest("ring", 8)
    assert numbers[8 * row, 8 * column] == 1
