"""Diagrams of the methods as SVG: boxes in columns and arrows between them.

A diagram is a list of boxes with places on a grid and a list of arrows that name them, so that a
method's drawing reads like its data flow. Notebooks and the book's pages show it as a picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Literal

from ..errors import OvssError

Kind = Literal["given", "frozen", "kept", "changed", "dropped", "found", "label"]
COLOURS: Mapping[Kind, tuple[str, str, str]] = {  # fill, line, text
    "given": ("#ffffff", "#444444", "#000000"),  # image, words
    "frozen": ("#e8e8e8", "#777777", "#000000"),  # a trained part, used as it is
    "kept": ("#dcebf7", "#0072b2", "#000000"),  # what a method leaves
    "changed": ("#fbe3d3", "#d55e00", "#000000"),  # what a method puts there
    "dropped": ("#ffffff", "#bbbbbb", "#999999"),  # what a method leaves out
    "found": ("#d9f0e7", "#009e73", "#000000"),  # scores and labels
    "label": ("none", "none", "#444444"),  # text alone
}
MEANING: Mapping[Kind, str] = {
    "given": "given", "frozen": "trained, as it is", "kept": "kept", "changed": "changed",
    "dropped": "left out", "found": "result",
}  # fmt: skip
CELL = 60, 24  # pixels of one column and one row of the grid
MARGIN = 8


@dataclass(frozen=True)
class Box:
    """A part of a method.

    Attributes:
        name: by which arrows know it.
        text: its lines.
        column: its left edge on the grid.
        row: its upper edge.
        width: in columns.
        height: in rows.
        kind: what it is, which decides its colours.
    """

    name: str
    text: str
    column: float
    row: float
    width: float = 2
    height: float = 1.5
    kind: Kind = "frozen"

    def port(self, side: str) -> tuple[float, float]:
        """Where an arrow meets the box: the middle of its side (l, r, t, b), in pixels."""
        x, y = MARGIN + self.column * CELL[0], MARGIN + self.row * CELL[1]
        width, height = self.width * CELL[0], self.height * CELL[1]
        across = {"l": 0.0, "r": 1.0}.get(side, 0.5)
        down = {"t": 0.0, "b": 1.0}.get(side, 0.5)
        return x + across * width, y + down * height


@dataclass(frozen=True)
class Arrow:
    """From one box to another.

    Attributes:
        start: name and side of a box, such as "image.r".
        end: likewise; the head is there.
        label: a few words above its middle.
        kind: its colour.
        bend: turn once, going "across" first or "down" first; straight by default.
    """

    start: str
    end: str
    label: str = ""
    kind: Kind = "given"
    bend: Literal["", "across", "down"] = ""


@dataclass(frozen=True, repr=False)
class Diagram:
    """Boxes and arrows, shown as a picture.

    Attributes:
        title: read out where the picture is not seen.
        boxes: the parts.
        arrows: what flows between them.
    """

    title: str
    boxes: Sequence[Box]
    arrows: Sequence[Arrow] = field(default_factory=tuple)

    def __post_init__(self) -> None:
        names = [box.name for box in self.boxes]
        ends = {end.partition(".")[0] for one in self.arrows for end in (one.start, one.end)}
        if len(set(names)) < len(names) or ends - set(names):
            raise OvssError(f"diagram {self.title!r}: boxes {names}, but arrows to {sorted(ends)}")

    def __repr__(self) -> str:
        return f"Diagram({self.title!r})"

    def _repr_svg_(self) -> str:
        """Draw it, with a legend of the colours that occur."""
        kinds = [kind for kind in MEANING if any(box.kind == kind for box in self.boxes)]
        right = max(box.port("r")[0] for box in self.boxes) + MARGIN
        bottom = max(box.port("b")[1] for box in self.boxes) + MARGIN
        width, height = max(right, 125 * len(kinds)), bottom + 24
        parts = [_arrow(arrow, {box.name: box for box in self.boxes}) for arrow in self.arrows]
        parts += [_box(box) for box in self.boxes]
        parts += [_key(kind, MARGIN + 125 * i, bottom + 4) for i, kind in enumerate(kinds)]
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" role="img" viewBox="0 0 {width:.0f} '
            f'{height:.0f}" width="{width:.0f}" height="{height:.0f}" '
            'font-family="sans-serif" font-size="11">'
            f"<title>{escape(self.title)}</title>{_heads()}{''.join(parts)}</svg>"
        )


def last_layers() -> Diagram:
    """Draw what six methods make of CLIP's last block, side by side (CLIPer, Figure 1)."""
    attention = {
        "CLIP": "softmax(q kᵀ)",
        "MaskCLIP": "identity",
        "SCLIP": "softmax(q qᵀ)\n+ softmax(k kᵀ)",
        "ClearCLIP": "softmax(q qᵀ)",
        "ProxyCLIP": "similarity of\nDINO's patches",
        "CLIPer": "fused from all\nearlier blocks",
    }
    keeps_rest = ("CLIP", "SCLIP")
    boxes, arrows = [], []
    for number, (method, map_) in enumerate(attention.items()):
        boxes += _last_layer(number, method, map_, method in keeps_rest)
        arrows += _last_layer_arrows(number, method in keeps_rest)
    return Diagram("the last block of CLIP in six methods", boxes, arrows)


