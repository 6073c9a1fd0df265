"""One file per paper; here their names, and how `ovss.load` puts them together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from ..backbones.caching import CachedClip
from ..backbones.clip import ClipBackbone
from ..backbones.diffusion import DiffusionBackbone
from ..backbones.dino import DinoBackbone
from ..backbones.itm import ItmBackbone
from ..decide import Argmax, Rule
from ..errors import OvssError, UnknownNameError
from ..refine.compensation import Compensation
from ..refine.crf import DenseCrf
from ..segmenter import Method
from .cliper import Cliper
from .cliper_cached import CachedCliper
from .cliper_configs import CONFIGS, CliperConfig, templates
from .dense_clip import PRESETS, SUMMARIES, DenseClip
from .pnp_configs import CONFIGS as PNP_CONFIGS
from .pnp_configs import solution
from .pnp_ovss import PnpOvss
from .proxyclip import ProxyClip

Loaded = TypeVar("Loaded", ClipBackbone, DinoBackbone, ItmBackbone)
Builder = Callable[..., tuple[Method, Rule]]  # (profile, **options) -> method and decision

# What a profile changes about every method's defaults; the papers' own are in the classes.
PROFILES: dict[str, dict[str, Any]] = {
    "lab": {"clip": "clip", "dino": "dino", "itm": "blip-itm", "short_side": 128, "size": 96},
    "paper": {"clip": "ViT-B-16-quickgelu/openai", "dino": "dino-vitb8", "itm": "blip-itm-large"},
}
PROFILES["smoke"] = PROFILES["lab"]
SHARED = ("device", "dtype", "decision", "dataset")  # options of every method


class NoSettingsError(UnknownNameError):
    """A method has no settings of its own for a benchmark, or none for these weights."""


def build_dense(preset: str, profile: str = "lab", **options: Any) -> tuple[Method, Rule]:
    """CLIP, MaskCLIP, SCLIP, ClearCLIP and the rows of CLIPer's Table 6; argmax decides.

    Args:
        preset: a name of `dense_clip.PRESETS`, whose values `options` override.
        options: the attributes of `DenseClip`; `clip` (name, folder or a `ClipBackbone`),
            `device`, `dtype` and `decision`.
    """
    _check(preset, options, _option_names(DenseClip))
    _check_no_dataset(preset, options)
    values = {**PRESETS[preset], **_profile(profile), **options}
    method = DenseClip(_backbone(values), **_method_options(DenseClip, values), name=preset)
    return method, _decision(options)


def build_cliper(profile: str = "lab", **options: Any) -> tuple[Method, Rule]:
    """CLIPer; argmax decides, or the data set's rule if `dataset` is given.

    Args:
        options: the attributes of `Cliper`; `clip` (name, folder or a `ClipBackbone`), `device`,
            `dtype`, `decision`; and `dataset`, which takes the authors' settings for that
            benchmark (`configs.CONFIGS`). `compensation` may also be a `DiffusionBackbone`, or
            the name or folder of one.
    """
    _check("cliper", options, _option_names(Cliper))
    defaults = _profile(profile)
    backbone = _backbone({**defaults, **options})
    decision: Rule = Argmax()
    if options.get("dataset") is not None:
        config = _config(backbone, options["dataset"], options.get("variant", Cliper.variant))
        defaults, decision = {**defaults, **_settings(config, options)}, config.rule
    values = {**defaults, **options}
    values["compensation"] = _compensation(values)
    kind = CachedCliper if isinstance(backbone, CachedClip) else Cliper
    method = kind(backbone, **_method_options(Cliper, values))
    return method, _decision(options, decision)


def build_proxyclip(profile: str = "lab", **options: Any) -> tuple[Method, Rule]:
    """ProxyCLIP: CLIP's last values mixed by a DINO's affinities; argmax decides.

    Args:
        options: the attributes of `ProxyClip`; `clip` and `dino` (name, folder or a backbone),
            `device`, `dtype` and `decision`.
    """
    _check("proxyclip", options, _option_names(ProxyClip))
    _check_no_dataset("proxyclip", options)
    values = {**_profile(profile), **options}
    values["dino"] = _load(DinoBackbone, "dino", values)
    method = ProxyClip(_backbone(values), **_method_options(ProxyClip, values))
    return method, _decision(options)


def build_pnp(profile: str = "lab", **options: Any) -> tuple[Method, Rule]:
    """PnP-OVSS: an image-text matcher's cross-attention, Salience DropOut, blur and dense CRF.

    Args:
        options: the attributes of `PnpOvss`; `itm` (name, folder or an `ItmBackbone`), `device`,
            `dtype`, `decision`; and `dataset`, which takes the authors' settings for that
            benchmark, or the lab's (`pnp_configs`). `crf` may also be True or False. A network
            that was never searched starts from `pnp_configs.unsearched`.
    """
    _check("pnp-ovss", options, _option_names(PnpOvss), "itm")
    dataset = options.get("dataset")
    if dataset is not None and str(dataset) not in PNP_CONFIGS:
        raise NoSettingsError.of("configuration", dataset, PNP_CONFIGS)
    defaults = _profile(profile)
    source = {**defaults, **options}["itm"]
    backbone = _load(ItmBackbone, "itm", {**defaults, **options})
    settings = {} if dataset is None else PNP_CONFIGS[dataset]
    values = {**defaults, **solution(backbone, source, dataset), **settings, **options}
    if isinstance(values.get("crf"), bool):
        values["crf"] = DenseCrf() if values["crf"] else None
    method = PnpOvss(backbone, **_method_options(PnpOvss, values))
    return method, _decision(options)


def _preset(name: str) -> Builder:
    """The builder of one preset, with its own line of documentation."""
    builder = partial(build_dense, name)
    builder.__doc__ = SUMMARIES[name]
    return builder


METHODS: dict[str, Builder] = {
    **{name: _preset(name) for name in PRESETS},
    "proxyclip": build_proxyclip,
    "cliper": build_cliper,
    "pnp-ovss": build_pnp,
}


def _option_names(method: type) -> tuple[str, ...]:
    return tuple(f.name for f in fields(method) if f.name not in ("backbone", "name"))


def _check(
    method: str, options: Iterable[str], known: Iterable[str], backbone: str = "clip"
) -> None:
    names = (*known, backbone, *SHARED)
    for option in options:
        if option not in names:
            raise UnknownNameError.of(f"option of {method}", option, names)


def _check_no_dataset(method: str, options: Mapping[str, Any]) -> None:
    if options.get("dataset") is not None:
        raise NoSettingsError(
            f"{method} has no settings of its own for a benchmark: leave dataset="
            f"{options['dataset']!r} out"
        )


def _decision(options: Mapping[str, Any], usual: Rule | None = None) -> Rule:
    """The rule that `decision` gives, else the usual one."""
    given = options.get("decision")
    if given is None:
        return usual or Argmax()
    if not callable(given) or isinstance(given, type):
        raise OvssError(f"decision must be a rule such as Threshold(0.4), got {given!r}")
    rule: Rule = given
    return rule


def _profile(profile: str) -> dict[str, Any]:
    if not isinstance(profile, str) or profile not in PROFILES:
        raise UnknownNameError.of("profile", profile, PROFILES)
    return PROFILES[profile]


def _backbone(values: Mapping[str, Any]) -> ClipBackbone:
    """Load what `clip`, `device` and `dtype` say."""
    return _load(ClipBackbone, "clip", values)


def _load(kind: type[Loaded], option: str, values: Mapping[str, Any]) -> Loaded:
    """The backbone that an option holds or names."""
    source = values[option]
    if isinstance(source, kind):
        return source
    if not isinstance(source, str | Path):
        raise OvssError(f"{option} must be a name, a folder or a {kind.__name__}, got {source!r}")
    dtype = _dtype(values.get("dtype", torch.float32))
    return kind.load(source, device=values.get("device", "cpu"), dtype=dtype)


def _compensation(values: Mapping[str, Any]) -> Compensation | None:
    """What `compensation` says; a name or folder is loaded with the CLIP's device and dtype."""
    given = values.get("compensation")
    if given is None or isinstance(given, Compensation):
        return given
    if isinstance(given, DiffusionBackbone):
        return Compensation(given)
    if not isinstance(given, str | Path):
        raise OvssError(f"compensation must be a Compensation, a name or a folder, got {given!r}")
    dtype = _dtype(values["dtype"]) if "dtype" in values else None
    device = values.get("device", "cpu")
    return Compensation(DiffusionBackbone.load(given, device=device, dtype=dtype))


