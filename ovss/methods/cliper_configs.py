"""CLIPer's settings for each benchmark: they are part of its published numbers.

From the configuration files of the authors' code, December 2024 ("official-2024", behind the
arXiv tables) and September 2025 ("official"). Names of data sets are ovss's.
"""

from __future__ import annotations

from dataclasses import dataclass

from .. import paths
from ..decide import CliperRule
from ..errors import OvssError


@dataclass(frozen=True)
class CliperConfig:
    """Hold the authors' settings for one model, benchmark and variant.

    Attributes:
        template: file of prompt templates, "car" (15) or "openai" (80); see `templates`.
        short_side: pixels.
        sliding_crop, select_layer, logit_scale, attention_threshold: see `Cliper`.
        score_threshold, background_threshold, normalize: see `CliperRule`.
    """

    template: str
    short_side: int
    sliding_crop: int
    select_layer: int
    logit_scale: float
    attention_threshold: float
    score_threshold: float
    background_threshold: float
    normalize: bool

    @property
    def rule(self) -> CliperRule:
        """Build the background rule with this row's thresholds."""
        return CliperRule(self.score_threshold, self.background_threshold, self.normalize)


# model, data, template, side, window, layer, scale, attention, score, background, normalize
_OFFICIAL = """
B/16 ade150      car    336   0 -1 100 0.2  0.3  0.3    no
B/16 cityscapes  openai 560   0 -1 100 0.35 0    0.0001 no
B/16 coco-object openai 336 224 -1  50 0.2  0.3  0.3    no
B/16 context60   car    336 224 -1 100 0.2  0.45 0.45   no
B/16 context59   car    336 224 -1 100 0.2  0.3  0.3    no
B/16 coco-stuff  car    336   0 -1  50 0.2  0.1  0.1    no
B/16 voc20       car    336   0 -1 100 0.1  0    0.001  no
B/16 voc21       car    336 336 -1 100 0.1  0.7  0.6    yes
L/14 ade150      openai 336   0 -1  50 0.2  0.2  0.2    no
L/14 cityscapes  car    448   0 -1 100 0.35 0    0.0001 no
L/14 coco-object openai 336   0 -2  50 0.1  0.5  0.5    no
L/14 context60   openai 336   0 -2  50 0.2  0.3  0.3    no
L/14 context59   car    336   0 -2 100 0.2  0.45 0.45   no
L/14 coco-stuff  openai 336   0 -2  50 0.2  0.2  0.2    no
L/14 voc20       car    336   0 -1  70 0.2  0.1  0.0001 no
L/14 voc21       car    336   0 -2  50 0.1  0.5  0.4    yes
"""
_OFFICIAL_2024 = """
B/16 ade150      car    336   0 -1 100 0.2  0.3  0.3    no
B/16 coco-object openai 336   0 -1  50 0.2  0.3  0.3    no
B/16 context60   car    336   0 -1 100 0.2  0.45 0.45   no
B/16 context59   car    336   0 -1 100 0.2  0.3  0.3    no
B/16 coco-stuff  car    336   0 -1  50 0.2  0.1  0.1    no
B/16 voc20       car    336   0 -1 100 0.2  0    0.001  no
B/16 voc21       car    336   0 -1 100 0.2  0.7  0.6    no
L/14 ade150      openai 336   0 -1  50 0.2  0.2  0.2    no
L/14 coco-object openai 336   0 -1  50 0.2  0.5  0.5    no
L/14 context60   openai 336   0 -1  50 0.2  0.3  0.3    no
L/14 context59   car    336   0 -1 100 0.2  0.45 0.45   no
L/14 coco-stuff  openai 336   0 -1  50 0.2  0.2  0.2    no
L/14 voc20       car    336   0 -1  50 0.2  0    0.0001 no
L/14 voc21       car    336   0 -1  50 0.2  0.5  0      yes
"""


def _read(table: str, variant: str) -> dict[tuple[str, str, str], CliperConfig]:
    rows = {}
    for line in table.split("\n")[1:-1]:
        model, data, template, side, crop, layer, *numbers, normalize = line.split()
        scale, attention, score, background = map(float, numbers)
        layers = (int(side), int(crop), int(layer), scale, attention)
        row = CliperConfig(template, *layers, score, background, normalize == "yes")
        rows[model, data, variant] = row
    return rows


CONFIGS: dict[tuple[str, str, str], CliperConfig] = {  # (model, data set, variant)
    **_read(_OFFICIAL, "official"),
    **_read(_OFFICIAL_2024, "official-2024"),
}


def templates(name: str) -> tuple[str, ...]:
    """Read prompt templates: "plain", "openai" (80, from open_clip), or a file of lines.

    CLIPer's "car" list is not shipped with ovss; it is read from data/templates/car_template.txt.

    Raises:
        OvssError: there is no such list here.
    """
    if name == "plain":
        return ("a photo of a {}.",)
    if name == "openai":
        import open_clip  # takes seconds

        return tuple(template("{}") for template in open_clip.OPENAI_IMAGENET_TEMPLATES)
    path = paths.data("templates", f"{name}_template.txt")
    if not path.is_file():
        raise OvssError(
            f"the prompt templates {name!r} are not shipped with ovss: put CLIPer's "
            f"{path.name} into {path.parent}, or give templates=[...] (known: plain, openai)"
        )
    lines = path.read_text(encoding="utf-8").splitlines()
    return tuple(line.strip() for line in lines if line.strip())
