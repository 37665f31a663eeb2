"""Command `verify`: what the content credentials of files prove, and beside it what a bundle says, never merged."""

import argparse
import json
from pathlib import Path
from typing import Any

from vfm_runtime.bundle.model import Model, load
from vfm_runtime.bundle.precision import PRECISIONS
from vfm_runtime.bundle.providers import DEVICES
from vfm_runtime.errors import DataError
from vfm_runtime.media.image import ImageError
from vfm_runtime.provenance import CredentialState, TrustList, read_credentials

_OK, _FAILED = 0, 1
_RANKS = list(CredentialState)
_WIDTH = 13


def add_command(commands: Any) -> argparse.ArgumentParser:
    """Add the command to those of a parser, as `add_subparsers` returns them, and return its own."""
    verify: argparse.ArgumentParser = commands.add_parser(
        "verify",
        help="check the content credentials (C2PA) of files, beside the answer of a bundle",
    )
    verify.add_argument("files", metavar="FILE", nargs="+", type=Path)
    verify.add_argument(
        "--trust-list",
        metavar="PEM",
        type=Path,
        action="append",
        default=[],
        help="certificates of authorities that you trust; any number of times. Without it no signer is trusted",
    )
    verify.add_argument(
        "--require",
        choices=[str(CredentialState.VALID), str(CredentialState.TRUSTED)],
        help="fail where a file's credentials are less; by default broken ones alone fail",
    )
    verify.add_argument("--bundle", help="also answer by this bundle, on lines of its own")
    verify.add_argument("--device", choices=DEVICES, default="auto", help="of the bundle")
    verify.add_argument("--precision", choices=PRECISIONS, default="auto", help="of the bundle")
    verify.add_argument("--json", action="store_true", help="one JSON object a line and file")
    verify.add_argument("--debug", action="store_true", help="show the traceback of an error")
    verify.set_defaults(run=_verify)
    return verify


def _verify(options: argparse.Namespace) -> int:
    trust_lists = [TrustList.read(path) for path in options.trust_list]
    model = None
    if options.bundle is not None:
        model = load(options.bundle, device=options.device, precision=options.precision)
    least = _RANKS.index(CredentialState(options.require or CredentialState.NONE))
    code = _OK
    for path in options.files:
        answer: dict[str, Any] = {"file": str(path)}
        try:
            credentials = read_credentials(path, trust_lists)
        except DataError as error:
            answer |= {"error": str(error)}
            lines, code = [("error", str(error))], _FAILED
        else:
            lines = list(credentials.describe())
            answer |= {"credentials": credentials.to_dict()}
            is_broken = credentials.state is CredentialState.BROKEN
            if is_broken or _RANKS.index(credentials.state) < least:
                code = _FAILED
            if model is not None:
                lines += _ask(model, path, answer)
                code = max(code, _FAILED if "error" in answer else _OK)
        if options.json:
            print(json.dumps(answer))
            continue
        print(path)
        for name, text in lines:
            print(f"  {name:<{_WIDTH}} {text}")
    return code


def _ask(model: Model, path: Path, answer: dict[str, Any]) -> list[tuple[str, str]]:
    """The model's answer and what is known of its errors, as rows of the sheet, and into the JSON."""
    (prediction,) = model.predict([path], errors="return")
    if isinstance(prediction, ImageError):
        answer |= {"error": str(prediction)}
        return [("error", str(prediction))]
    rules = {
        f"{name} {rule}".strip(): text
        for name, head in model.task_type.heads.items()
        for rule, text in head.describe_rules()
    }
    answer |= {"prediction": prediction.to_dict(), "rules": rules}
    return [("model", line) for line in prediction.lines()] + list(rules.items())
