"""A task is one thing: generic code never asks which one it has, and nothing goes in a circle."""

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.test_imports import imported

ROOT = Path(__file__).parents[1]
PACKAGES = (ROOT / "vfm", ROOT / "export" / "vfm_runtime")
TASK_NAMES = {
    "classification", "multilabel", "detection", "deepfake", "embedding", "multi_head", "several"
}  # fmt: skip
# Predictions and tasks, of which generic code must not ask which one it has.
TASK_CLASSES = re.compile(
    r"(\w*Task|\w*Type|Prediction|\w+Predictions?|Detections|Verdict|Numbers|Mask)$"
)
GENERIC_CLASSES = {"TaskType", "BaseTask", "Prediction"}
# Where a task's own code lies.
OF_TASKS = ("vfm/tasks/", "vfm/deepfake/", "vfm_runtime/tasks/", "vfm_runtime/deepfake/")
# "path: code" of a line that may ask, and why.
ALLOWED: dict[str, str] = {}
DEEPFAKE = re.compile(r"deepfake|\bfakes?\b|Fake[A-Z]|[a-z]Fakes?\b|forged|forger")
NAMES_DEEPFAKES = {
    "vfm/__init__.py": "public names",
    "vfm/cli/__init__.py": "table of commands",
    "vfm/models/presets.py": "what each backbone is good for",
    "vfm/renames.py": "names of earlier versions",
    "vfm_runtime/__init__.py": "public names",
    "vfm_runtime/tasks/registry.py": "table of tasks",
}


def sources() -> Iterator[tuple[str, Path]]:
    for top in PACKAGES:
        for path in sorted(top.rglob("*.py")):
            yield path.relative_to(top.parent).as_posix(), path


def modules(top: Path) -> dict[str, Path]:
    named = {}
    for path in top.rglob("*.py"):
        parts = path.relative_to(top.parent).with_suffix("").parts
        named[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return named


def graph(top: Path) -> dict[str, set[str]]:
    """What each module imports of its own package: at load time, in functions, for type checks."""
    named = modules(top)
    edges: dict[str, set[str]] = {}
    for module, path in named.items():
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        targets = set()
        for _, name in imported(path, package):
            targets |= {t for t in (name, name.rpartition(".")[0]) if t in named}
            if name in named:
                targets.discard(name.rpartition(".")[0])
        edges[module] = targets - {module}
    edges[top.name] = set()  # the public names of a package are imported on first use
    return edges


@pytest.mark.parametrize("top", PACKAGES, ids=lambda top: top.name)
def test_no_module_imports_itself_by_way_of_others(top):
    TopologicalSorter(graph(top)).prepare()  # raises a CycleError that names the modules


def test_a_circle_is_found(tmp_path):
    (tmp_path / "a.py").write_text("def f():\n    from p import b\n")
    (tmp_path / "b.py").write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from p.c import C\n"
    )
    (tmp_path / "c.py").write_text("import p.a\n")
    (tmp_path / "d.py").write_text("import p.a\n")
    package = tmp_path.rename(tmp_path.with_name("p"))
    with pytest.raises(CycleError, match=r"p\.a.*p\.[bc]"):
        TopologicalSorter(graph(package)).prepare()


def questions(tree: ast.AST) -> Iterator[ast.AST]:
    """Nodes that ask which task there is: isinstance of one, or a comparison with a task's name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("isinstance", "issubclass"):
            classes = re.findall(r"\w+", ast.unparse(node.args[1]))
            asked = [c for c in classes if TASK_CLASSES.match(c) and c not in GENERIC_CLASSES]
            if asked and not set(classes) <= {"StepType"}:
                yield node
        elif isinstance(node, ast.Compare):
            constants = [c for c in ast.walk(node) if isinstance(c, ast.Constant)]
            if any(c.value in TASK_NAMES for c in constants if isinstance(c.value, str)):
                yield node
        elif isinstance(node, ast.match_case):
            constants = [c for c in ast.walk(node.pattern) if isinstance(c, ast.Constant)]
            if any(c.value in TASK_NAMES for c in constants if isinstance(c.value, str)):
                yield node.pattern


def test_generic_code_never_asks_which_task_it_has():
    asked = {
        f"{name}: {ast.unparse(node)}"
        for name, path in sources()
        if not name.startswith(OF_TASKS)
        for node in questions(ast.parse(path.read_text(encoding="utf-8")))
    }
    assert asked == set(ALLOWED)
    assert len(ALLOWED) <= 10


@pytest.mark.parametrize(
    ("code", "number"),
    [
        ("isinstance(task, DetectionTask)", 1),
        ("isinstance(answer, (Verdict, Detections))", 1),
        ("kind == 'deepfake'", 1),
        ("task.kind in ('detection', 'x')", 1),
        ("match kind:\n    case 'multilabel': pass", 1),
        ("isinstance(task, BaseTask)", 0),
        ("kind == 'jpeg'", 0),
        ("table['detection'](task)", 0),
    ],
)
def test_a_question_is_found(code, number):
    assert len(list(questions(ast.parse(code)))) == number


def test_nothing_outside_its_folders_names_deepfakes():
    naming = {}
    for name, path in sources():
        if "/deepfake/" in name or name in NAMES_DEEPFAKES:
            continue
        lines = path.read_text(encoding="utf-8").splitlines()
        found = [f"{i}: {line.strip()}" for i, line in enumerate(lines, 1) if DEEPFAKE.search(line)]
        if found:
            naming[name] = found
    assert naming == {}
