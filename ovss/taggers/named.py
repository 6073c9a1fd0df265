"""Taggers by name, as the command line gives them."""

from __future__ import annotations

from ..backbones.clip import ClipBackbone
from ..datasets import Dataset
from ..errors import UnknownNameError
from .base import Oracle, Tagger
from .clip import ClipTagger
from .gpt4o import Gpt4oTagger
from .published import PublishedAnswers

NAMES = ("image", "clip", "gpt-4o", "FILE.json", "FILE.json:first")
FIRST = ":first"  # the data set's first class where an answer leaves none, as in the authors' code
# Not the method's own: the CLIP of PnP-OVSS's section 3.4 in the authors' code.
CLIPS = {"lab": "clip", "smoke": "clip", "paper": "ViT-L-14-336-quickgelu/openai"}


def find_tagger(
    name: str, data: Dataset, profile: str = "lab", device: str | None = None
) -> Tagger:
    """A tagger for a data set.

    Args:
        name: "image" (the ground truth), "clip", "gpt-4o", or a JSON file of answers; behind the
            file's name ":first" takes the data set's first class where an answer leaves none.
        profile: which CLIP.

    Raises:
        UnknownNameError: neither a name nor a file that ends in .json; or no such profile.
    """
    if name == "image":
        return Oracle()
    if name == "clip":
        return ClipTagger(find_clip(profile, device))
    if name == "gpt-4o":
        return Gpt4oTagger()
    path = name.removesuffix(FIRST)
    if path.endswith(".json"):
        first = name != path
        return PublishedAnswers.read(path, data.name, len(data.names), first_if_none=first)
    raise UnknownNameError.of("tagger", name, NAMES)


def find_clip(profile: str = "lab", device: str | None = None) -> ClipBackbone:
    """The CLIP that looks at whole images and masked ones."""
    if profile not in CLIPS:
        raise UnknownNameError.of("profile", profile, CLIPS)
    return ClipBackbone.load(CLIPS[profile], device=device or "cpu")
