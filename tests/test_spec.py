from __future__ import annotations

import sys
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import numpy as np
import pytest
import torch

from vfm.spec import Component, SpecError, build, check_trust, get_class_path


@dataclass(frozen=True)
class Settings:
    rate: float = 0.5
    betas: tuple[float, float] = (0.9, 0.99)


class Colour(str, Enum):  # noqa: UP042 - the kind of enum that is meant
    RED = "red"


class Part(Component):
    def __init__(self, size: int, name: str = "part") -> None:
        self.size = size
        self.name = name


class Whole(Component):
    def __init__(
        self,
        part: Part,
        *,
        settings: Settings = Settings(),
        folder: Path | None = None,
        table: dict[str, list[int]] | None = None,
        **more: int,
    ) -> None:
        self.part = part
        self.settings = settings
        self.folder = folder
        self.table = table
        self.more = more


class Derived(Part):
    def __init__(self, factor: int) -> None:
        super().__init__(size=factor * 10)
        self.factor = factor


class Anything(Component):
    def __init__(self, value: object) -> None:
        self.value = value


class Several(Component):
    def __init__(self, parts: list[Part], settings: Settings | None = None) -> None:
        self.parts = parts
        self.settings = settings


class NotAComponent:
    pass


HERE = __name__


def trusted(spec: dict, base: type = Component) -> object:
    return build(spec, base=base, trust=[HERE])


def test_arguments_are_recorded_with_their_defaults() -> None:
    assert Part(3).spec == {
        "class_path": f"{HERE}.Part",
        "init_args": {"size": 3, "name": "part"},
    }


def test_everything_plain_is_recorded() -> None:
    whole = Whole(
        Part(2, name="p"),
        settings=Settings(rate=0.25),
        folder=Path("some") / "where",
        table={"a": [1, 2]},
        extra=7,
    )
    assert whole.spec["init_args"] == {
        "part": {"class_path": f"{HERE}.Part", "init_args": {"size": 2, "name": "p"}},
        "settings": {"rate": 0.25, "betas": [0.9, 0.99]},
        "folder": str(Path("some/where")),
        "table": {"a": [1, 2]},
        "extra": 7,
    }


def test_only_the_outermost_constructor_is_recorded() -> None:
    derived = Derived(4)
    assert derived.size == 40
    assert derived.spec["init_args"] == {"factor": 4}


def test_a_wrong_call_fails_as_python_does() -> None:
    with pytest.raises(TypeError, match="nonsense"):
        Part(1, nonsense=2)  # type: ignore[call-arg]


def test_build_makes_an_equal_component() -> None:
    whole = Whole(Part(2), settings=Settings(rate=0.25), table={"a": [1]}, extra=7)
    made = trusted(whole.spec)
    assert isinstance(made, Whole)
    assert made is not whole
    assert isinstance(made.part, Part)
    assert made.part.size == 2
    assert made.settings.rate == 0.25
    assert made.table == {"a": [1]}
    assert made.more == {"extra": 7}
    assert made.spec == whole.spec


def test_components_in_lists_and_optional_dataclasses_are_rebuilt() -> None:
    several = Several([Part(1), Part(2)], Settings(rate=0.125))
    made = trusted(several.spec)
    assert [type(part) for part in made.parts] == [Part, Part]
    assert [part.size for part in made.parts] == [1, 2]
    assert made.settings.rate == 0.125
    assert made.spec == several.spec


@pytest.mark.parametrize("value", [object(), torch.zeros(2), {1, 2}, len, Part, b"ab"])
def test_an_argument_that_is_not_plain_is_named(value: object) -> None:
    with pytest.raises(SpecError) as caught:
        _ = Anything([{"deep": value}]).spec
    text = str(caught.value)
    assert text.startswith(f"A checkpoint cannot remember {HERE}.Anything(value)[0]['deep']: it is")
    assert get_class_path(type(value)) in text
    assert "Pass what the object is made from instead." in text


