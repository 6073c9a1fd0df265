"""The recipe of the lab MAE: what is hidden, what is shipped; killed and resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ovss.lab.pretrain.batches import WorldStage
from ovss.lab.pretrain.mae import train as mae
from ovss.lab.pretrain.mae.train import ENCODER, MaeTrainer, Recipe, load_whole
from ovss.lab.scenes import MOTLEY, World
from resuming import assert_same_weights

TINY = Recipe(
    warmup=2,
    evaluate_every=8,
    curve_scenes=2,
    card_scenes=2,
    stages=(WorldStage(16, 4, (World(), MOTLEY)),),
)


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A smaller model of the same kind."""
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    monkeypatch.setattr(mae, "ENCODER", {**ENCODER, **small, "intermediate_size": 32})


def test_three_quarters_of_the_patches_are_hidden() -> None:
    trainer = MaeTrainer(TINY)
    pixels = trainer.batches()[0][0]
    with torch.no_grad():
        found = trainer.model(pixels.float() / 255)
    assert found.mask.shape == (4, 256) and found.mask.mean() == 0.75
    assert found.logits.shape == (4, 256, 3 * 8**2)


def test_the_encoder_alone_is_the_maes_with_every_patch_seen() -> None:
    torch.manual_seed(0)
    trainer = MaeTrainer(TINY)
    trainer.model.eval()
    pixels = torch.rand(2, 3, 128, 128)
    trainer.model.vit.embeddings.config.mask_ratio = 0.0
    noise = torch.arange(256.0).expand(2, -1)  # keeps the order of the patches
    with torch.no_grad():
        expected = trainer.model.vit(pixels, noise=noise).last_hidden_state[:, 1:]  # [2, L, D]
    found = trainer.snapshot().features(pixels)  # [2, D, h, w], of weights in float16
    torch.testing.assert_close(found.flatten(2).mT, expected, rtol=1e-2, atol=5e-3)


def test_what_was_written_apart_is_put_together_again(tmp_path: Path) -> None:
    torch.manual_seed(0)
    trainer = MaeTrainer(TINY)
    trainer.model.eval()
    trainer.write(tmp_path)
    pixels, noise = torch.rand(2, 3, 128, 128), torch.rand(2, 256)
    with torch.no_grad():
        expected = trainer.model(pixels, noise=noise)
        found = load_whole(tmp_path)(pixels, noise=noise)  # of weights in float16
    torch.testing.assert_close(found.mask, expected.mask)
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-2, atol=5e-3)
    torch.testing.assert_close(found.loss, expected.loss, rtol=1e-3, atol=1e-3)


def test_worlds_take_turns_and_no_scene_comes_twice() -> None:
    batches = MaeTrainer(TINY).batches()
    pictures = {picture.numpy().tobytes() for (batch,) in batches for picture in batch}
    assert len(pictures) == TINY.images == 16


def test_a_killed_training_ends_with_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    MaeTrainer(TINY).train(tmp_path / "whole", workers=0)
    step, seen = MaeTrainer.step, []

    def killed(self: Any, batch: Any) -> float:
        seen.append(1)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return step(self, batch)

    monkeypatch.setattr(MaeTrainer, "step", killed)
    with pytest.raises(KeyboardInterrupt):
        MaeTrainer(TINY).train(tmp_path / "killed", workers=0)
    monkeypatch.setattr(MaeTrainer, "step", step)
    MaeTrainer(TINY).train(tmp_path / "killed", workers=0)
    assert_same_weights(tmp_path / "whole", tmp_path / "killed")