def cliper() -> Diagram:
    """Draw CLIPer: early-layer fusion, then fine-grained compensation (CLIPer, Figure 4)."""
    boxes = [
        Box("elf", "early-layer fusion", 3.6, 0, 4.6, 1, "label"),
        Box("image", "image", 0, 3.5, 1.1, 1.5, "given"),
        Box("blocks", "CLIP's blocks\n1 … N − 1", 1.6, 3.25, 1.8, 2),
        Box("F", "embeddings\nF¹ … Fᴺ⁻¹", 3.9, 1.5, 1.8, 2, "kept"),
        Box("A", "attention maps\nA¹ … Aᴺ⁻¹", 3.9, 5, 1.8, 2, "kept"),
        Box("fused", "fused attention\n(Eq. 8)", 6.2, 5, 1.8, 2, "changed"),
        Box(
            "last", "last block:\nvalues only,\nno residual, no FFN", 8.5, 2.9, 2.2, 2.7, "changed"
        ),
        Box("words", "words", 0, 8.25, 1.1, 1.5, "given"),
        Box("text", "CLIP's text\nencoder", 1.6, 8, 1.8, 2),
        Box("cosine", "similarity,\naveraged over layers", 8.5, 8, 2.2, 2, "changed"),
        Box("coarse", "coarse maps\n(CLIPer*)", 11.2, 8, 1.7, 2, "found"),
        Box("fgc", "fine-grained compensation", 3.6, 11, 4.6, 1, "label"),
        Box("again", "image", 0, 13.25, 1.1, 1.5, "given"),
        Box("sd", "Stable Diffusion,\nempty caption,\nlittle noise", 1.6, 12.65, 1.8, 2.7),
        Box("heads", "self-attention,\nfinest layers", 3.9, 13, 1.8, 2, "kept"),
        Box("product", "product of all\nheads (Eq. 9)", 6.2, 13, 1.8, 2, "changed"),
        Box("fine", "fine maps: product ×\ncoarse (Eq. 10)", 8.5, 13, 2.2, 2, "found"),
        Box("labels", "labels", 11.2, 13.25, 1.7, 1.5, "found"),
    ]
    arrows = [
        Arrow("image.r", "blocks.l"), Arrow("blocks.r", "F.l"), Arrow("blocks.r", "A.l"),
        Arrow("A.r", "fused.l"), Arrow("F.r", "last.l"), Arrow("fused.r", "last.l"),
        Arrow("last.b", "cosine.t"), Arrow("words.r", "text.l"), Arrow("text.r", "cosine.l"),
        Arrow("cosine.r", "coarse.l"), Arrow("coarse.b", "fine.t"), Arrow("again.r", "sd.l"),
        Arrow("sd.r", "heads.l"), Arrow("heads.r", "product.l"), Arrow("product.r", "fine.l"),
        Arrow("fine.r", "labels.l"),
    ]  # fmt: skip
    return Diagram("CLIPer: early-layer fusion, then fine-grained compensation", boxes, arrows)


def pnp_ovss() -> Diagram:
    """Draw PnP-OVSS: GradCAM of one head, Salience DropOut, blur and CRF (PnP-OVSS, Figure 3)."""
    boxes = [
        Box("words", "“A picture of\ncat dog”", 0, 0, 2, 2, "given"),
        Box("image", "image", 0, 4.25, 1.1, 1.5, "given"),
        Box("encoder", "image encoder", 1.7, 4, 2, 2),
        Box("text", "text encoder with\ncross-attention\nto the patches", 4.3, 3.65, 2.2, 2.7),
        Box("head", "matching head:\nmatch, no match", 7.1, 4, 2.1, 2),
        Box("attention", "attention A of one\nlayer and head", 4.3, 7.6, 2.2, 2, "kept"),
        Box("gradient", "gradient of the\nmatch: ∂y/∂A", 7.1, 7.6, 2.1, 2, "kept"),
        Box("gradcam", "A × max(0, ∂y/∂A)\n(Eq. 1)", 4.3, 11, 2.2, 2, "changed"),
        Box(
            "select",
            "drop the 10 most\nsalient patches, in\n3 rounds (Eq. 2–5)",
            1.7,
            10.85,
            2,
            2.3,
            "changed",
        ),
        Box("sum", "sum over\nthe passes", 7.1, 11, 2.1, 2, "changed"),
        Box("threshold", "threshold", 9.9, 11.25, 1.9, 1.5, "changed"),
        Box("blur", "Gaussian blur", 9.9, 8.5, 1.9, 1.5, "changed"),
        Box("crf", "dense CRF", 9.9, 5.75, 1.9, 1.5, "changed"),
        Box("labels", "labels", 9.9, 3, 1.9, 1.5, "found"),
    ]
    arrows = [
        Arrow("words.r", "text.t", bend="across"), Arrow("image.r", "encoder.l"),
        Arrow("encoder.r", "text.l"), Arrow("text.r", "head.l"), Arrow("text.b", "attention.t"),
        Arrow("head.b", "gradient.t"), Arrow("attention.b", "gradcam.t"),
        Arrow("gradient.b", "gradcam.t"), Arrow("gradcam.l", "select.r"),
        Arrow("select.l", "image.b", bend="across"), Arrow("gradcam.r", "sum.l"),
        Arrow("sum.r", "threshold.l"), Arrow("threshold.t", "blur.b"), Arrow("blur.t", "crf.b"),
        Arrow("crf.t", "labels.b"),
    ]  # fmt: skip
    return Diagram("PnP-OVSS: GradCAM, Salience DropOut, then blur and CRF", boxes, arrows)


