"""A small random latent diffusion model: the golden one with a latent of 8 x 8 positions."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

GOLDEN = Path(__file__).parent / "golden" / "cliper" / "sd_dev"


def save_diffusion(folder: Path, side: int = 8) -> Path:
    """Write it to `folder`; its images are 8 * `side` pixels wide."""
    shutil.copytree(GOLDEN, folder)
    config = folder / "unet" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "sample_size": side}))
    return folder
