"""The command `vfm-runtime`: predict, search, check, info, serve, teach and verify, without torch."""

import argparse
import csv
import importlib.util
import json
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from vfm_runtime import __version__
from vfm_runtime.bundle.golden import Replay, judge_answers, replay
from vfm_runtime.bundle.model import Model, load
from vfm_runtime.bundle.precision import PRECISIONS
from vfm_runtime.bundle.predictor import Predictor
from vfm_runtime.bundle.providers import DEVICES
from vfm_runtime.errors import BundleError, DataError, MissingPackageError, VfmError, suggest
from vfm_runtime.media.files import describe_unread, list_files
from vfm_runtime.media.image import UNREAD_SUFFIXES, ImageError
from vfm_runtime.media.video import VIDEO_SUFFIXES, find_media, is_video
from vfm_runtime.printing import describe_bundle, print_error, print_prediction
from vfm_runtime.server.main import add_arguments, serve
from vfm_runtime.server.settings import Settings
from vfm_runtime.tasks.detection import THRESHOLD
from vfm_runtime.teaching.command import add_commands
from vfm_runtime.verify_command import add_command as add_verify
from vfm_runtime.zero_shot import ZeroShotModel, fit_zero_shot, make_prompts

OK, FAILED, MISUSED = 0, 1, 2
"""Exit codes: done; an image, a bundle or a check failed; the command was misused."""


class _UsageError(VfmError, ValueError):
    """The command line makes no sense."""


class _Parser(argparse.ArgumentParser):
    """A parser that raises instead of exiting and suggests what may have been meant."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "allow_abbrev": False})

    def error(self, message: str) -> NoReturn:
        raise _UsageError(f"{message}. See `{self.prog} --help`.")


def main(args: list[str] | None = None) -> int:
    """Run the words after `vfm-runtime`, by default this process's, and return 0 done, 1 failed, 2 misused."""
    words = [_normalize_flag(word) for word in (sys.argv[1:] if args is None else args)]
    debug = "--debug" in words
    logging.basicConfig(level=logging.DEBUG if debug else logging.WARNING)
    try:
        parser, commands = _build_parser()
        _check_command(words, commands)
        options, unknown = parser.parse_known_args(words)
        if unknown:
            _refuse_flags(unknown, commands[options.command])
        code: int = options.run(options)
        sys.stdout.flush()
    except SystemExit as stop:
        # argparse leaves this way after --help and --version.
        return int(stop.code or OK)
    except BrokenPipeError:
        # The reader (`| head`) has enough. Python would complain once more when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except (VfmError, ValueError, OSError, ImportError) as error:
        if debug:
            raise
        print_error(error)
        return MISUSED if isinstance(error, _UsageError) else FAILED
    return code


def _normalize_flag(word: str) -> str:
    """Return the flag as it is defined: `--batch_size=8` is `--batch-size=8`."""
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return f"{name.replace('_', '-')}{equals}{value}"


