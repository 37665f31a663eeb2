"""Every error that a user can meet is a VfmError, besides a built-in one."""

import ast
import builtins
from collections.abc import Iterator
from pathlib import Path

import pytest
import vfm_runtime

import vfm

ROOT = Path(__file__).parents[1]
SOURCES = sorted(p for top in ("vfm", "export/vfm_runtime") for p in (ROOT / top).rglob("*.py"))
ALLOWED = {
    "AttributeError",  # what Python asks of a module's __getattr__
    "SystemExit",  # a command's own status
    "Exception",  # base of VfmError itself
}
BUILT_IN = {
    name
    for name, value in vars(builtins).items()
    if isinstance(value, type) and issubclass(value, BaseException)
} - ALLOWED


def find_bare(tree: ast.Module) -> Iterator[str]:
    """Raises of built-in errors, and error classes that derive from nothing else."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and node.exc is not None:
            error = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
            if ast.unparse(error) in BUILT_IN:
                yield f"line {node.lineno} raises {ast.unparse(error)}"
        elif isinstance(node, ast.ClassDef) and node.name not in ("VfmError", *BUILT_IN):
            bases = [ast.unparse(base) for base in node.bases]
            if bases and all(base in {*BUILT_IN, "Exception"} for base in bases):
                yield f"{node.name} derives from {bases[0]} alone"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_errors_are_vfm_errors(path):
    assert list(find_bare(ast.parse(path.read_text(encoding="utf-8")))) == []


def test_bare_errors_are_found():
    code = "class A(ValueError): ...\nclass B(VfmError, OSError): ...\nraise TypeError('x')\nraise KeyError"
    assert len(list(find_bare(ast.parse(code)))) == 3


def test_errors_keep_their_built_in_base():
    assert vfm.VfmError is vfm_runtime.VfmError
    for error, base in [
        (vfm_runtime.BundleError, ValueError),
        (vfm_runtime.ContractError, ValueError),
        (vfm_runtime.ProviderError, RuntimeError),
        (vfm_runtime.ImageError, ValueError),
    ]:
        assert issubclass(error, vfm.VfmError)
        assert issubclass(error, base)
