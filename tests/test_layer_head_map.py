"""The map of layers and heads on a page: everything in it, nothing from elsewhere."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ovss import OvssError
from ovss.reporting.layer_head_map import LayerHeadMap, Panel, place_name

VALUES = np.array([[1.0, 25.25], [math.nan, 50.0]])


def panels() -> dict[tuple[int, int], Panel]:
    picture = Image.new("RGB", (8, 4), (200, 20, 20))
    return {
        (layer, head): Panel(
            (f"{layer} < {head}",), {"cat": picture, "a & b": picture}, f"masks of {layer}, {head}"
        )
        for layer, head in np.ndindex(2, 2)
    }


def made(**changes: Any) -> LayerHeadMap:
    options: dict[str, Any] = {"values": VALUES, "panels": panels(), "start": (0, 1)}
    return LayerHeadMap(**options | {"caption": 'mIoU of "heads"'} | changes)


def test_every_cell_has_a_button_and_a_panel() -> None:
    html = made()._repr_html_()
    assert re.findall(r">([\d.na]+)</button>", html) == ["1.0", "25.2", "nan", "50.0"]
    assert html.count('class="panel"') == html.count("data:image/png;base64,") / 2 == 4
    pressed = re.findall(r'aria-pressed="(true|false)" style', html)
    assert pressed == ["false", "true", "false", "false"]
    assert html.count(" hidden>") == 3 and "0 &lt; 1" in html and "&quot;heads&quot;" in html
    assert "http" not in html


def test_two_maps_on_a_page_do_not_meet_and_one_stays_itself() -> None:
    names = [re.search(r'id="([\w-]+)"', one._repr_html_()) for one in (made(), made(digits=2))]
    assert names[0] and names[1] and names[0][1] != names[1][1]
    assert made()._repr_html_() == made()._repr_html_()
    assert repr(made()) == "LayerHeadMap(2 layers, 2 heads)"


def test_each_picture_is_named_and_the_image_stands_beside_it() -> None:
    html = made(original=Image.new("RGB", (8, 8)))._repr_html_()
    assert html.count('alt="cat: masks of') == html.count("a &amp; b<br>") == 4
    assert html.count("<div>image<br>") == html.count('alt="The image itself."') == 4
    assert "border: 1px solid" in html and "justify-content: center" in html


def test_a_page_may_write_the_caption_itself() -> None:
    assert (
        "figcaption" in made()._repr_html_() and "figcaption" not in made(caption="")._repr_html_()
    )


def test_equal_values_have_a_colour() -> None:
    assert "background:#" in made(values=np.ones((2, 2)))._repr_html_()


def test_panels_must_fit() -> None:
    with pytest.raises(OvssError, match="one panel"):
        made(values=np.ones((3, 2)))
    with pytest.raises(OvssError, match="one panel"):
        made(start=(2, 0))
    with pytest.raises(OvssError, match="picture"):
        made(panels={**panels(), (0, 0): Panel(("none",), {}, "nothing")})


def test_readers_count_layers_and_heads_from_one() -> None:
    assert place_name(2, 3) == "layer 3, head 4" and place_name(0) == "layer 1"
    assert place_name(2, 0) == "layer 3, head 1"
