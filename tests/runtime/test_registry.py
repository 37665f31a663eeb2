"""Tasks by name: built in, registered, from installed packages, and never from what a bundle says."""

import json
import subprocess
import sys
from importlib.metadata import EntryPoint

import pytest
from vfm_runtime import ContractError, register_task
from vfm_runtime.bundle.contract import Contract
from vfm_runtime.tasks import registry
from vfm_runtime.tasks.classification import ClassificationType

from tests.runtime import toy

EXTENSION = {"tiles": {"side": 512, "overlap": 0.2}}


class Guess(ClassificationType):
    """A task of a package."""

    name = "guess"
    package = "guess-tasks"


@pytest.fixture
def table(monkeypatch):
    """A table of tasks that is as before afterwards."""
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))


def values(**changes):
    return {**toy.CONTRACT, "format": 2, **changes}


def test_a_task_is_registered_once_by_its_name(table):
    assert register_task(Guess) is Guess
    assert register_task(Guess) is Guess
    assert type(Contract.from_dict(values(task="guess")).type) is Guess
    other = type("Other", (Guess,), {})
    with pytest.raises(
        ValueError, match=r"There is a task 'guess' already. Give Other another name"
    ):
        register_task(other)
    with pytest.raises(ValueError, match="There is a task 'detection' already"):
        register_task(type("Mine", (Guess,), {"name": "detection"}))
    for name in ("multi_head", "My Task", "os.path", ""):
        with pytest.raises(ValueError, match="cannot be called"):
            register_task(type("Mine", (Guess,), {"name": name}))


def test_a_task_of_an_installed_package_is_found_by_its_entry_point(table, monkeypatch):
    point = EntryPoint("guess", "tests.runtime.test_registry:Guess", registry.GROUP)
    monkeypatch.setattr(registry, "entry_points", lambda group: [point])
    assert registry.find_task_type("guess").name == "guess"
    assert "guess" in registry.list_tasks()


@pytest.mark.parametrize(
    ("changes", "remedy"),
    [
        ({}, "Install the package that brings it, or upgrade vfm-runtime."),
        ({"package": "guess-tasks"}, "Install what brings it: pip install guess-tasks"),
        ({"package": "x; rm -rf /"}, "Install the package that brings it, or upgrade vfm-runtime."),
        ({"package": 3}, "Install the package that brings it, or upgrade vfm-runtime."),
    ],
)
def test_an_unknown_task_says_what_to_install(table, changes, remedy):
    with pytest.raises(ContractError) as caught:
        Contract.from_dict(values(task="guess", **changes))
    assert str(caught.value).startswith("The contract's 'task' is 'guess'; expected one of classif")
    assert str(caught.value).endswith(remedy)


@pytest.mark.parametrize(
    "name", ["tests.toys.runtime:NumbersType", "antigravity", "os", "os.path", ["os"]]
)
def test_a_bundle_cannot_make_the_runtime_import_anything(name, tmp_path):
    contract = tmp_path / "contract.json"
    contract.write_text(json.dumps(values(task=name, package="antigravity")))
    code = f"""
import json, sys
from pathlib import Path
from vfm_runtime.bundle.contract import Contract
from vfm_runtime.errors import ContractError
before = set(sys.modules)
try:
    Contract.from_dict(json.loads(Path({str(contract)!r}).read_text()))
except ContractError:
    more = sorted(set(sys.modules) - before)
    print([m for m in more if not m.startswith(("importlib", "email", "zipfile", "csv"))])
"""
    run = [sys.executable, "-c", code]
    found = subprocess.run(run, capture_output=True, text=True, check=True).stdout
    assert not {"antigravity", "tests", "tests.toys.runtime"} & set(eval(found))


def test_extensions_that_are_heeded():
    contract = Contract.from_dict(
        values(
            embedding={"output": "embedding"},
            class_matrix={"input": "classes"},
            value_range={"low": 0, "high": 4095},
        )
    )
    assert contract.value_range == (0, 4095)
    assert contract.ports()[1] == {"scores": "float", "embedding": "float"}
    assert Contract.from_json(contract.to_json()) == contract
    with pytest.raises(
        ContractError, match=r"'embedding' is {'output': 'a.b'}; expected an output"
    ):
        Contract.from_dict(values(embedding={"output": "a.b"}))
    whole = {"output": "e", "source": "pooled", "normalize": True, "fingerprint": "1a"}
    assert Contract.from_dict(values(embedding=whole)).embedding.fingerprint == "1a"
    for wrong in ({"source": "pooled"}, {**whole, "normalize": 1}, {**whole, "more": 1}, "e"):
        with pytest.raises(ContractError, match=r"'embedding' is .*; expected an output"):
            Contract.from_dict(values(embedding=wrong))
    for limits in ({"low": 1, "high": 1}, {"low": 0}, {"low": 0, "high": True}, [0, 9]):
        with pytest.raises(ContractError, match=r"'value_range' is .*low below high"):
            Contract.from_dict(values(value_range=limits))
    with pytest.raises(ContractError, match="there is from format 2 on; its format is 1"):
        Contract.from_dict({**values(**EXTENSION), "format": 1})
