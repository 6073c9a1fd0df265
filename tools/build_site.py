"""Build the site of a profile from its executed notebooks: stage the pages, run jupyter-book.

usage: build_site.py PROFILE

The site is built beside the old one and takes its place when it is whole. Built anew each time,
because Sphinx forgets the warnings of pages that it does not read again. One build at a time.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import stage
from filelock import FileLock


def main(profile: str) -> int:
    build = Path("build", profile)
    site, new = build / "site", build / "site.new"
    with FileLock(build / "site.lock"):
        stage.main(profile)
        shutil.rmtree(new, ignore_errors=True)
        options = ["-q", "-n", "-W", "--keep-going", "--path-output", str(new), str(build / "book")]
        status = subprocess.run(["jupyter-book", "build", *options]).returncode
        if status or not (new / "_build" / "html" / "index.html").is_file():
            return status or 1
        shutil.rmtree(site, ignore_errors=True)
        new.rename(site)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
