"""The sets and the file of results of the benchmark of few images."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from tests.assets import missing
from vfm.models.heads.head_weights import OBJECTS

SCRIPTS = Path(__file__).parent / "benchmarks"


@pytest.fixture(scope="module")
def scripts():
    sys.path.insert(0, str(SCRIPTS))
    try:
        import scenes
        import small_results
        import small_sets
    finally:
        sys.path.remove(str(SCRIPTS))
    return SimpleNamespace(sets=small_sets, results=small_results, scenes=scenes)


@pytest.fixture(scope="module")
def faces(scripts, tmp_path_factory):
    return scripts.sets.open_set("lfw", tmp_path_factory.mktemp("sets"))


def test_draws_are_stratified_and_contain_each_other(faces):
    ten = faces.draw(10, seed=1)
    assert Counter(label for _, label in ten) == {"face": 10, "none": 10}
    assert ten == faces.draw(10, seed=1)
    assert set(ten) != set(faces.draw(10, seed=2))
    assert set(ten) < set(faces.draw(30, seed=1))
    assert set(faces.draw(1000, seed=1)) == set(faces.pool)


def test_no_draw_holds_a_test_image(faces):
    assert len(faces.pool) == len(faces.test) == 100
    drawn = faces.draw(50, seed=0)
    assert not set(drawn) & set(faces.test)
    contents = {path.read_bytes() for path, _ in drawn}
    assert not contents & {path.read_bytes() for path, _ in faces.test}
    rest = faces.list_rest(faces.draw(5, seed=0))
    assert len(rest) == len(set(rest)) == 190


def test_the_packaged_head_has_seen_nothing_that_tests_show(scripts):
    card = json.loads(OBJECTS.with_suffix(".json").read_text())
    shown = {f"{ord(glyph):x}" for glyph in "".join(scripts.sets.EMOJI_KINDS.values())}
    assert len(shown) > 800
    assert len(card["glyphs"]) > 500
    assert not shown & set(card["glyphs"])
    grounds = {name for names in scripts.scenes.GROUNDS.values() for name in names}
    assert not (grounds | set(scripts.sets._GROUNDS)) & set(card["photo_names"])


def test_files_are_written_once(scripts, faces):
    cache = faces.pool[0][0].parents[3]
    before = {path: path.stat().st_mtime_ns for path, _ in faces.pool}
    scripts.sets.open_set.cache_clear()
    again = scripts.sets.open_set("lfw", cache)
    assert again.pool == faces.pool
    assert {path: path.stat().st_mtime_ns for path, _ in again.pool} == before
    assert Image.open(again.pool[0][0]).mode == "RGB"
    assert [path.name for path in cache.iterdir()] == ["lfw"]


def test_a_missing_source_names_its_remedy(scripts, tmp_path, monkeypatch):
    monkeypatch.setattr(scripts.sets, "ASSETS", tmp_path)
    with pytest.raises(scripts.sets.MissingSourceError, match=r"tests/fetch_assets\.py"):
        scripts.sets.open_set("textile", tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_cut_file_of_results_is_gone_on_with(scripts, tmp_path):
    path = tmp_path / "results.jsonl"
    cells = [scripts.results.Cell("t", "way", "set", 5, seed) for seed in range(3)]
    first = scripts.results.Results(path)
    for seed in range(2):
        first.measure(cells[seed], lambda seed=seed: {"accuracy": seed / 2})
    assert first.values[cells[0]]["seconds"] >= 0
    text = path.read_text()
    path.write_text(text[:-9])  # cut in the middle of the second line
    again = scripts.results.Results(path)
    assert set(again.values) == {cells[0]}
    worked = []
    for cell in cells:
        again.measure(cell, lambda cell=cell: worked.append(cell) or {"accuracy": 0.25})
    assert worked == cells[1:]
    rows = scripts.results.Results(path).find("t", "way", "set", 5)
    assert {seed: row["accuracy"] for seed, row in rows.items()} == {0: 0.0, 1: 0.25, 2: 0.25}
    assert json.loads(path.read_text().split("\n")[0])["seed"] == 0


def test_paired_differences(scripts):
    compare = scripts.results.compare
    assert compare({0: 0.75, 1: 0.5}, {0: 0.5, 1: 0.5, 2: 0.0}) == "+12.5 (-146.3 to +171.3)"
    assert compare({0: 0.5}, {0: 0.75}) == "-25.0"
    assert compare({}, {0: 0.75}) == ""


@pytest.mark.assets
@pytest.mark.parametrize(("name", "least"), [("emoji", 28), ("trees", 190)])
def test_sets_from_packages(scripts, tmp_path, name, least):
    try:
        some = scripts.sets.open_set(name, tmp_path)
    except scripts.sets.MissingSourceError as error:
        missing("What the set is made of is", str(error))
    for samples in (some.pool, some.test):
        counts = Counter(label for _, label in samples)
        assert set(counts) == set(some.labels)
        assert min(counts.values()) >= least
    stems = [{path.stem.split("_")[0] for path, _ in samples} for samples in (some.pool, some.test)]
    if name == "emoji":  # code points: no object is in both
        assert not stems[0] & stems[1]