def _build_parser() -> tuple[_Parser, dict[str, _Parser]]:
    parser = _Parser(prog="vfm-runtime", description="Runs the bundles that vfm exports.")
    parser.add_argument("--version", action="version", version=f"vfm-runtime {__version__}")
    common = _Parser(add_help=False)
    common.add_argument("bundle", metavar="BUNDLE", help="folder that `vfm export` wrote")
    common.add_argument(
        "--device",
        choices=DEVICES,
        default="auto",
        help="auto: CUDA where it loads, else OpenVINO, else CPU",
    )
    common.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="auto",
        help="auto: int8 on the CPU, fp16 on a GPU, if in the bundle",
    )
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    predict = commands.add_parser("predict", parents=[common], help="answer for images and folders")
    predict.add_argument(
        "images",
        metavar="IMAGE_OR_FOLDER",
        nargs="+",
        help="also videos, and folders of them, where the task takes them",
    )
    predict.add_argument(
        "--top", type=_parse_count, default=5, help="best classes to show (default: 5)"
    )
    predict.add_argument(
        "--threshold",
        type=_parse_fraction,
        help=f"of boxes, and of several labels (default: the bundle's own, else {THRESHOLD} and 0.5)",
    )
    predict.add_argument(
        "--draw", type=Path, metavar="FOLDER", help="write the pictures with boxes or heatmaps here"
    )
    predict.add_argument(
        "--cropped",
        action="store_true",
        help="where the task cuts crops out: they are crops already",
    )
    predict.add_argument("--batch-size", type=_parse_count, default=32, help="default: 32")
    predict.add_argument(
        "--group", help="group of all images, where the bundle has rules by group (default: none)"
    )
    predict.add_argument(
        "--group-column",
        metavar="NAME",
        help="column of --table with the group of each image, where the bundle has rules by group",
    )
    predict.add_argument(
        "--table", type=Path, metavar="CSV", help="with a row for each image: path and the group"
    )
    predict.add_argument("--json", action="store_true", help="one JSON object a line and image")
    predict.add_argument(
        "--state", type=Path, metavar="DIR", help="folder of what a detector was taught"
    )
    predict.add_argument(
        "--labels",
        metavar="cat,dog",
        help="labels as words in place of the bundle's own, where it has a text tower",
    )
    predict.add_argument(
        "--template",
        action="append",
        default=[],
        metavar="TEXT",
        help="with --labels, any number of times: text that a label stands in, in place of {}",
    )
    predict.set_defaults(run=_predict)

    check = commands.add_parser("check", parents=[common], help="find damage, replay golden images")
    check.add_argument(
        "--answers",
        type=Path,
        metavar="FILE",
        help="judge what another client answered to the golden images, as those of examples/ print it",
    )
    check.set_defaults(run=_check)

    search = commands.add_parser(
        "search",
        parents=[common],
        help="the images that a bundle carries which are most like others",
    )
    search.add_argument("images", metavar="IMAGE_OR_FOLDER", nargs="*")
    search.add_argument(
        "--text", help="in place of images: words, where the bundle has a text tower"
    )
    search.add_argument("-k", type=_parse_count, default=10, help="images to list (default: 10)")
    search.add_argument("--json", action="store_true", help="one JSON object a line and image")
    search.set_defaults(run=_search)

    info = commands.add_parser("info", parents=[common], help="show what a bundle is")
    info.add_argument("--json", action="store_true", help="as one JSON object")
    info.set_defaults(run=_show_info)

    serve = commands.add_parser("serve", help="answer over HTTP, with a page to try it")
    add_arguments(serve)
    serve.add_argument("--debug", action="store_true", help="show the traceback of an error")
    serve.set_defaults(run=_serve)
    taught = add_commands(commands, common)
    named = {"predict": predict, "search": search, "check": check, "info": info, "serve": serve}
    return parser, {**named, **taught, "verify": add_verify(commands)}


def _parse_count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number from 1 up")
    return int(text)


