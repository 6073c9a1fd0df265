"""A map of layers and heads for the book's pages: point at a cell, and its picture is shown.

Plain HTML with a few lines of script, nothing from anywhere else. Without scripts the numbers and
the first panel are there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.colors import to_hex
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from ..errors import OvssError
from ..images import data_url
from .figures import HEAT

STYLE = """
.ovss-map { text-align: center; }
.ovss-map table { border-collapse: separate; border-spacing: 2px; margin: 0 auto 1em; width: auto; }
.ovss-map th { font-weight: 400; padding: 0 .6em; text-align: left; }
.ovss-map button { border: 3px solid transparent; cursor: pointer; font: inherit; padding: .3em 0;
  width: 4.5em; }
.ovss-map button[aria-pressed="true"] { border-color: #d55e00; }
.ovss-map .pictures { display: flex; flex-wrap: wrap; gap: 8px; justify-content: center; }
.ovss-map .pictures div { text-align: center; }
.ovss-map img { border: 1px solid #888; image-rendering: pixelated; max-width: 100%; }
"""
SCRIPT = """
(function () {
  const root = document.getElementById("%s");
  const cells = [...root.querySelectorAll("button")], panels = root.querySelectorAll(".panel");
  function show(chosen) {
    cells.forEach((cell, i) => {
      cell.setAttribute("aria-pressed", String(i === chosen));
      panels[i].hidden = i !== chosen;
    });
  }
  cells.forEach((cell, i) => {
    for (const event of ["click", "focus", "pointerenter"])
      cell.addEventListener(event, () => show(i));
  });
})();
"""


@dataclass(frozen=True)
class Panel:
    """What is shown of a cell.

    Attributes:
        lines: of text.
        pictures: title (the class that a mask is of) -> picture, side by side, each in a border.
        alt: what is to be seen of the head; each picture's title is put before it.
    """

    lines: Sequence[str]
    pictures: Mapping[str, Image.Image]
    alt: str


@dataclass(frozen=True, repr=False)
class LayerHeadMap:
    """A table of layers and heads whose cells can be pointed at.

    Attributes:
        values: [layers, heads], written into the cells and shown as colour.
        panels: one for each (layer, head), both from 0.
        start: the cell that is chosen at first.
        original: the picture that all panels are about, shown beside each of them.
        caption: what the table holds, if the page's own caption does not say it.
        digits: of the numbers after the point.
    """

    values: ArrayLike
    panels: Mapping[tuple[int, int], Panel]
    start: tuple[int, int]
    original: Image.Image | None = None
    caption: str = ""
    digits: int = 1

    def __post_init__(self) -> None:
        wanted = set(np.ndindex(self._matrix.shape))
        if self._matrix.ndim != 2 or set(self.panels) != wanted or self.start not in wanted:
            raise OvssError(f"values {self._matrix.shape}: each layer and head needs one panel")
        if not all(panel.pictures for panel in self.panels.values()):
            raise OvssError("each panel needs a picture, with a title")

    def _repr_html_(self) -> str:
        body = self._table() + "".join(map(self._panel, np.ndindex(self._matrix.shape)))
        name = "ovss-map-" + hashlib.sha256(body.encode()).hexdigest()[:12]
        script = SCRIPT % name
        return (
            f'<figure class="ovss-map" id="{name}"><style>{STYLE}</style>{body}'
            f"{_caption(self.caption)}<script>{script}</script></figure>"
        )

    def __repr__(self) -> str:
        layers, heads = self._matrix.shape
        return f"LayerHeadMap({layers} layers, {heads} heads)"

    @property
    def _matrix(self) -> NDArray[np.float64]:
        return np.asarray(self.values, dtype=np.float64)

    def _table(self) -> str:
        layers, heads = self._matrix.shape
        top = "".join(f'<th scope="col">head {head + 1}</th>' for head in range(heads))
        rows = (
            f'<tr><th scope="row">layer {layer + 1}</th>'
            + "".join(self._cell(layer, head) for head in range(heads))
            + "</tr>"
            for layer in range(layers)
        )
        head = f"<thead><tr><td></td>{top}</tr></thead>"
        return f"<table>{head}<tbody>{''.join(rows)}</tbody></table>"

    def _cell(self, layer: int, head: int) -> str:
        value = self._matrix[layer, head]
        colour, text = _colours(value, self._matrix)
        pressed = str((layer, head) == self.start).lower()
        return (
            f'<td><button type="button" aria-pressed="{pressed}" '
            f'style="background:{colour};color:{text}">{value:.{self.digits}f}</button></td>'
        )

    def _panel(self, place: tuple[int, ...]) -> str:
        panel = self.panels[place[0], place[1]]
        lines = "<br>".join(map(escape, panel.lines))
        hidden = "" if place == self.start else " hidden"
        first = {} if self.original is None else {"image": (self.original, "The image itself.")}
        shown = {**first, **{t: (p, f"{t}: {panel.alt}") for t, p in panel.pictures.items()}}
        pictures = "".join(_titled(title, *one) for title, one in shown.items())
        return (
            f'<div class="panel"{hidden}><p>{lines}</p><div class="pictures">{pictures}</div></div>'
        )


def _titled(title: str, picture: Image.Image, alt: str) -> str:
    url = data_url(picture.convert("RGB"), optimize=True)
    return f'<div>{escape(title)}<br><img alt="{escape(alt)}" src="{url}"></div>'


def _caption(text: str) -> str:
    return f"<figcaption><p>{escape(text)}</p></figcaption>" if text else ""


def place_name(layer: int, head: int | None = None) -> str:
    """Name a layer and head, counted from 0 in code, as readers and papers count: from 1."""
    return f"layer {layer + 1}" if head is None else f"layer {layer + 1}, head {head + 1}"


def _colours(value: float, all_values: NDArray[Any]) -> tuple[str, str]:
    """Background and text of a cell; one without a value is grey."""
    if not np.isfinite(value):
        return "#dddddd", "black"
    low, high = np.nanmin(all_values), np.nanmax(all_values)
    share = float((value - low) / (high - low)) if high > low else 0.0
    return to_hex(mpl.colormaps[HEAT](share)), "black" if share > 0.5 else "white"
