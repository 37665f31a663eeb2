"""Packages import downwards only."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROWS = {
    9: {"cli", "api", "demo", "tune"},
    8: {"audit", "incontext", "pretrain"},
    7: {"search", "cost"},
    6: {"deepfake", "embed"},
    5: {"bundle"},
    4: {"tasks", "quantization"},
    3: {"training"},
    2: {"models", "losses", "metrics", "data", "heads_on_features"},
    1: {"dependencies", "spec", "types", "preprocess", "report"},
    0: {"vfm_runtime", "renames"},
}
ROW = {name: row for row, names in ROWS.items() for name in names}
RUNTIME_MAY = {"numpy", "PIL", "onnxruntime", "av", "vfm_runtime"} | set(sys.stdlib_module_names)
# What an extra installs, by the only file that may import it.
EXTRAS_MAY = {"text.py": {"tokenizers", "ftfy"}, "provenance.py": {"c2pa"}}
SERVER_MAY = {"fastapi", "starlette", "uvicorn", "prometheus_client", "pydantic"}
# The only place that may import the package.
ONLY = {
    "albumentations": "vfm/data/transforms.py",
    "supervision": "vfm_runtime/tasks/detection.py",
}


def imported(path: Path, package: str) -> Iterator[tuple[int, str]]:
    """Line and full dotted name of everything that a file imports, at any depth.

    Args:
        path: The file.
        package: The dotted name of the package that it lies in, for relative imports.
    """
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            base = ".".join(parts[: len(parts) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, (base, node.module)))
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(
            ("import_module", "__import__")
        ):
            literal = node.args and isinstance(node.args[0], ast.Constant)
            if literal:
                yield node.lineno, str(node.args[0].value)


def breaches(vfm: Path, runtime: Path) -> list[str]:
    """Every import that goes up, goes sideways, or is not for that place."""
    found = []
    for top in (vfm, runtime):
        for path in sorted(top.rglob("*.py")):
            place = path.relative_to(top.parent)
            package = ".".join(place.parts[:-1])
            for line, name in imported(path, package):
                for reason in reasons(place, name):
                    found.append(f"{place.as_posix()}:{line}: {name}: {reason}")
    return found


def reasons(place: Path, name: str) -> Iterator[str]:
    top, _, rest = name.partition(".")
    own = home(place)
    if top in ONLY and place.as_posix() != ONLY[top]:
        yield f"only {ONLY[top]} may"
    if own == "vfm_runtime":
        may = RUNTIME_MAY | (SERVER_MAY if "server" in place.parts else set())
        may |= EXTRAS_MAY.get(place.name, set())
        if top not in may and top not in ONLY:
            yield "the runtime does without it"
        return
    if top not in ("vfm", "vfm_runtime") or place.as_posix() == "vfm/__init__.py":
        return
    target = top if top == "vfm_runtime" else rest.partition(".")[0]
    if target in ("", own) or (target == "__version__" and top == "vfm"):
        return
    if target not in ROW:
        yield "not a package with a row"
    elif own not in ROW:
        yield f"'{own}' has no row"
    elif ROW[target] >= ROW[own]:
        yield f"row {ROW[own]} to row {ROW[target]}"


def home(place: Path) -> str:
    if place.parts[0] == "vfm_runtime":
        return "vfm_runtime"
    return Path(place.parts[1]).stem


def test_packages_import_lower_rows_only():
    assert breaches(ROOT / "vfm", ROOT / "export" / "vfm_runtime") == []


def test_every_package_has_a_row():
    names = {
        path.stem
        for path in (ROOT / "vfm").iterdir()
        if (path.suffix == ".py" or (path / "__init__.py").is_file())
    } - {"__init__"}
    assert names <= set(ROW)
    assert {"cli", "bundle", "tasks", "models", "data", "spec"} <= names


@pytest.mark.parametrize(
    ("place", "code", "breach"),
    [
        ("vfm/data/x.py", "from vfm.tasks import BaseTask", "row 2 to row 4"),
        ("vfm/data/x.py", "import vfm.models.backbone", "row 2 to row 2"),
        ("vfm/data/x.py", "from vfm import bundle", "row 2 to row 5"),
        ("vfm/data/x.py", "from vfm import load", "not a package with a row"),
        ("vfm/data/x.py", "from ..cli import main", "row 2 to row 9"),
        ("vfm/demo.py", "from vfm.cli.errors import suggest", "row 9 to row 9"),
        ("vfm/tasks/x.py", "def f():\n    import vfm.bundle", "row 4 to row 5"),
        (
            "vfm/spec.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from vfm.types import Raw",
            "row 1 to row 1",
        ),
        ("vfm/report/x.py", "importlib.import_module('vfm.tasks')", "row 1 to row 4"),
        ("vfm/extra/x.py", "import vfm.spec", "'extra' has no row"),
        ("vfm/models/x.py", "import albumentations as A", "only vfm/data/transforms.py may"),
        ("vfm_runtime/x.py", "import torch", "the runtime does without it"),
        ("vfm_runtime/x.py", "from vfm.spec import Spec", "the runtime does without it"),
        ("vfm_runtime/x.py", "import fastapi", "the runtime does without it"),
        ("vfm_runtime/x.py", "def f():\n    from sklearn import x", "the runtime does without it"),
    ],
)
def test_a_breach_is_found(tmp_path, place, code, breach):
    path = tmp_path / place
    path.parent.mkdir(parents=True)
    path.write_text(code + "\n")
    found = breaches(tmp_path / "vfm", tmp_path / "vfm_runtime")
    assert len(found) == 1
    assert found[0].startswith(f"{place}:")
    assert found[0].endswith(breach)


@pytest.mark.parametrize(
    ("place", "code"),
    [
        ("vfm/tasks/x.py", "from vfm.data import ImageData\nfrom . import optim\nimport torch"),
        ("vfm/tasks/x.py", "from .optim import Optim\nfrom vfm.tasks.base import BaseTask"),
        ("vfm/cli/__init__.py", "from vfm import __version__\nfrom vfm_runtime import bundle"),
        ("vfm/data/transforms.py", "import albumentations"),
        ("vfm/__init__.py", "from vfm.api import load"),
        ("vfm_runtime/x.py", "import json, numpy, onnxruntime\nfrom PIL import Image"),
        ("vfm_runtime/x.py", "from .types import Prediction\nimport vfm_runtime.bundle.model"),
        ("vfm_runtime/server/x.py", "from fastapi import FastAPI\nimport uvicorn"),
    ],
)
def test_what_is_allowed_passes(tmp_path, place, code):
    path = tmp_path / place
    path.parent.mkdir(parents=True)
    path.write_text(code + "\n")
    assert breaches(tmp_path / "vfm", tmp_path / "vfm_runtime") == []
