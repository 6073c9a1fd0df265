"""Sphinx extension: leave out what jupyter-book adds for live code (it would ask other hosts)."""

from __future__ import annotations

from sphinx.application import Sphinx
from sphinx.config import Config

UNWANTED = ("sphinx_thebe", "sphinx_comments")


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("config-inited", disconnect, priority=0)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def disconnect(app: Sphinx, config: Config) -> None:
    """Undo what the unwanted extensions have asked for, before anything of it is done."""
    listeners = [listener for event in app.events.listeners.values() for listener in event]
    for listener in listeners:
        if listener.handler.__module__.split(".")[0] in UNWANTED:
            app.disconnect(listener.id)
    sheets = app.registry.css_files
    sheets[:] = [sheet for sheet in sheets if sheet[0] != "sphinx-thebe.css"]