def _parse_fraction(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number from 0 to 1")
    return value


def _check_command(words: list[str], commands: dict[str, _Parser]) -> None:
    choices = ", ".join(commands)
    if not words:
        raise _UsageError(f"Name a command: {choices}. See `vfm-runtime --help`.")
    word = words[0]
    if word in commands or word in ("-h", "--help", "--version"):
        return
    if word.startswith("-"):
        raise _UsageError(f"Options come after the command, '{word}' before it. Say {choices}.")
    hint = suggest(word, commands)
    raise _UsageError(f"There is no command '{word}'.{hint} Commands: {choices}.")


def _refuse_flags(unknown: list[str], command: _Parser) -> NoReturn:
    word = unknown[0].split("=")[0]
    flags = [flag for flag in command._option_string_actions if flag.startswith("--")]
    if not word.startswith("-"):
        raise _UsageError(f"'{word}' is one word too many. See `{command.prog} --help`.")
    hint = suggest(word, flags)
    raise _UsageError(
        f"`{command.prog}` has no option '{word}'.{hint} Options: {', '.join(sorted(flags))}."
    )


def _load(options: argparse.Namespace, **more: Any) -> Model:
    return load(options.bundle, device=options.device, precision=options.precision, **more)


def _predict(options: argparse.Namespace) -> int:
    model: Predictor = _load(options, batch_size=options.batch_size, state=options.state)
    if options.state is not None and not model.learns_boxes:
        raise _UsageError(
            f"--state is for detectors that were taught boxes, and {options.bundle} {model.task_type.summary}. Ask for "
            "taught classes with `why`."
        )
    if options.labels is not None:
        if options.group is not None or options.group_column is not None:
            raise _UsageError(
                "A group has rules for the labels of the bundle, and --labels gives others. Leave out --group and "
                "--group-column, or --labels."
            )
        prompts = make_prompts(options.labels.split(","), options.template)
        model = ZeroShotModel(model, fit_zero_shot(model, prompts))
    elif options.template:
        raise _UsageError("--template is a text for labels. Add --labels, or leave it out.")
    _check_options(options, model)
    files = list(_find_files(options.images, videos=model.task_type.takes_video))
    code = OK
    groups = _read_groups(options, files)
    for batch in _make_batches(files, options.batch_size):
        predictions = model.predict(
            batch,
            errors="return",
            cropped=options.cropped,
            group=groups
            if groups is None or isinstance(groups, str)
            else [groups[f] for f in batch],
        )
        for path, prediction in zip(batch, predictions, strict=True):
            if isinstance(prediction, ImageError):
                code = FAILED
            print_prediction(path, prediction, options, model)
    return code


def _read_groups(
    options: argparse.Namespace, files: list[Path]
) -> str | dict[Path, str | None] | None:
    """Return the group of all images, or that of each by a table; None where none was given, as by an empty cell."""
    column, table = options.group_column, options.table
    if options.group is not None and column is not None:
        raise _UsageError("--group is one for all images, --group-column one for each. Give one.")
    if (column is None) != (table is None):
        raise _UsageError("--group-column NAME goes with --table CSV, which has it. Give both.")
    if table is None:
        group: str | None = options.group
        return group
    with table.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    for name in ("path", column):
        if rows and name not in rows[0]:
            listed = ", ".join(map(str, rows[0]))
            raise DataError(f"{table} has no column '{name}'. Columns: {listed}. Name another.")
    by_path = {
        os.path.realpath(table.parent / row["path"]): (row[column] or "").strip() or None
        for row in rows
    }
    missing = [file for file in files if os.path.realpath(file) not in by_path]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(files)} images have no row in {table}, such as {missing[0]}. Add them; paths are "
            "from where the table lies."
        )
    return {file: by_path[os.path.realpath(file)] for file in files}


def _search(options: argparse.Namespace) -> int:
    model, code = _load(options), OK
    if bool(options.images) == (options.text is not None):
        raise _UsageError("A search is for images or for words. Give IMAGE_OR_FOLDER, or --text.")
    queries = (
        [options.text] if options.text is not None else _find_files(options.images, videos=False)
    )
    kind = "image" if options.text is None else "text"
    for file in queries:
        try:
            if options.text is not None:
                neighbors = model.search(k=options.k, text=options.text)
            else:
                neighbors = model.search(file, options.k)
        except ImageError as error:
            code = FAILED
            print_error(error)
            if options.json:
                print(json.dumps({"image": str(file), "error": str(error)}))
            continue
        if options.json:
            rows = [one.to_dict() for one in neighbors]
            print(json.dumps({kind: str(file), "neighbors": rows}))
            continue
        for one in neighbors:
            cells = ", ".join(f"{n} {cell}" for n, cell in one.columns.items() if cell is not None)
            print(f"{file}: {one.similarity:.4f} {one.path}{f' ({cells})' * bool(cells)}")
    return code


