"""The command line: `ovss segment`, `ovss evaluate`, `ovss search`, `ovss list`.

Torch and the networks' libraries are imported within the commands: what needs none of them (a
usage error, `--version`) answers at once, and an interrupt while they load ends in one line.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import hashlib
import io
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from . import __version__
from .errors import LONGEST, MissingLibraryError, OvssError, printable, shorten
from .files import atomic, check_destination, expand, read_lines
from .paths import FROM_THE_REPOSITORY, data

LISTS = ("methods", "datasets", "checkpoints")
MODEL = (
    "device", "clip", "dino", "compensation", "itm", "crf", "variant", "dtype", "templates",
)  # fmt: skip
DATASET_HELP = "a name of `ovss list datasets`"
LAB_NOTE = (
    "ovss: note: the miniature models know only the lab's drawn world; for photographs give "
    "--profile paper (it downloads the published checkpoints), to be rid of this line --profile lab"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; 0 = done, 2 = an error that one line on stderr explains, 130 = interrupted."""
    _prepare_streams()
    try:
        options = _parser().parse_args(arguments)
        options.run(options)
        sys.stdout.flush()
    except OvssError as error:
        return _fail(str(error))
    except ModuleNotFoundError as error:
        return _fail(str(MissingLibraryError.of(error)))
    except BrokenPipeError:  # the reader (`| head`) has seen enough
        _drop_output()
    except OSError as error:
        _drop_output()
        return _fail(_explain(error))
    except (RuntimeError, MemoryError) as error:
        from .backbones.devices import explain_out_of_memory, is_out_of_memory

        if not is_out_of_memory(error):
            raise
        return _fail(explain_out_of_memory(error))
    except KeyboardInterrupt:
        print("ovss: interrupted", file=sys.stderr)
        return 130
    return 0


