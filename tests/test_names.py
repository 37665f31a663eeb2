"""What things are called: verbs for functions, nouns for values, one name for one thing, American spelling."""

import ast
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {"vfm": ROOT / "vfm", "vfm_runtime": ROOT / "export" / "vfm_runtime"}
VERBS = frozenset((Path(__file__).parent / "verbs.txt").read_text(encoding="utf-8").split())
"""First words of function names; add to the file where a verb is missing."""
LEAST_VERBS = 0.9
"""Fraction of the functions whose names begin with a verb."""
MOST_ONE_CALL_HELPERS = 60
"""Private functions of at most 8 lines that are called once: each names an idea."""
MOST_BARE_ARGUMENTS = 20
"""Entries of `Args:` that do not stand alone."""
LONG_FUNCTION = 40
VAGUE = frozenset(["found", "given", "made", "there", "known", "kept", "own", "place", "places"])
BRITISH = re.compile(
    "normalis|colour|licence|quantis|centre|optimis|serialis|initialis|labell(?!ayout)|grey|behaviour|neighbour|favour|"
    "summaris|recognis|organis|regularis|tokenis|generalis|minimis|maximis|catalogue",
    re.IGNORECASE,
)
# What torch, Lightning and Python call it.
FOREIGN_NAMES = frozenset(
    (
        *(
            "forward",
            "training_step",
            "validation_step",
            "test_step",
            "predict_step",
            "teardown",
            "main",
        ),
        *(
            "configure_optimizers",
            "configure_callbacks",
            "configure_model",
            "configure_gradient_clipping",
        ),
        *("train_dataloader", "val_dataloader", "test_dataloader", "predict_dataloader"),
        *("state_dict", "load_state_dict", "extra_repr"),
    )
)
VALUES = frozenset({"property", "cached_property", "override", "setter"})

Function = ast.FunctionDef | ast.AsyncFunctionDef


def parse(package: Path) -> dict[Path, ast.Module]:
    return {p: ast.parse(p.read_text(encoding="utf-8")) for p in sorted(package.rglob("*.py"))}


TREES = {name: parse(folder) for name, folder in PACKAGES.items()}


def iterate_nodes() -> Iterator[tuple[str, ast.AST]]:
    for package in TREES.values():
        for path, tree in package.items():
            where = path.relative_to(ROOT).as_posix()
            yield from ((where, node) for node in ast.walk(tree))


def is_named_here(node: Function) -> bool:
    """Whether the name is of our choice, and is a function's."""
    decorators = {getattr(d, "id", getattr(d, "attr", "")) for d in node.decorator_list}
    foreign = node.name in FOREIGN_NAMES or node.name.startswith(("__", "on_"))
    return not foreign and not decorators & VALUES


def list_functions() -> list[tuple[str, Function]]:
    return [(w, n) for w, n in iterate_nodes() if isinstance(n, Function) and is_named_here(n)]


def starts_with_verb(name: str) -> bool:
    return name.lstrip("_").split("_")[0] in VERBS


def list_variables(function: Function) -> set[str]:
    nodes = list(ast.walk(function))
    arguments = {n.arg for n in nodes if isinstance(n, ast.arg)}
    return arguments | {
        n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
    }


def list_bare_arguments(docstring: str) -> list[str]:
    """Entries of `Args:` that say nothing by themselves: of few words, or about a thing that is not named."""
    _, _, section = docstring.partition("Args:")
    bare = []
    for line in section.split("\n\n")[0].splitlines():
        name, colon, text = line.strip().partition(": ")
        short = text.startswith(("Of ", "As ", "Its ")) or len(text.split()) <= 3
        if colon and " " not in name and short:
            bare.append(name)
    return bare


FUNCTIONS = list_functions()


def test_functions_begin_with_a_verb():
    others = [f"{where}: {f.name}" for where, f in FUNCTIONS if not starts_with_verb(f.name)]
    assert len(FUNCTIONS) > 1000
    assert 1 - len(others) / len(FUNCTIONS) >= LEAST_VERBS, "\n".join(others)


def test_variables_say_what_they_hold():
    vague = {f"{where}: {f.name}": list_variables(f) & VAGUE for where, f in FUNCTIONS}
    assert {name: words for name, words in vague.items() if words} == {}


@pytest.mark.parametrize("package", PACKAGES)
def test_no_two_public_types_share_a_name(package):
    places = defaultdict(list)
    for path, tree in TREES[package].items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(path.name)
    assert {name: paths for name, paths in places.items() if len(paths) > 1} == {}


def test_identifiers_are_spelled_as_in_america():
    names = {
        (where, name)
        for where, node in iterate_nodes()
        for name in (getattr(node, field, None) for field in ("name", "id", "attr", "arg"))
        if isinstance(name, str) and BRITISH.search(name)
    }
    paths = {p for package in TREES.values() for p in package if BRITISH.search(p.stem)}
    assert names | paths == set()


def test_arguments_that_are_described_stand_alone():
    bare = [
        f"{where}: {node.name}({name})"
        for where, node in iterate_nodes()
        if isinstance(node, Function | ast.ClassDef)
        for name in list_bare_arguments(ast.get_docstring(node) or "")
    ]
    assert len(bare) <= MOST_BARE_ARGUMENTS, "\n".join(bare)


def test_bare_arguments_are_recognized():
    docstring = "Draw.\n\nArgs:\n    seed: Of the choice.\n    n: Count.\n    boxes: Boxes [N, 4] in pixels."
    assert list_bare_arguments(docstring) == ["seed", "n"]


def test_few_helpers_are_called_once():
    uses = Counter(
        node.attr if isinstance(node, ast.Attribute) else node.id
        for _, node in iterate_nodes()
        if isinstance(node, ast.Attribute)
        or (isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load))
    )
    helpers = [
        f"{where}: {f.name}"
        for where, f in FUNCTIONS
        if f.name.startswith("_") and f.end_lineno - f.lineno < 8 and uses[f.name] == 1
    ]
    assert len(helpers) <= MOST_ONE_CALL_HELPERS, "\n".join(helpers)


def test_most_functions_are_short():
    lengths = sorted(f.end_lineno - f.lineno + 1 for _, f in FUNCTIONS)
    assert lengths[len(lengths) * 9 // 10] < LONG_FUNCTION
