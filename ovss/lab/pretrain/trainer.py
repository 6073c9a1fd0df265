"""A network of the zoo in training: measured as it would be shipped, written with its card."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, TypeVar, cast

import torch
from safetensors.torch import save
from torch import Tensor, nn

from ovss import files
from ovss.errors import OvssError
from ovss.evaluation.intervals import Interval
from ovss.lab.pretrain.batches import MEAN, STD
from ovss.training.card import UNTRAINED, Gate, card, write_card, write_curve, write_json
from ovss.training.curriculum import Batches, Recipe, S
from ovss.training.loop import Trainer, run

Split = Literal["tune", "val"]
VIT: dict[str, Any] = {  # the vision transformer of the networks that see pictures alone
    "image_size": 128,
    "patch_size": 8,
    "hidden_size": 128,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "intermediate_size": 512,
}
DIARY = "tried.md"  # written by hand; stays when a model is trained anew


@dataclass(frozen=True)
class LabRecipe(Recipe[S], Generic[S]):
    """A recipe with the number of scenes that its network is measured on.

    Attributes:
        curve_scenes: of `tune`, for a point of the curve.
        card_scenes: of `tune` and of `val`, for the card; None: all.
    """

    curve_scenes: int = 100
    card_scenes: int | None = None


R = TypeVar("R", bound=LabRecipe[Any])


class ZooTrainer(Trainer[R]):
    """A trainer with a name, gates and a folder of the zoo."""

    name: ClassVar[str]
    what: ClassVar[str]
    gates: ClassVar[tuple[Gate, ...]]
    default_recipe: ClassVar[LabRecipe[Any]]
    weights: ClassVar[str] = "model.safetensors"  # the file whose SHA-256 is on the card

    def __init__(self, recipe: R | None = None, device: str | torch.device = "cpu") -> None:
        """Start from the default recipe if none is given; see `Trainer`."""
        super().__init__(recipe or cast(R, self.default_recipe), device)

    def batches(self) -> Batches[Any]:
        """The batch of every step."""
        raise NotImplementedError

    def write(self, folder: Path) -> None:
        """Write the network as it is now as its library saves one, weights in float16."""
        raise NotImplementedError

    def load(self, folder: Path) -> Any:
        """Load the backbone that `write` wrote."""
        raise NotImplementedError

    def metrics(self, backbone: Any, split: Split, scenes: int | None) -> dict[str, float]:
        """Measure a backbone on a split."""
        raise NotImplementedError

    def intervals(self, backbone: Any, scenes: int | None) -> dict[str, Interval]:
        """On `val`, 95 % intervals of the metrics whose gate is the untrained network."""
        return {}

    def snapshot(self) -> Any:
        """The backbone as it would be loaded if it were written now."""
        with tempfile.TemporaryDirectory() as folder:
            self.write(Path(folder))
            return self.load(Path(folder))

    def measure(self) -> dict[str, float]:
        """The metrics of a point of the curve."""
        return self.metrics(self.snapshot(), "tune", self.recipe.curve_scenes)

    def train(self, folder: Path, workers: int = 1) -> None:
        """Train to the end of the recipe and write the network; `folder` is whole at all times.

        Until the network is written nothing but the state of the training changes there.
        """
        saved = folder / "training.pt"
        run(self, self.batches(), saved, workers)
        if self.best_weights:
            self.kept.load_state_dict(self.best_weights)
        with files.atomic_folder(folder, keep=(DIARY,)) as new:
            self.write(new)
            write_curve(new / "curve.csv", self.curve)
            write_card(new, self.card(new), self.weights)

    def card(self, folder: Path) -> dict[str, Any]:
        """The card of the network in `folder`, measured as loaded from there."""
        backbone = self.load(folder)
        splits: tuple[Split, ...] = ("tune", "val")
        scenes = self.recipe.card_scenes
        measured = {str(split): self.metrics(backbone, split, scenes) for split in splits}
        parameters = sum(p.numel() for p in self.shipped.parameters())
        untrained = self.untrained()
        return card(self, self.name, self.what, parameters, measured, untrained, self.gates)

    def untrained(self) -> dict[str, dict[str, float]]:
        """The 95 % intervals of the same network before training, for the gates that ask for it."""
        if all(gate.threshold != UNTRAINED for gate in self.gates):
            return {}
        first = type(self)(self.recipe, self.device).snapshot()
        found = self.intervals(first, self.recipe.card_scenes)
        return {name: {"low": i.low, "high": i.high} for name, i in found.items()}

    def judge_again(self, folder: Path) -> None:
        """Write the gates of a finished network anew, from the metrics on its card.

        Raises:
            OvssError: there is no card, or it is an earlier recipe's and lacks a gate's metric.
        """
        path = folder / "card.json"
        if not path.is_file():
            raise OvssError(f"no {path}: `make zoo MODEL={self.name}` trains the network")
        content = json.loads(path.read_text())
        if missing := [gate.name for gate in self.gates if gate.name not in content["val"]]:
            raise OvssError(
                f"the card of {self.name} is an earlier recipe's, it tells nothing of "
                f"{', '.join(missing)}: `make zoo MODEL={self.name}` trains it anew"
            )
        content["untrained"] = self.untrained()
        content["gates"] = [gate.judge(content["val"], content["untrained"]) for gate in self.gates]
        write_json(path, content)

    @property
    def shipped(self) -> nn.Module:
        """The part of the model that is written."""
        return self.kept


def write_weights(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Write tensors to a safetensors file, in float16 as transformers reads it."""
    halves = {name: tensor.detach().cpu().half().contiguous() for name, tensor in weights.items()}
    with files.atomic(path) as file:
        file.write(save(halves, metadata={"format": "pt"}))


def write_vit(folder: Path, config: Any, weights: Mapping[str, Tensor]) -> None:
    """Write a vision transformer of transformers as its plain `ViTModel`, and its pixels' scale."""
    write_json(folder / "preprocessor_config.json", {"image_mean": MEAN, "image_std": STD})
    write_json(folder / "config.json", {**config.to_dict(), "architectures": ["ViTModel"]})
    write_weights(folder / "model.safetensors", weights)
