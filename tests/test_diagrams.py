"""The drawn methods: every arrow has two ends, and the picture is well-formed."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from ovss.errors import OvssError
from ovss.reporting import diagrams
from ovss.reporting.diagrams import Arrow, Box, Diagram

SVG = "{http://www.w3.org/2000/svg}"


def texts(drawing: Diagram) -> list[str]:
    return [node.text or "" for node in ET.fromstring(drawing._repr_svg_()).iter(f"{SVG}text")]


@pytest.mark.parametrize("made", [diagrams.last_layers, diagrams.cliper, diagrams.pnp_ovss])
def test_diagrams_are_pictures_with_all_their_parts(made: object) -> None:
    drawing = made()  # type: ignore[operator]
    picture = ET.fromstring(drawing._repr_svg_())
    assert picture.find(f"{SVG}title").text == drawing.title  # type: ignore[union-attr]
    paths = [node for node in picture.iter(f"{SVG}path") if "marker-end" in node.attrib]
    assert len(paths) == len(drawing.arrows)
    wanted = {line for box in drawing.boxes for line in box.text.split("\n")}
    assert wanted <= set(texts(drawing))
    width = float(picture.attrib["width"])
    assert all(box.port("r")[0] <= width for box in drawing.boxes)


def test_a_method_that_drops_the_residual_is_drawn_so() -> None:
    kinds = {box.name: box.kind for box in diagrams.last_layers().boxes}
    names = [box.text for box in diagrams.last_layers().boxes if box.kind == "label"]
    for method, kept in (("CLIP", True), ("MaskCLIP", False), ("SCLIP", True), ("CLIPer", False)):
        number = names.index(method)
        assert kinds[f"res{number}"] == ("kept" if kept else "dropped")
    assert kinds["map0"] == "kept" and kinds["map1"] == "changed"


def test_only_the_colours_that_occur_are_explained() -> None:
    one = Diagram("one < two", [Box("a", "a", 0, 0, kind="given"), Box("b", "b & c", 3, 0)])
    assert texts(one) == ["a", "b & c", "given", "trained, as it is"]


def test_an_arrow_needs_both_ends_and_a_box_its_own_name() -> None:
    boxes = [Box("a", "a", 0, 0), Box("b", "b", 3, 0)]
    for wrong in (
        {"boxes": boxes, "arrows": [Arrow("a.r", "c.l")]},
        {"boxes": [*boxes, boxes[0]]},
    ):
        with pytest.raises(OvssError, match="boxes"):
            Diagram("wrong", **wrong)
