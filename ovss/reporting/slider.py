"""Pictures to leaf through with a slider, in a page without a server and without other hosts."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from io import BytesIO

from matplotlib.figure import Figure
from PIL import Image

from ..errors import OvssError
from ..images import data_url

COLOURS = 128
# Without scripts every frame is shown, one below the other, and the slider is not.
SCRIPT = """
(function () {
  const box = document.getElementById("%s");
  const frames = box.querySelectorAll("[data-frame]");
  const slider = box.querySelector("input"), told = box.querySelector("output");
  function show() {
    frames.forEach((frame, i) => { frame.hidden = i !== Number(slider.value); });
    told.textContent = frames[slider.value].querySelector("p").textContent;
  }
  box.querySelectorAll("[data-frame] p").forEach((label) => { label.hidden = true; });
  slider.parentElement.hidden = false;
  slider.addEventListener("input", show);
  show();
})();
"""


@dataclass(frozen=True)
class Slider:
    """Frames under a slider; a notebook shows them as one figure.

    Attributes:
        frames: figures or images, of one size.
        labels: what each frame shows, in a few words.
        alts: the alternative text of each.
        title: what the slider moves through ("round").
        caption: below the frames, if the page's own caption does not say it.
    """

    frames: Sequence[Figure | Image.Image]
    labels: Sequence[str]
    alts: Sequence[str]
    title: str
    caption: str = ""

    def __post_init__(self) -> None:
        counts = len(self.frames), len(self.labels), len(self.alts)
        if not self.frames or len(set(counts)) > 1:
            raise OvssError("give a label and an alt for each frame: {} / {} / {}".format(*counts))
        if not all(alt.strip() for alt in self.alts):
            raise OvssError("each frame needs an alternative text")

    def _repr_html_(self) -> str:
        """What a notebook and the page show."""
        pictures = [_picture(frame) for frame in self.frames]
        name = "slider-" + hashlib.sha256("".join(pictures).encode()).hexdigest()[:12]
        parts = zip(pictures, self.labels, self.alts, strict=True)
        return "\n".join(
            (
                f'<figure id="{name}">',
                f"<label hidden>{escape(self.title)} ",
                f'<input type="range" min="0" max="{len(pictures) - 1}" step="1" value="0">',
                "<output></output></label>",
                *(_frame(*part) for part in parts),
                f"<figcaption><p>{escape(self.caption)}</p></figcaption>" if self.caption else "",
                f"<script>{SCRIPT % name}</script>",
                "</figure>",
            )
        )


def _frame(picture: str, label: str, alt: str) -> str:
    image = f'<img src="{picture}" alt="{escape(alt)}">'
    return f"<div data-frame><p>{escape(label)}</p>{image}</div>"


def _picture(frame: Figure | Image.Image) -> str:
    """The URL of the picture in few colours: a page holds many."""
    picture = _drawn(frame) if isinstance(frame, Figure) else frame
    return data_url(picture.convert("RGB").quantize(COLOURS), optimize=True)


def _drawn(figure: Figure) -> Image.Image:
    file = BytesIO()
    figure.savefig(file, format="png", dpi=figure.dpi)
    return Image.open(file)
