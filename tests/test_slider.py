"""A slider's page: every frame is there with its text, with and without scripts."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from ovss.errors import OvssError
from ovss.reporting import figures
from ovss.reporting.slider import Slider

IMAGE = Image.fromarray(np.full((20, 30, 3), 90, dtype=np.uint8))
TAGS = list[tuple[str, dict[str, str | None]]]


def slider(**changed: object) -> Slider:
    options = {
        "frames": [IMAGE, figures.grid([IMAGE], ["a"])],
        "labels": ["first", "last < all"],
        "alts": ['a "grey" square', "the same"],
        "title": "round",
        "caption": "Grey & grey.",
    }
    return Slider(**{**options, **changed})  # type: ignore[arg-type]


def tags(html: str) -> TAGS:
    found: TAGS = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attrs: found.append((tag, dict(attrs)))  # type: ignore[method-assign]
    parser.feed(html)
    return found


def test_each_frame_is_a_picture_with_its_text() -> None:
    images = [attributes for tag, attributes in tags(slider()._repr_html_()) if tag == "img"]
    assert [one["alt"] for one in images] == ['a "grey" square', "the same"]
    for one in images:
        head, data = str(one["src"]).split(",")
        assert head == "data:image/png;base64"
        assert Image.open(BytesIO(base64.b64decode(data))).format == "PNG"


def test_without_scripts_the_frames_are_shown_and_the_slider_is_not() -> None:
    hidden = [tag for tag, attributes in tags(slider()._repr_html_()) if "hidden" in attributes]
    assert hidden == ["label"]


def test_the_slider_reaches_every_frame() -> None:
    found = next(a for tag, a in tags(slider()._repr_html_()) if tag == "input")
    assert (found["type"], found["min"], found["max"], found["value"]) == ("range", "0", "1", "0")


def test_two_sliders_on_a_page_do_not_mix() -> None:
    one = slider()._repr_html_()
    other = slider(frames=[IMAGE, IMAGE.rotate(90, expand=True)])._repr_html_()
    first, second = (re.findall(r"slider-\w+", html) for html in (one, other))
    assert len(set(first)) == len(set(second)) == 1 and first[0] != second[0]
    assert one == slider()._repr_html_()  # and a page does not change from build to build


def test_text_is_escaped() -> None:
    html = slider()._repr_html_()
    assert "last &lt; all" in html and "Grey &amp; grey." in html


def test_a_page_may_write_the_caption_itself() -> None:
    assert "figcaption" not in slider(caption="")._repr_html_()


@pytest.mark.parametrize(
    "wrong", [{"labels": ["one"]}, {"frames": []}, {"alts": ["one", " "]}], ids=str
)
def test_a_frame_without_its_text_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(OvssError, match="alt"):
        slider(**wrong)
