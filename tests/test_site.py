"""The built site: nothing from other hosts, nothing of this machine, no broken link, alt texts.

`make test` builds it first. By hand: `make site PROFILE=smoke`, then `pytest -m site`.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.site

Attributes = dict[str, str]
LOADING_LINKS = {"stylesheet", "icon", "shortcut", "preload", "prefetch", "preconnect", "manifest"}
LOADING_ATTRIBUTES = {
    "a": (),
    "link": ("href",),
    "object": ("data",),
    "video": ("src", "poster"),
}
SECRETS = r"\b(hf_[A-Za-z0-9]{20,}|gh[pousr]_\w{20,}|sk-[\w-]{20,}|AKIA[0-9A-Z]{16}|xox[abp]-\w+)"
PATHS = r"(?<![\w.:/~-])/(home|root|Users|tmp|work|workspace|mnt|opt|var|private)/[\w.-]+"


@dataclass
class Page(HTMLParser):
    """The tags of an HTML file, and the text of its inline scripts and styles."""

    path: Path
    tags: list[tuple[str, Attributes]] = field(default_factory=list)
    inline: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._inside = ""
        self.feed(self.path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside in ("script", "style"):
            self.inline.append(data)

    @property
    def anchors(self) -> set[str]:
        return {tag[1][name] for tag in self.tags for name in ("id", "name") if name in tag[1]}

    def loaded(self) -> Iterator[str]:
        """What a browser fetches to show the page."""
        for tag, attributes in self.tags:
            if tag == "link" and not LOADING_LINKS & set(attributes.get("rel", "").split()):
                continue
            yield from (part.split()[0] for part in attributes.get("srcset", "").split(",") if part)
            for name in LOADING_ATTRIBUTES.get(tag, ("src",)):
                if attributes.get(name):
                    yield attributes[name]


def site() -> Path:
    return ROOT / os.environ.get("OVSS_SITE", "build/smoke/site/_build/html")


@cache
def page(path: Path) -> Page:
    return Page(path)


@pytest.fixture(scope="module")
def pages() -> list[Page]:
    if not (site() / "index.html").is_file():
        place = site().relative_to(ROOT)
        pytest.fail(f"no site at {place}: build it with `make site PROFILE=smoke`")
    return [page(path) for path in sorted(site().rglob("*.html")) if "_static" not in path.parts]


def named(path: Path) -> str:
    return path.relative_to(site()).as_posix()


def is_external(url: str) -> bool:
    return url.startswith("//") or urlsplit(url).scheme in ("http", "https", "ftp")


def test_every_page_of_the_contents_is_there(pages: list[Page]) -> None:
    contents = (ROOT / "_toc.yml").read_text(encoding="utf-8")
    wanted = re.findall(r"(?:file|root): (\S+)", contents)
    assert len(wanted) > 10
    missing = [name for name in wanted if not (site() / f"{name}.html").is_file()]
    assert not missing


def test_nothing_is_loaded_from_another_host(pages: list[Page]) -> None:
    found = [(named(p.path), url) for p in pages for url in p.loaded() if is_external(url)]
    assert not found


def test_inline_scripts_and_styles_name_no_host(pages: list[Page]) -> None:
    hosts = re.compile(r"(?:https?:)?//(?!www\.w3\.org)[\w-]+\.[a-z]{2,}")
    found = [
        (named(p.path), hit[0]) for p in pages for text in p.inline for hit in hosts.finditer(text)
    ]
    assert not found


def test_style_sheets_load_nothing_from_another_host(pages: list[Page]) -> None:
    pattern = re.compile(r"(?:url\(|@import)\s*[\"']?\s*(?:https?:)?//[^)\s]+")
    sheets = sorted(site().rglob("*.css"))
    assert sheets
    found = [
        (named(path), hit) for path in sheets for hit in pattern.findall(path.read_text("utf-8"))
    ]
    assert not found


def test_pages_open_from_the_disk(pages: list[Page]) -> None:
    """Links from the root of a server, such as "/_static/x.js", would not."""
    links = [
        (named(p.path), attributes[name])
        for p in pages
        for _, attributes in p.tags
        for name in ("href", "src")
        if re.match(r"/(?!/)", attributes.get(name, ""))
    ]
    assert not links


def test_formulas_are_drawn_by_the_sites_own_script(pages: list[Page]) -> None:
    scripts = [url for p in pages for tag, a in p.tags if tag == "script" and (url := a.get("src"))]
    drawn = {url.split("?")[0].rpartition("/")[2] for url in scripts if "mathjax" in url}
    assert drawn == {"tex-svg.js"}
    assert (site() / "mathjax" / "tex-svg.js").is_file()


def test_links_within_the_site_lead_somewhere(pages: list[Page]) -> None:
    broken = []
    for p in pages:
        urls = [a["href"] for tag, a in p.tags if tag in ("a", "link") and a.get("href")]
        for url in {*urls, *p.loaded()}:
            if not is_external(url) and not leads_somewhere(p, url):
                broken.append((named(p.path), url))
    assert not broken


def leads_somewhere(origin: Page, url: str) -> bool:
    parts = urlsplit(url)
    if parts.scheme in ("data", "mailto", "javascript"):
        return True
    target = (origin.path.parent / unquote(parts.path)).resolve() if parts.path else origin.path
    if not target.is_file():
        return False
    fragment = unquote(parts.fragment)
    return not fragment or target.suffix != ".html" or fragment in page(target).anchors


def test_images_have_alternative_text(pages: list[Page]) -> None:
    """A bare file name is what is put there when a notebook's cell says nothing."""
    images = [(named(p.path), a) for p in pages for tag, a in p.tags if tag == "img"]
    assert images
    empty = re.compile(r"\s*$|\S+\.(png|svg|jpe?g|gif)$")
    assert not [(name, a.get("src")) for name, a in images if empty.match(a.get("alt", ""))]


