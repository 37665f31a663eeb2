"""Files stay short, public things say what they are, and nothing large is kept."""

import ast
import fnmatch
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MOST_LINES = 500
MOST_BYTES = 500_000
PACKAGES = (ROOT / "vfm", ROOT / "export" / "vfm_runtime")
# Weights of the face detector, which production needs without a download, and of a detector's head, which no hub has.
VENDORED = {
    "export/vfm_runtime/deepfake/faces/weights/onet.onnx",
    "vfm/models/heads/objects.safetensors",
}
# What these say is for the user.
SPEAKERS = (
    "vfm/cli/",
    "vfm/demo.py",
    "vfm/tune/",
    "vfm/embed/command.py",
    "vfm/search/command.py",
    "vfm/search/cluster_command.py",
    "vfm/search/index_command.py",
    "vfm/search/map_command.py",
    "vfm/search/duplicates_command.py",
    "vfm/incontext/command.py",
    "vfm/bundle/export.py",
    "vfm/deepfake/data/extract.py",
    "vfm/tasks/calibrate.py",
    "vfm/pretrain/command.py",
    "vfm/audit/command.py",
    "vfm/audit/doctor/command.py",
    "vfm/deepfake/shortcuts/command.py",
    "export/vfm_runtime/cli.py",
    "export/vfm_runtime/printing.py",
    "export/vfm_runtime/teaching/command.py",
    "export/vfm_runtime/verify_command.py",
)

SOURCES = sorted(path for package in PACKAGES for path in package.rglob("*.py"))


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def kept_files() -> Iterator[Path]:
    """Every file but those that git ignores."""
    lines = (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    ignored = [".git", *(line.strip().strip("/") for line in lines if line.strip())]
    for folder, folders, files in os.walk(ROOT):
        folders[:] = [f for f in folders if not any(fnmatch.fnmatch(f, i) for i in ignored)]
        yield from (Path(folder, f) for f in files)


def undocumented(tree: ast.Module) -> Iterator[str]:
    if not ast.get_docstring(tree):
        yield "the module"
    yield from _undocumented(tree, "")


def _undocumented(scope: ast.Module | ast.ClassDef, prefix: str) -> Iterator[str]:
    for node in scope.body:
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        overload = any(ast.unparse(d) == "overload" for d in node.decorator_list)
        if node.name.startswith("_") or overload:
            continue
        if not ast.get_docstring(node):
            yield prefix + node.name
        if isinstance(node, ast.ClassDef):
            yield from _undocumented(node, f"{node.name}.")


def printing(tree: ast.Module) -> list[int]:
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call))
    return [c.lineno for c in calls if isinstance(c.func, ast.Name) and c.func.id == "print"]


def test_no_file_is_long():
    paths = [p for top in ("vfm", "export", "tests") for p in (ROOT / top).rglob("*.py")]
    counts = {name(p): len(p.read_text(encoding="utf-8").splitlines()) for p in paths}
    assert len(counts) > 50
    assert {n: count for n, count in counts.items() if count > MOST_LINES} == {}


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_public_things_have_a_docstring(path):
    assert list(undocumented(ast.parse(path.read_text(encoding="utf-8")))) == []


def test_missing_docstrings_are_found():
    code = "class A:\n  def f(self): ...\n  def _g(self): ...\ndef h(): ...\ndef _i(): ..."
    assert list(undocumented(ast.parse(code))) == ["the module", "A", "A.f", "h"]


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_only_commands_print(path):
    if name(path).startswith(SPEAKERS):
        return
    assert printing(ast.parse(path.read_text(encoding="utf-8"))) == []


def test_no_file_is_large():
    sizes = {name(path): path.stat().st_size for path in kept_files()}
    assert "pyproject.toml" in sizes
    assert {n for n, size in sizes.items() if size > MOST_BYTES} == VENDORED
