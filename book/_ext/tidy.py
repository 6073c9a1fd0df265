"""Sphinx extension: what the theme and the extensions leave to be mended on every page.

Scripts for formulas on pages that have formulas; no id twice on a page; roles that screen readers
know; a description for search engines; the package's version at the foot of the page.
"""

from __future__ import annotations

import subprocess
from html import escape
from importlib.metadata import version
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.config import Config

TWICE = {"exercise-content", "solution-content"}  # ids that sphinx_exercise gives to each
ROLES = {  # what is written -> what is meant
    'role="list" class="citation-list"': 'class="citation-list"',
    ' role="doc-biblioentry"': "",
    ' aria-label="Toggle hidden content"': "",  # the label that is seen says more
}
LONGEST = 200  # characters of a description


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("config-inited", sign)
    app.connect("env-updated", load_scripts_where_needed)
    app.connect("doctree-resolved", give_each_id_once)
    app.connect("html-page-context", describe)
    app.connect("build-finished", mend_roles)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def sign(app: Sphinx, config: Config) -> None:
    """Put version and date of the sources at the foot of every page."""
    asked = ["git", "log", "-1", "--format=%cs"]
    found = subprocess.run(asked, cwd=app.srcdir, capture_output=True, text=True, check=False)
    date = f", sources of {found.stdout.strip()}" if found.stdout.strip() else ""
    options = config.html_theme_options
    footer = options.get("extra_footer", "")
    options["extra_footer"] = f"{footer}<p>{config.author}, version {version('ovss')}{date}.</p>"


def load_scripts_where_needed(app: Sphinx, env: Any) -> None:
    """Pages without formulas do without the script that draws them (2 MB).

    Sphinx also gives it to the pages whose contents list one with formulas.
    """
    app.set_html_assets_policy("per_page")
    domain = env.get_domain("math")
    known = domain.data["has_equations"]
    domain.has_equations = lambda page=None: known.get(page, False)


def give_each_id_once(app: Sphinx, tree: nodes.document, page: str) -> None:
    for section in tree.findall(nodes.section):
        section["ids"] = [name for name in section["ids"] if name not in TWICE]


def describe(app: Sphinx, page: str, template: str, context: dict[str, Any], tree: Any) -> None:
    """The first paragraph of a page as its description."""
    first = next(tree.findall(nodes.paragraph), None) if tree else None
    if first is not None:
        text = " ".join(first.astext().split())
        short = text if len(text) <= LONGEST else text[:LONGEST].rpartition(" ")[0] + " …"
        tag = f'<meta name="description" content="{escape(short)}">'
        context["metatags"] = context.get("metatags", "") + tag


def mend_roles(app: Sphinx, error: Exception | None) -> None:
    if error is None and app.builder.format == "html":
        for path in sorted(Path(app.outdir).rglob("*.html")):
            old = new = path.read_text(encoding="utf-8")
            for written, meant in ROLES.items():
                new = new.replace(written, meant)
            if new != old:
                path.write_text(new, encoding="utf-8")