def published_text() -> Iterator[tuple[str, str]]:
    """Every text file of the site that was made from ours: pages, sources, search index."""
    for path in sorted(site().rglob("*")):
        ours = path.suffix in (".html", ".md", ".ipynb", ".txt") or path.name == "searchindex.js"
        if ours and not {"_static", "mathjax"} & set(path.parts):
            yield named(path), path.read_text(encoding="utf-8")


@pytest.mark.parametrize("pattern", [PATHS, SECRETS], ids=["paths", "secrets"])
def test_pages_show_no_paths_or_secrets(pages: list[Page], pattern: str) -> None:
    found = [
        (name, hit[0]) for name, text in published_text() for hit in re.finditer(pattern, text)
    ]
    assert not found


def test_pages_show_nothing_of_this_machine(pages: list[Page]) -> None:
    own = {str(ROOT), str(Path.home())} - {"/", "/root"}
    if len(socket.gethostname()) >= 8:  # a shorter one may be an ordinary word
        own.add(socket.gethostname())
    assert not [(name, word) for name, text in published_text() for word in own if word in text]


def test_no_page_shows_a_warning(pages: list[Page]) -> None:
    pattern = re.compile(r"\w*(?:Future|Deprecation|User|Runtime)Warning\b")
    found = [(name, hit[0]) for name, text in published_text() for hit in pattern.finditer(text)]
    assert not found


def test_pages_have_titles_language_and_a_switch_for_the_dark(pages: list[Page]) -> None:
    for p in pages:
        tags = [tag for tag, _ in p.tags]
        assert "title" in tags, named(p.path)
        assert next(a for tag, a in p.tags if tag == "html").get("lang") == "en", named(p.path)
        assert any("theme-switch-button" in a.get("class", "") for _, a in p.tags), named(p.path)


def test_the_search_knows_every_page(pages: list[Page]) -> None:
    index = (site() / "searchindex.js").read_text(encoding="utf-8")
    contents = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    assert f'"{contents["root"]}"' in index
    assert '"0-lab/scoring"' in index


def test_formulas_cost_only_the_pages_that_have_them(pages: list[Page]) -> None:
    for p in pages:
        text = p.path.read_text(encoding="utf-8")
        drawn = any("tex-svg.js" in a.get("src", "") for tag, a in p.tags if tag == "script")
        formulas = 'class="math notranslate' in text
        assert drawn == formulas, named(p.path)


def test_no_id_stands_twice_on_a_page(pages: list[Page]) -> None:
    for p in pages:
        ids = [a["id"] for _, a in p.tags if a.get("id")]
        assert not [name for name in set(ids) if ids.count(name) > 1], named(p.path)


def test_pages_say_what_they_are_about(pages: list[Page]) -> None:
    contents = (ROOT / "_toc.yml").read_text(encoding="utf-8")
    for name in re.findall(r"(?:file|root): (\S+)", contents):
        tags = page(site() / f"{name}.html").tags
        found = [a.get("content", "") for tag, a in tags if a.get("name") == "description"]
        assert len(found) == 1 and len(found[0]) > 20, name


def test_the_theme_knows_its_mode(pages: list[Page]) -> None:
    assert all(
        next(a for tag, a in p.tags if tag == "body").get("data-default-mode") for p in pages
    )


def test_tables_of_results_have_captions_numbers_and_headings(pages: list[Page]) -> None:
    """Every table that `ovss.reporting.tables` makes is one that Sphinx knows."""
    found = 0
    for p in pages:
        text = p.path.read_text(encoding="utf-8")
        for one in re.findall(r'<table class="results.*?</table>', text, flags=re.S):
            found += 1
            assert re.search(r'<table class="results[^"]*" id="tab-', one), named(p.path)
            assert 'class="caption-number">Table ' in one and "<thead>" in one, named(p.path)
        assert "{list-table}" not in text, named(p.path)
    assert found > 40


def test_screen_readers_are_told_nothing_wrong(pages: list[Page]) -> None:
    for p in pages:
        roles = {a.get("role", "") for _, a in p.tags}
        assert "doc-biblioentry" not in roles, named(p.path)
        labels = [a.get("aria-label") for tag, a in p.tags if tag == "summary"]
        assert "Toggle hidden content" not in labels, named(p.path)


def test_references_link_to_what_they_name(pages: list[Page]) -> None:
    text = (site() / "appendix" / "references.html").read_text(encoding="utf-8")
    entries = re.findall(r'<div class="citation".*?</div>', text, flags=re.S)
    assert len(entries) == (ROOT / "book" / "references.bib").read_text("utf-8").count("\n@")
    assert all('href="https://' in one for one in entries)