def _dtype(dtype: str | torch.dtype) -> torch.dtype:
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if found not in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        raise UnknownNameError.of("dtype", dtype, ("float32", "float16", "bfloat16", "float64"))
    return found


def _config(backbone: ClipBackbone, dataset: str, variant: str) -> CliperConfig:
    model = {(768, 16): "B/16", (1024, 14): "L/14"}.get((backbone.width, backbone.patch))
    if model is None:
        raise NoSettingsError(
            "the authors have settings only for ViT-B/16 and L/14, not for this CLIP (width "
            f"{backbone.width}, patch {backbone.patch}): leave dataset= out and give short_side=, "
            "logit_scale=, attention_threshold=, templates= and decision=CliperRule(...)"
        )
    key = (model, str(dataset), str(variant))
    if key not in CONFIGS:
        raise NoSettingsError.of("configuration", " ".join(key), map(" ".join, CONFIGS))
    return CONFIGS[key]


def _settings(config: CliperConfig, options: Mapping[str, Any]) -> dict[str, Any]:
    names = ("short_side", "sliding_crop", "select_layer", "logit_scale", "attention_threshold")
    settings = {name: getattr(config, name) for name in names}
    return settings if "templates" in options else {**settings, "templates": config.template}


def _method_options(method: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `values` that the method takes; templates may be a name or any list."""
    chosen = {name: values[name] for name in _option_names(method) if name in values}
    given = chosen.get("templates")
    if given is not None:
        if not isinstance(given, str | Iterable):
            raise OvssError(f"templates must be a name or a list of sentences, got {given!r}")
        chosen["templates"] = templates(given) if isinstance(given, str) else tuple(given)
    return chosen