def _prepare_streams() -> None:
    """Output that a terminal cannot show is escaped; output that nobody reads is dropped."""
    if sys.stdout is None:  # closed by the caller (`>&-`)
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for as long as the program runs
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _drop_output() -> None:
    """What could not be printed is not tried again when the interpreter ends."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one printable line, as all others are."""

    def error(self, message: str) -> NoReturn:
        text = shorten(" ".join(message.split("\n")), LONGEST)
        self.exit(2, f"ovss: error: {text} (usage: {self.prog} --help)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="ovss", description="Open-vocabulary semantic segmentation: words in, labels out."
    )
    parser.add_argument("--version", action="version", version=f"ovss {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_segment(commands)
    _add_evaluate(commands)
    _add_search(commands)
    _add_list(commands)
    return parser


def _add_segment(commands: Any) -> None:
    parser = _command(commands, "segment", "label the pixels of an image by words", _segment)
    parser.add_argument("image", metavar="IMAGE")
    parser.add_argument("--classes", required=True, help='what to look for: "car, grass"')
    parser.add_argument("--out", required=True, help="labels: .png (palette) or .json (RLE)")
    _add_model(parser)
    parser.set_defaults(profile=None)  # none given: the lab's, and a note that it is


def _add_evaluate(commands: Any) -> None:
    parser = _command(commands, "evaluate", "measure a method on a data set", _evaluate)
    parser.add_argument("--dataset", required=True, help=DATASET_HELP)
    parser.add_argument("--root", help="the folder the data set lies in")
    parser.add_argument("--split", default="val")
    parser.add_argument("--limit", type=int, help="use this many images, drawn by the seed")
    parser.add_argument("--resume", metavar="FOLDER", help="keep counts here; rerun to go on")
    parser.add_argument(
        "--restart", action="store_true", help="begin anew where --resume holds another evaluation"
    )
    parser.add_argument("--batch", type=int, default=8, help="images at once (default 8)")
    parser.add_argument("--workers", type=int, default=0, help="threads that read ahead")
    parser.add_argument("--seed", type=int, default=0)
    _add_classes(parser, "all", "query all classes, or those each image holds")
    parser.add_argument(
        "--vocabulary",
        metavar="FILE",
        help='other words for the classes, in their order, one class a line: "person, man"',
    )
    parser.add_argument(
        "--no-settings",
        dest="settings",
        action="store_false",
        help="leave out the method's own settings for this benchmark",
    )
    parser.add_argument("--out", metavar="CSV", help="add the numbers to this results file")
    _add_model(parser)


def _add_search(commands: Any) -> None:
    summary = "PnP-OVSS's layer, head, threshold and blur from images and class names alone"
    parser = _command(commands, "search", summary, _search)
    parser.add_argument("--dataset", required=True, help=DATASET_HELP)
    parser.add_argument("--root", help="the folder the data set lies in")
    parser.add_argument("--split", default="tune", help="default: tune, the lab's")
    parser.add_argument("--limit", type=int, help="use this many images, drawn by the seed")
    parser.add_argument("--resume", metavar="FOLDER", help="keep trials here; rerun to go on")
    parser.add_argument("--iterations", type=int, default=34, help="draws of each group")
    parser.add_argument("--groups", type=int, default=3, help="that share the layers")
    parser.add_argument("--workers", type=int, default=2, help="candidates at once")
    parser.add_argument("--seed", type=int, default=0)
    _add_classes(parser, "image", "who names each image's classes")
    parser.add_argument("--out", metavar="CSV", help="write all trials here")
    parser.add_argument("--profile", default="lab", help="lab (miniature) or paper checkpoints")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 ...")
    parser.add_argument("--itm", help="another image-text matcher")


def _add_list(commands: Any) -> None:
    parser = _command(commands, "list", "show what there is", _list)
    parser.add_argument("what", nargs="*", metavar="|".join(LISTS), help="by default all three")


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--method", default="cliper", help="see `ovss list methods`")
    parser.add_argument("--profile", default="lab", help="lab (miniature) or paper checkpoints")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 ...")
    parser.add_argument("--clip", help="another CLIP: a name of `ovss list`, or a folder")
    parser.add_argument("--dino", help="of proxyclip: another DINO")
    parser.add_argument("--compensation", help='of cliper: a diffusion model; the lab\'s is "sd"')
    parser.add_argument("--itm", help="of pnp-ovss: another image-text matcher")
    parser.add_argument(
        "--no-crf", dest="crf", action="store_false", default=None, help="of pnp-ovss: no dense CRF"
    )
    parser.add_argument("--variant", help="of cliper and pnp-ovss: paper, official ...")
    parser.add_argument("--dtype", help="float32 (default), float16, bfloat16")
    parser.add_argument("--templates", help="of the prompts: plain, openai, or a file of lines")


def _add_classes(parser: argparse.ArgumentParser, default: str, summary: str) -> None:
    words = "all|" if default == "all" else ""
    parser.add_argument(
        "--classes",
        default=default,
        metavar=f"{words}image|clip|gpt-4o|FILE.json[:first]",
        help=f"{summary}: its truth, CLIP, GPT-4o, or a file of answers (FILE.json:first takes the "
        f"first class where an answer leaves none, as the authors do; default {default})",
    )


def _command(
    commands: Any, name: str, summary: str, run: Callable[[argparse.Namespace], None]
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=summary, description=summary)
    parser.set_defaults(run=run)
    return parser


def _segment(options: argparse.Namespace) -> None:
    from .images import read_image
    from .segmentation import check_output
    from .vocabulary import Vocabulary

    words = Vocabulary.of(options.classes)  # what is wrong shows before the model loads
    image = read_image(options.image)
    check_output(options.out, len(words), options.image)
    segmenter = _load(options)
    checkpoints = (options.clip, options.dino, options.itm, options.compensation)
    if options.profile is None and not any(checkpoints):
        print(LAB_NOTE, file=sys.stderr)
    found = segmenter(image, words)
    path = found.save(options.out)
    shares = ", ".join(
        f"{shorten(name)} {100 * share:.1f} %" for name, share in found.shares.items()
    )
    print(f"{shares} -> {printable(str(path))}")


def evaluate(*arguments: Any, **options: Any) -> Any:
    """Evaluate as `ovss.evaluate` does, whose libraries are imported when they are needed."""
    from .evaluation.evaluate import evaluate as run

    return run(*arguments, **options)


def _evaluate(options: argparse.Namespace) -> None:
    from .datasets import open_dataset
    from .evaluation.counting import check_options
    from .evaluation.journal import check_folder
    from .reporting import results

    check_options(options.seed, options.batch, options.workers, options.limit)
    if options.resume:
        check_folder(options.resume)
    if options.out:
        results.check_results_file(options.out)
    data = open_dataset(options.dataset, options.root, options.split)
    vocabulary = _vocabulary(options.vocabulary, data)
    classes = _classes(options, data)
    result = evaluate(
        _load(options),
        data,
        limit=options.limit,
        resume=options.resume,
        restart=options.restart,
        seed=options.seed,
        classes=classes,
        vocabulary=vocabulary,
        batch=options.batch,
        workers=options.workers,
    )
    for name, iou in result.per_class.items():
        print(f"{name:24} {iou:6.2f}")
    if result.thin_classes:
        told = ", ".join(map(shorten, result.thin_classes[:10]))
        rest = ", …" if len(result.thin_classes) > 10 else ""
        print(f"few images, little to rest on: {told}{rest}")
    low, high = result.interval
    print(
        f"mIoU {result.miou:.2f} [{low:.2f}, {high:.2f}] on {result.images} images of "
        f"{result.dataset} ({result.protocol}), {1000 * result.seconds_per_image:.0f} ms an image"
    )
    if hasattr(classes, "bill"):
        print(classes.bill)
    if options.out:  # last: whatever becomes of the file, the numbers are told
        rows = results.rows_of(result, "command line", row_name(options), options.profile)
        results.write(options.out, rows, apart=("checkpoint", "profile", "images"))


def row_name(options: argparse.Namespace) -> str:
    """What tells an evaluation from others of the command line: its method and what was given.

    "cliper", "cliper compensation=sd limit=20 seed=0": the same words make the same row.
    """
    given = {name: getattr(options, name) for name in (*MODEL, "vocabulary")}
    told = {name: value for name, value in given.items() if value is not None and name != "device"}
    told |= {"classes": options.classes} if options.classes.endswith(".json") else {}
    told |= {} if options.settings else {"settings": "none"}
    told |= {} if options.split == "val" else {"split": options.split}
    told |= {} if options.limit is None else {"limit": options.limit, "seed": options.seed}
    words = [f"{name}={_short(value)}" for name, value in told.items()]
    return " ".join([options.method, *words])


def _short(value: Any) -> str:
    """A value in a row's name; a file by its name and the hash of its content."""
    text = str(value).lower() if isinstance(value, bool) else str(value)
    path = expand(text)
    if path.is_file():
        return f"{path.name}@{hashlib.sha256(path.read_bytes()).hexdigest()[:8]}"
    return path.name if path.is_dir() else text


def _vocabulary(path: str | None, data: Any) -> Any:
    """The words in a file, a class and its synonyms a line; None without a file."""
    from .evaluation.counting import fitting
    from .vocabulary import Vocabulary

    if path is None:
        return None
    lines = read_lines(path, "vocabulary")
    words = Vocabulary.of([[word.strip() for word in line.split(",")] for line in lines])
    return fitting(replace(words, background=data.vocabulary.background), data)


def _classes(options: argparse.Namespace, data: Any) -> Any:
    """What `--classes` says: a word that `evaluate` knows, or a tagger."""
    from .taggers import find_tagger

    if options.classes in ("all", "image"):
        return options.classes
    return find_tagger(options.classes, data, options.profile, options.device)


def _search(options: argparse.Namespace) -> None:
    from .datasets import open_dataset
    from .evaluation.counting import check_options
    from .evaluation.journal import check_folder
    from .methods.pnp_search import check_search, examples_of, search
    from .taggers import find_clip, find_tagger

    check_options(limit=options.limit)
    check_search(options.iterations, options.groups, options.workers, options.seed)
    if options.resume:
        check_folder(options.resume)
    if options.out:
        _check_table(options.out)
    data = open_dataset(options.dataset, options.root, options.split)
    tagger = find_tagger(options.classes, data, options.profile, options.device)
    options.method, options.crf, options.settings = "pnp-ovss", False, True
    method: Any = _build(options)[0].method
    found = search(
        method,
        find_clip(options.profile, options.device),
        examples_of(data, tagger, options.limit, options.seed),
        iterations=options.iterations,
        groups=options.groups,
        resume=options.resume,
        seed=options.seed,
        workers=options.workers,
    )
    table = found.table()
    print(table.head(10).to_string(index=False))
    best = ", ".join(f"{name}={value}" for name, value in found.options.items())
    print(f"best: {best} (layers and heads from 0), {found.best.reward} of {found.max_reward}")
    if options.out:
        with atomic(options.out) as file:
            file.write(table.to_csv(index=False).encode())


def _check_table(path: str) -> None:
    """Refuse to write trials over a file that holds none."""
    from .methods.pnp_search import SEARCHED

    target = expand(path)
    head = ",".join(SEARCHED).encode()
    if target.exists() and not (target.is_file() and _begins(target, head)):
        raise OvssError(f"{path} is no table of trials: it would be replaced; choose another name")
    check_destination(target)


def _begins(path: Path, content: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(content)) == content


def _list(options: argparse.Namespace) -> None:
    from .errors import UnknownNameError

    for what in options.what or LISTS:
        if what not in LISTS:
            raise UnknownNameError.of("list", what, LISTS)
        print(f"{what}:")
        for name, note in _known(what):
            print(f"  {name:32} {note}".rstrip())


def _known(what: str) -> list[tuple[str, str]]:
    if what == "datasets":
        from .datasets import DATASETS

        home = {name: spec.home for name, spec in DATASETS.items()}
        return [(name, _place(at) if at else "needs --root") for name, at in home.items()]
    if what == "methods":
        from .methods import METHODS

        return [(name, _summary(METHODS[name])) for name in METHODS]
    from .backbones.registry import CHECKPOINTS, ZOO

    zoo = [(name, f"the lab's, {_place('lab', 'zoo', name)}") for name in ZOO]
    return zoo + [(name, entry.role) for name, entry in CHECKPOINTS.items()]


def _place(*parts: str) -> str:
    """A folder under data/, or that it is not here."""
    folder = data(*parts)
    return str(folder) if folder.is_dir() else f"not here: {FROM_THE_REPOSITORY}"


def _summary(builder: Any) -> str:
    return (builder.__doc__ or "").strip().partition("\n")[0]


def _load(options: argparse.Namespace) -> Any:
    """The segmenter that the options say; stderr tells which settings an evaluation uses."""
    segmenter, why = _build(options)
    dataset = getattr(options, "dataset", None)
    if dataset is not None:
        print(f"ovss: {_settings(segmenter, dataset, why)}", file=sys.stderr)
    return segmenter


def _build(options: argparse.Namespace) -> tuple[Any, str]:
    """The segmenter, and why it is without the method's settings for the data set ("" if not)."""
    from . import load
    from .methods.builders import NoSettingsError

    profile = options.profile or "lab"
    given = {name: getattr(options, name, None) for name in MODEL}
    chosen = {name: value for name, value in given.items() if value is not None}
    if "templates" in chosen and Path(chosen["templates"]).is_file():
        chosen["templates"] = read_lines(chosen["templates"], "list of templates")
    dataset = getattr(options, "dataset", None)
    why = "" if dataset is None or options.settings else "--no-settings"
    if dataset is not None and not why:
        try:
            return load(options.method, profile, dataset=dataset, **chosen), ""
        except NoSettingsError as error:
            why = str(error).partition(":")[0]
    return load(options.method, profile, **chosen), why


def _settings(segmenter: Any, dataset: str, why: str) -> str:
    """Which settings an evaluation uses, in one line."""
    from .datasets import DATASETS
    from .decide import Argmax
    from .labels import BACKGROUND

    method = segmenter.method
    options = fields(method) if is_dataclass(method) else ()
    values = [(field.name, getattr(method, field.name), field.default) for field in options]
    changed = [f"{name}={value!r}" for name, value, usual in values if _differs(value, usual)]
    used = ", ".join([*changed, f"decision={segmenter.decision!r}"])
    wanted = DATASETS[dataset].zero == BACKGROUND
    never = isinstance(segmenter.decision, Argmax) and not method.predicts_background
    note = "; argmax never predicts background, which is a class here" if wanted and never else ""
    whose = f"no settings for {dataset} ({why})" if why else f"its settings for {dataset}"
    return f"{method.name} with {whose}: {used}{note}"


def _differs(value: Any, usual: Any) -> bool:
    """Whether an option that a line can hold has another value than the paper's."""
    return isinstance(value, bool | int | float | str | None) and value != usual


def _explain(error: OSError) -> str:
    if error.errno == errno.ENOSPC:
        return "the disk is full: nothing was written in place of what was there"
    place = f": {error.filename}" if error.filename else ""
    return f"{error.strerror or error}{place}"


def _fail(message: str) -> int:
    print(f"ovss: error: {shorten(message, LONGEST)}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    raise SystemExit(main())
