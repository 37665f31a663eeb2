"""Commands `teach`, `forget`, `why` and `taught`: classes that a bundle learns from a few images, in a state folder."""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vfm_runtime.bundle.model import Model, load
from vfm_runtime.errors import DataError, OptionError
from vfm_runtime.media.files import find_images
from vfm_runtime.media.image import ImageError
from vfm_runtime.teaching.boxes import BoxExplanation
from vfm_runtime.teaching.classes import Explanation
from vfm_runtime.teaching.coco import read_coco
from vfm_runtime.teaching.state import TaughtState

OK, FAILED = 0, 1


def add_commands(commands: Any, common: argparse.ArgumentParser) -> dict[str, Any]:
    """Add the commands to those of a parser, and return each by its name.

    Args:
        commands: Subparsers of `vfm-runtime`, as `add_subparsers` returns them.
        common: Parser of the options that commands share: bundle, device and precision.
    """
    stored = type(common)(add_help=False)
    stored.add_argument(
        "--state", type=Path, metavar="DIR", required=True, help="folder of what was taught"
    )
    stored.add_argument("--json", action="store_true", help="print JSON")
    options = {"parents": [common, stored]}

    teach = commands.add_parser("teach", **options, help="teach classes by a few images")
    teach.add_argument("images", metavar="IMAGE_OR_FOLDER", nargs="*", help="examples of the class")
    teach.add_argument(
        "--label",
        "--name",
        help="name of the class; without it the folder holds a folder for each class, or the file names them",
    )
    teach.add_argument(
        "--examples",
        type=Path,
        metavar="COCO_FILE",
        help="for a detector, in place of images: all boxes of the class in some images",
    )
    teach.add_argument(
        "--keep-pictures",
        action="store_true",
        help="keep small pictures of the examples too, not vectors alone",
    )
    teach.set_defaults(run=_teach)

    forget = commands.add_parser("forget", **options, help="delete a taught class for good")
    forget.add_argument("label", metavar="LABEL")
    forget.set_defaults(run=_show_taught, export=None, import_file=None)

    why = commands.add_parser(
        "why", **options, help="answer by taught classes, with the nearest examples"
    )
    why.add_argument("images", metavar="IMAGE_OR_FOLDER", nargs="+")
    why.add_argument("--nearest", type=int, default=3, help="examples to show (default: 3)")
    why.set_defaults(run=_why)

    taught = commands.add_parser("taught", **options, help="list, export or import what was taught")
    taught.add_argument("--export", type=Path, metavar="FILE", help="write it, for another replica")
    taught.add_argument(
        "--import",
        type=Path,
        metavar="FILE",
        dest="import_file",
        help="take that of another replica in its place",
    )
    taught.set_defaults(run=_show_taught, label=None)
    return {"teach": teach, "forget": forget, "why": why, "taught": taught}


def _load(options: argparse.Namespace, **more: Any) -> Model:
    return load(
        options.bundle,
        device=options.device,
        precision=options.precision,
        state=options.state,
        **more,
    )


def _teach(options: argparse.Namespace) -> int:
    if options.examples is not None:
        return _teach_boxes(options)
    if not options.images:
        raise OptionError(
            "There are no examples. Give images or folders of them, or of a detector --examples boxes.json."
        )
    if options.label is not None:
        images = {options.label: list(_list_images(options.images))}
    elif len(options.images) == 1:
        images = _list_examples(Path(options.images[0]))
    else:
        raise OptionError(
            f"{len(options.images)} paths, and no class. Give --label for images of one class, or one folder that "
            "holds a folder for each class."
        )
    model = _load(options, keep_pictures=options.keep_pictures)
    if model.learns_boxes:
        raise OptionError(
            f"{options.bundle} finds objects, and is taught by boxes. Give --examples boxes.json, a COCO file, in "
            "place of the images."
        )
    before = model.taught.state
    state = model.taught.teach(images)
    added, number = len(state.examples) - len(before.examples), sum(map(len, images.values()))
    if added < number:
        print(f"{number - added} of {number} images were examples already", file=sys.stderr)
    _print_state(state, options)
    return OK


def _teach_boxes(options: argparse.Namespace) -> int:
    if options.images:
        raise OptionError(
            f"--examples names its images, and there is {options.images[0]} beside it. Leave one of them out."
        )
    pairs = read_coco(options.examples, options.label)
    model = _load(options, keep_pictures=options.keep_pictures)
    if not model.learns_boxes:
        raise OptionError(
            f"{options.bundle} {model.task_type.summary}, and its graph gives no embeddings of boxes, by which classes "
            "are taught from --examples. Export a detector with a DenseHead with this version of vfm."
        )
    before = model.taught.state
    state = model.taught.teach(pairs)
    added = len(state.examples) - len(before.examples)
    number = sum(len(boxes) for images in pairs.values() for _, boxes in images)
    if added < number:
        text = (
            f"{number - added} of {number} boxes were examples already, or nothing is found there"
        )
        print(text, file=sys.stderr)
    _print_state(state, options)
    return OK


def _why(options: argparse.Namespace) -> int:
    if options.nearest < 0:
        raise OptionError(f"nearest is {options.nearest}. Give 0 or more.")
    model, code = _load(options), OK
    for file in _list_images(options.images):
        try:
            answer = model.why(file, num_nearest=options.nearest)
        except ImageError as error:
            answer, code = error, FAILED
        _print_answer(file, answer, options)
    return code


def _print_answer(
    file: Path, answer: Explanation | BoxExplanation | ImageError, options: argparse.Namespace
) -> None:
    if isinstance(answer, ImageError):
        print(f"error: {answer}", file=sys.stderr)
        if options.json:
            print(json.dumps({"image": str(file), "error": str(answer)}))
        return
    if options.json:
        print(json.dumps({"image": str(file), **answer.to_dict()}))
        return
    for line in answer.lines():
        print(f"{file}: {line}")


def _show_taught(options: argparse.Namespace) -> int:
    model = _load(options)
    store = model.taught.store
    if options.label is not None:
        model.forget(options.label)
    if options.import_file is not None:
        store.import_file(options.import_file)
    if options.export is not None:
        store.export(options.export)
    _print_state(store.read(), options)
    return OK


def _print_state(state: TaughtState, options: argparse.Namespace) -> None:
    if options.json:
        print(json.dumps({"version": state.version, "classes": state.counts}))
        return
    plural = "" if len(state.labels) == 1 else "es"
    print(
        f"version {state.version}: {len(state.examples)} examples of {len(state.labels)} class{plural}"
    )
    for label, count in state.counts.items():
        print(f"{count:6d}  {label}")


def _list_images(sources: list[str]) -> Iterator[Path]:
    for source in sources:
        path = Path(source)
        if not path.is_dir():
            yield path
            continue
        files = find_images(path)
        if not files:
            raise ImageError(str(path), "no images in this folder", "Check the path.")
        yield from files


def _list_examples(folder: Path) -> dict[str, list[Path]]:
    if not folder.is_dir():
        raise DataError(
            f"There is no folder {folder}. Give one with a folder of images for each class."
        )
    folders = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    return {path.name: find_images(path) for path in folders}
