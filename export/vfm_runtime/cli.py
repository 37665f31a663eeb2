"""The command `vfm-runtime`: predict, check and info, without torch."""

import argparse
import difflib
import json
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from PIL import Image

from vfm_runtime import __version__
from vfm_runtime.bundle import BundleError
from vfm_runtime.contract import DEEPFAKE, DETECTION
from vfm_runtime.detections import THRESHOLD, Detections
from vfm_runtime.image import ImageError, Pixels, find_images
from vfm_runtime.judge import Judge
from vfm_runtime.model import Model, load
from vfm_runtime.predictor import Answer
from vfm_runtime.providers import DEVICES, ProviderError
from vfm_runtime.replay import replay
from vfm_runtime.verdict import Verdict, sigmoid
from vfm_runtime.video import find_videos, is_video

OK, FAILED, MISUSED = 0, 1, 2
"""Exit codes: done; an image, a bundle or a check failed; the command was misused."""

_MAX_ERROR_LINES = 8


class _UsageError(ValueError):
    """The command line makes no sense."""


class _Parser(argparse.ArgumentParser):
    """A parser that raises instead of exiting and suggests what may have been meant."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "allow_abbrev": False})

    def error(self, message: str) -> NoReturn:
        raise _UsageError(f"{message}. See `{self.prog} --help`.")


def main(args: list[str] | None = None) -> int:
    """Run the command and return its exit code: 0 done, 1 failed, 2 misused.

    Args:
        args: The words after `vfm-runtime`; None for those of this process.
    """
    words = sys.argv[1:] if args is None else args
    debug = "--debug" in words
    logging.basicConfig(level=logging.DEBUG if debug else logging.WARNING)
    try:
        options = _parse(words)
        code: int = options.run(options)
        sys.stdout.flush()
    except SystemExit as stop:
        # argparse leaves this way after --help and --version.
        return int(stop.code or OK)
    except BrokenPipeError:
        # The reader (`| head`) has enough. Python would complain once more when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except (ValueError, ProviderError, OSError, ImportError) as error:
        if debug:
            raise
        _complain(error)
        return MISUSED if isinstance(error, _UsageError) else FAILED
    return code


def _complain(error: Exception) -> None:
    lines = str(error).splitlines()[:_MAX_ERROR_LINES]
    print("error: " + "\n".join(lines), file=sys.stderr)


def _parse(words: list[str]) -> argparse.Namespace:
    parser, commands = _build_parser()
    _check_command(words, commands)
    options, unknown = parser.parse_known_args(words)
    if unknown:
        _refuse_flags(unknown, commands[options.command])
    return options


def _build_parser() -> tuple[_Parser, dict[str, _Parser]]:
    parser = _Parser(prog="vfm-runtime", description="Runs the bundles that vfm exports.")
    parser.add_argument("--version", action="version", version=f"vfm-runtime {__version__}")
    common = _Parser(add_help=False)
    common.add_argument("bundle", metavar="BUNDLE", help="folder that `vfm export` wrote")
    common.add_argument(
        "--device", choices=DEVICES, default="auto", help="auto: CUDA where it loads, else CPU"
    )
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    made = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    predict = made.add_parser("predict", parents=[common], help="answer for images and folders")
    predict.add_argument(
        "images",
        metavar="IMAGE_OR_FOLDER",
        nargs="+",
        help="of a deepfake model also videos, and folders of them",
    )
    predict.add_argument("--top", type=_count, default=5, help="best classes to show (default: 5)")
    predict.add_argument(
        "--threshold", type=_share, default=THRESHOLD, help=f"of boxes (default: {THRESHOLD})"
    )
    predict.add_argument(
        "--draw", type=Path, metavar="FOLDER", help="write the pictures with boxes or heatmaps here"
    )
    predict.add_argument(
        "--cropped", action="store_true", help="for a deepfake model: they are face crops already"
    )
    predict.add_argument("--batch-size", type=_count, default=32, help="default: 32")
    predict.add_argument("--json", action="store_true", help="one JSON object a line and image")
    predict.set_defaults(run=_predict)

    check = made.add_parser("check", parents=[common], help="find damage, replay golden images")
    check.set_defaults(run=_check)

    info = made.add_parser("info", parents=[common], help="show what a bundle is")
    info.add_argument("--json", action="store_true", help="as one JSON object")
    info.set_defaults(run=_info)
    return parser, {"predict": predict, "check": check, "info": info}


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number from 1 up")
    return int(text)


def _share(text: str) -> float:
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
    hint = _near(word, list(commands))
    raise _UsageError(f"There is no command '{word}'.{hint} Commands: {choices}.")


def _refuse_flags(unknown: list[str], command: _Parser) -> NoReturn:
    word = unknown[0].split("=")[0]
    flags = [flag for flag in command._option_string_actions if flag.startswith("--")]
    if not word.startswith("-"):
        raise _UsageError(f"'{word}' is one word too many. See `{command.prog} --help`.")
    hint = _near(word, flags)
    raise _UsageError(
        f"`{command.prog}` has no option '{word}'.{hint} Options: {', '.join(sorted(flags))}."
    )


def _near(word: str, choices: list[str]) -> str:
    # Without the dashes, which would make any two short options look alike.
    bare = {choice.lstrip("-"): choice for choice in choices}
    near = difflib.get_close_matches(word.lstrip("-"), bare, n=2, cutoff=0.5)
    return f" Did you mean {' or '.join(bare[name] for name in near)}?" if near else ""


def _predict(options: argparse.Namespace) -> int:
    model = load(options.bundle, device=options.device, batch_size=options.batch_size)
    _check_options(options, model)
    files = list(_files(options.images, videos=model.kind == DEEPFAKE))
    code = OK
    for batch in _batches(files, options.batch_size):
        answers = model.predict(batch, errors="return", cropped=options.cropped)
        for path, answer in zip(batch, answers, strict=True):
            if isinstance(answer, ImageError):
                code = FAILED
            _show(path, answer, options)
    return code


def _batches(files: list[Path], size: int) -> Iterator[list[Path]]:
    """Images by the batch; each video alone, so that its answer is shown before the next one is read."""
    batch: list[Path] = []
    for file in files:
        if batch and (len(batch) == size or is_video(file) or is_video(batch[-1])):
            yield batch
            batch = []
        batch.append(file)
    if batch:
        yield batch


def _check_options(options: argparse.Namespace, model: Model) -> None:
    if options.draw is not None and model.kind not in (DETECTION, DEEPFAKE):
        raise _UsageError(f"{options.bundle} labels whole images: there are no boxes to --draw.")
    if options.cropped and model.kind != DEEPFAKE:
        raise _UsageError(
            f"{options.bundle} is no deepfake model: it takes no crops. Leave out --cropped."
        )


def _files(sources: list[str], *, videos: bool) -> Iterator[Path]:
    for source in sources:
        path = Path(source)
        if not path.is_dir():
            yield path
            continue
        found = find_images(path)
        if videos:
            found = sorted([*found, *find_videos(path)], key=lambda file: file.parts)
        if not found:
            what = "no images and no videos" if videos else "no images"
            raise ImageError(str(path), f"{what} in this folder", "Check the path.")
        yield from found


def _show(path: Path, answer: Answer | ImageError, options: argparse.Namespace) -> None:
    if isinstance(answer, ImageError):
        _complain(answer)
        if options.json:
            print(json.dumps({"image": str(path), "error": str(answer)}))
    elif isinstance(answer, Detections):
        _show_boxes(path, answer, options)
    elif isinstance(answer, Verdict):
        _show_verdict(path, answer, options)
    elif options.json:
        print(json.dumps({"image": str(path), **answer.to_dict(options.top)}))
    else:
        pairs = answer.applying() if answer.multilabel else answer.top(options.top)
        best = ", ".join(f"{label} {score:.4f}" for label, score in pairs)
        print(f"{path}: {best or f'none (nearest: {answer.label} {answer.score:.4f})'}")


def _show_boxes(path: Path, answer: Detections, options: argparse.Namespace) -> None:
    if options.json:
        print(json.dumps({"image": str(path), **answer.to_dict(options.threshold)}))
    else:
        shown = answer.above(options.threshold)
        rows = zip(shown.labels, shown.scores, shown.boxes.tolist(), strict=True)
        listed = [f"{n} {s:.4f} [{', '.join(f'{v:.1f}' for v in box)}]" for n, s, box in rows]
        best = f"none (best score {answer.scores.max(initial=0):.4f})"
        print(f"{path}: {'; '.join(listed) or best}")
    if options.draw is not None:
        _save(path, ".png", answer.draw(path, options.threshold), options)


def _show_verdict(path: Path, answer: Verdict, options: argparse.Namespace) -> None:
    if options.json:
        print(json.dumps({"image": str(path), **answer.to_dict()}))
    else:
        print(f"{path}: {answer.headline}. {' '.join([answer.explanation, *answer.notes])}")
    if options.draw is not None:
        # A video and its still often have one name but for the suffix.
        suffix = f"{path.suffix}.png" if answer.is_video else ".png"
        _save(path, suffix, answer.draw(path), options)


def _save(path: Path, suffix: str, drawn: Pixels, options: argparse.Namespace) -> None:
    """Write the picture under its own path below the folder, so that equal names do not meet."""
    parts = [part for part in path.parts if part not in (path.anchor, "..")]
    target = Path(options.draw, *parts).with_suffix(suffix)
    target.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(drawn).save(target)


def _check(options: argparse.Namespace) -> int:
    model = load(options.bundle, device=options.device)
    print(f"{len(model.manifest.files)} files intact")
    results = replay(model)
    for result in results:
        print(result)
    failed = sum(not result.passed for result in results)
    if failed:
        raise BundleError(
            f"{failed} of {len(results)} golden images answer otherwise than at export, on "
            f"{model.device}. Do not use the bundle here; try another version of ONNX Runtime, "
            "or --device cpu."
        )
    print(f"OK: {len(results)} golden answers on {model.device}")
    return OK


def _info(options: argparse.Namespace) -> int:
    model = load(options.bundle, device=options.device)
    names = sorted(model.manifest.files)
    files = {name: (model.path / name).stat().st_size for name in names}
    if options.json:
        facts = {"contract": model.contract.to_dict(), "files": files, "device": model.device}
        print(json.dumps(facts, indent=2))
        return OK
    for line in _info_lines(model, files):
        print(line)
    return OK


def _info_lines(model: Model, files: dict[str, int]) -> Iterator[str]:
    contract = model.contract
    shown = ", ".join(contract.labels[:5]) + (", ..." if len(contract.labels) > 5 else "")
    yield f"task       {contract.task}"
    yield f"labels     {len(contract.labels)}: {shown}"
    yield f"backbone   {contract.backbone}"
    yield f"size       {contract.size[0]} x {contract.size[1]} (height x width)"
    yield f"license    {contract.license or 'not stated'}"
    yield f"versions   {', '.join(f'{k} {v}' for k, v in sorted(contract.versions.items()))}"
    if model.judge is not None:
        yield from _rule_lines(model.judge)
    yield f"device     {model.device}"
    for name, size in files.items():
        yield f"{size:>12,} B  {name}"


def _rule_lines(judge: Judge) -> Iterator[str]:
    crop, rules = judge.crop, judge.decision
    faces = f", {crop.policy} face, {crop.detector}" if crop.source == "faces" else ""
    yield f"crop       {crop.source}, {crop.size} pixels, margin {crop.margin:g}{faces}"
    yield f"frames     {rules.num_frames} of a video"
    if rules.threshold is None:
        yield "threshold  0.5 assumed: not calibrated"
        return
    basis = ""
    if rules.fpr is not None and rules.num_reals is not None:
        basis = f", for {rules.fpr:.1%} false alarms, fitted on {rules.num_reals} real ones"
    yield f"threshold  {sigmoid(rules.threshold):.4f}{basis}"


if __name__ == "__main__":
    sys.exit(main())