def _last_layer(number: int, method: str, attention: str, rest: bool) -> list[Box]:
    """One method's last block as a column of boxes, from the top down."""
    x = 2.15 * number
    own: Kind = "kept" if method == "CLIP" else "changed"
    tail: Kind = "kept" if rest else "dropped"
    return [
        Box(f"name{number}", method, x, 0, 2, 1, "label"),
        Box(f"in{number}", "input of the block", x, 1, 2, 1.2),
        Box(f"map{number}", attention, x, 3, 2, 2, own),
        Box(f"v{number}", "× values", x, 5.8, 2, 1.2, "kept"),
        Box(f"res{number}", "+ residual", x, 7.8, 2, 1.2, tail),
        Box(f"ffn{number}", "feed-forward", x, 9.8, 2, 1.2, tail),
        Box(f"out{number}", "similarity with words", x, 11.8, 2, 1.2, "found"),
    ]


def _last_layer_arrows(number: int, rest: bool) -> list[Arrow]:
    kind: Kind = "given" if rest else "dropped"
    steps = ["in", "map", "v", "res", "ffn", "out"]
    kinds: list[Kind] = ["given", "given", kind, kind, kind]
    return [
        Arrow(f"{a}{number}.b", f"{b}{number}.t", kind=one)
        for a, b, one in zip(steps, steps[1:], kinds, strict=False)
    ]


def _box(box: Box) -> str:
    fill, line, ink = COLOURS[box.kind]
    x, y = box.port("l")[0], box.port("t")[1]
    width, height = box.width * CELL[0], box.height * CELL[1]
    dash = ' stroke-dasharray="4 3"' if box.kind == "dropped" else ""
    lines = box.text.split("\n")
    top = y + height / 2 - 7 * (len(lines) - 1) + 4
    weight = ' font-weight="bold"' if box.kind == "label" else ""
    text = "".join(
        f'<text x="{x + width / 2:.1f}" y="{top + 14 * i:.1f}" text-anchor="middle" '
        f'fill="{ink}"{weight}>{escape(one)}</text>'
        for i, one in enumerate(lines)
    )
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="4" '
        f'fill="{fill}" stroke="{line}"{dash}/>{text}'
    )


def _arrow(arrow: Arrow, boxes: Mapping[str, Box]) -> str:
    ends = []
    for end in (arrow.start, arrow.end):
        name, _, side = end.partition(".")
        ends.append(boxes[name].port(side))
    (x, y), (u, v) = ends
    turn = {"across": f"H {u:.1f}", "down": f"V {v:.1f}"}.get(arrow.bend, "")
    colour = "#bbbbbb" if arrow.kind == "dropped" else "#444444"
    head = "faint" if arrow.kind == "dropped" else "dark"
    label = (
        f'<text x="{(x + u) / 2:.1f}" y="{(y + v) / 2 - 4:.1f}" text-anchor="middle" '
        f'fill="#444444">{escape(arrow.label)}</text>'
        if arrow.label
        else ""
    )
    return (
        f'<path d="M {x:.1f} {y:.1f} {turn} L {u:.1f} {v:.1f}" fill="none" stroke="{colour}" '
        f'marker-end="url(#{head})"/>{label}'
    )


def _heads() -> str:
    return (
        "<defs>"
        + "".join(
            f'<marker id="{name}" viewBox="0 0 8 8" refX="7" refY="4" orient="auto" '
            f'markerWidth="7" markerHeight="7">'
            f'<path d="M 0 0 L 8 4 L 0 8 z" fill="{colour}"/></marker>'
            for name, colour in (("dark", "#444444"), ("faint", "#bbbbbb"))
        )
        + "</defs>"
    )


def _key(kind: Kind, x: float, y: float) -> str:
    fill, line, _ = COLOURS[kind]
    dash = ' stroke-dasharray="4 3"' if kind == "dropped" else ""
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="14" height="12" rx="2" fill="{fill}" '
        f'stroke="{line}"{dash}/><text x="{x + 19:.1f}" y="{y + 10:.1f}">{MEANING[kind]}</text>'
    )