def _make_batches(files: list[Path], size: int) -> Iterator[list[Path]]:
    """Yield images by the batch; each video alone, so that its answer is shown before the next one is read."""
    batch: list[Path] = []
    for file in files:
        if batch and (len(batch) == size or is_video(file) or is_video(batch[-1])):
            yield batch
            batch = []
        batch.append(file)
    if batch:
        yield batch


def _check_options(options: argparse.Namespace, model: Predictor) -> None:
    task = model.task_type
    if options.draw is not None and not task.draws:
        raise _UsageError(
            f"{options.bundle} {task.summary}: only boxes and heatmaps of one can be drawn."
        )
    if options.threshold is not None and not any(h.uses_threshold for h in task.heads.values()):
        raise _UsageError(
            f"{options.bundle} answers with one label: --threshold is for boxes and for several labels. Leave it out."
        )
    if options.cropped and not task.uses_crops:
        raise _UsageError(
            f"{options.bundle} cuts nothing out of its images: it takes no crops. Leave out --cropped."
        )


def _find_files(sources: list[str], *, videos: bool) -> Iterator[Path]:
    for source in sources:
        path = Path(source)
        if not path.is_dir():
            yield path
            continue
        files = find_media(path, videos=videos)
        unread = list_files(
            path, UNREAD_SUFFIXES if videos else (*UNREAD_SUFFIXES, *VIDEO_SUFFIXES)
        )
        if note := describe_unread(path, unread, len(files)):
            print(f"vfm-runtime: {note}", file=sys.stderr)
        if not files:
            what = "no images and no videos" if videos else "no images"
            raise ImageError(str(path), f"{what} in this folder", "Check the path.")
        yield from files


def _check(options: argparse.Namespace) -> int:
    if options.answers is not None:
        options.precision = "fp32"  # of model.onnx, which clients run
    model = _load(options)
    print(f"{len(model.manifest.files)} files intact")
    if options.answers is not None:
        _report(judge_answers(model, options.answers), str(options.answers))
        return OK
    for checked in _load_each_precision(model, options):
        _report(replay(checked), f"{checked.precision} on {checked.device}")
    return OK


def _report(results: list[Replay], where: str) -> None:
    for result in results:
        print(result)
    failed = sum(not result.passed for result in results)
    if failed:
        raise BundleError(
            f"{failed} of {len(results)} golden images answer otherwise than at export, {where}. Do not use the "
            "bundle here; try another version of ONNX Runtime, --device cpu, or --precision fp32."
        )
    print(f"OK: {len(results)} golden answers, {where}")


def _load_each_precision(model: Model, options: argparse.Namespace) -> Iterator[Model]:
    """Yield the model in every precision that the bundle has for this device, unless one was asked for."""
    yield model
    if options.precision != "auto":
        return
    for precision in model.precisions:
        if precision == model.precision or (precision == "int8" and model.device != "cpu"):
            continue
        yield load(options.bundle, device=options.device, precision=precision)


def _serve(options: argparse.Namespace) -> int:
    for name in ("fastapi", "uvicorn", "python_multipart", "prometheus_client"):
        if importlib.util.find_spec(name) is None:
            raise MissingPackageError(
                f"`serve` needs the package {name}, which is not installed. Run: pip install 'vfm-runtime[server]'."
            )
    return serve(Settings.from_mapping(vars(options)))


def _show_info(options: argparse.Namespace) -> int:
    model = _load(options)
    names = sorted(model.manifest.files)
    files = {name: (model.path / name).stat().st_size for name in names}
    if options.json:
        facts = {
            "contract": model.contract.to_dict(),
            "files": files,
            "device": model.device,
            "precision": model.precision,
        }
        print(json.dumps(facts, indent=2))
        return OK
    for line in describe_bundle(model, files):
        print(line)
    return OK


if __name__ == "__main__":
    sys.exit(main())