def test_subclasses_of_numbers_and_text_are_recorded_as_plain_ones(tmp_path: Path) -> None:
    values = [np.float64(0.5), np.str_("text"), Colour.RED, True, 3]
    spec = Anything(values).spec
    found = spec["init_args"]["value"]
    assert found == [0.5, "text", "red", True, 3]
    assert [type(value) for value in found] == [float, str, str, bool, int]
    torch.save(spec, tmp_path / "spec.pt")
    assert torch.load(tmp_path / "spec.pt", weights_only=True) == spec


@pytest.fixture
def flagged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Modules whose import leaves a file behind."""
    flag = tmp_path / "imported"
    for name in ("specpkg", "specpkgevil"):
        (tmp_path / f"{name}.py").write_text(
            f"from pathlib import Path\nPath({str(flag)!r}).touch()\n"
            "from vfm.spec import Component\n\n"
            "class Thing(Component):\n    def __init__(self, x: int = 1) -> None:\n        self.x = x\n"
        )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield flag
    for name in ("specpkg", "specpkgevil"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("trust", [[], ["other"], ["specpk"], [""]])
def test_nothing_is_imported_before_it_is_trusted(flagged: Path, trust: list[str]) -> None:
    with pytest.raises(SpecError) as caught:
        build({"class_path": "specpkg.Thing", "init_args": {}}, base=Component, trust=trust)
    assert not flagged.exists()
    assert "specpkg" not in sys.modules
    text = str(caught.value)
    assert "'specpkg.Thing', whose code is not part of vfm; loading would run it" in text
    assert "trust=['specpkg'] in Python, --trust specpkg on the command line" in text


def test_a_trusted_package_is_imported(flagged: Path) -> None:
    spec = {"class_path": "specpkg.Thing", "init_args": {"x": 5}}
    assert build(spec, base=Component, trust=["specpkg"]).x == 5
    assert flagged.exists()


def test_trust_does_not_cover_a_longer_name(flagged: Path) -> None:
    spec = {"class_path": "specpkgevil.Thing", "init_args": {}}
    with pytest.raises(SpecError, match="specpkgevil"):
        build(spec, base=Component, trust=["specpkg"])
    assert not flagged.exists()


def test_a_name_that_begins_like_vfm_is_not_vfm() -> None:
    with pytest.raises(SpecError, match="not part of vfm"):
        build({"class_path": "vfmevil.Thing", "init_args": {}}, base=Component)


def test_trust_in_a_package_covers_its_modules() -> None:
    check_trust({"class_path": "mypkg.heads.small.Head", "init_args": {}}, ["mypkg"])
    check_trust({"class_path": "mypkg.heads.small.Head", "init_args": {}}, ["mypkg.heads"])
    with pytest.raises(SpecError):
        check_trust({"class_path": "mypkg.losses.Loss", "init_args": {}}, ["mypkg.heads"])


def test_trust_is_asked_at_any_depth(flagged: Path) -> None:
    inner = {"class_path": "specpkg.Thing", "init_args": {}}
    outer = {"class_path": f"{HERE}.Anything", "init_args": {"value": inner}}
    with pytest.raises(SpecError, match=r"specpkg\.Thing"):
        trusted(outer)
    with pytest.raises(SpecError, match=r"specpkg\.Thing"):
        check_trust({"a": [{"b": outer}]}, [HERE])
    assert not flagged.exists()


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (f"{HERE}.NotAComponent", "is not a Component"),
        (f"{HERE}.trusted", "is not a class"),
        (f"{HERE}.Missing", "cannot be imported"),
        (f"{HERE}_missing.Thing", "cannot be imported"),
    ],
)
def test_what_is_no_component_is_refused(path: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        build(
            {"class_path": path, "init_args": {}}, base=Component, trust=[HERE, f"{HERE}_missing"]
        )


def test_the_base_class_is_required() -> None:
    with pytest.raises(SpecError, match="is not a Whole") as caught:
        trusted(Part(1).spec, base=Whole)
    assert f"derives from {HERE}.Whole" in str(caught.value)
