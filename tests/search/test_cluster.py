"""`vfm cluster` and `vfm select`: clusters by size, lonely rows, typical rows of what has few labels yet."""

import csv
import json
import re

import numpy as np
import pytest

from tests.search.stores import write_store
from vfm.cli import main
from vfm.search.clusters import cluster_rows, score_outliers, select_rows
from vfm.search.neighbor_graph import build_graph

pytest.importorskip("lancedb")


@pytest.fixture(scope="module")
def kinds():
    """90 vectors of three kinds, 50, 30 and 9 of them, and one of none."""
    random = np.random.default_rng(0)
    middles = np.repeat(np.eye(3, 8), [50, 30, 9], axis=0)
    vectors = np.concatenate([middles, [np.full(8, -1)]]) + random.normal(size=(90, 8)) / 20
    vectors = vectors.astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def store(kinds, tmp_path_factory):
    """Of the first kind all but ten have a label."""
    label = ["a"] * 40 + [None] * 50
    uri = str(tmp_path_factory.mktemp("kinds") / "store")
    return write_store(uri, kinds, label=label)


def test_clusters_are_sorted_by_size_and_lonely_rows_stand_out(kinds):
    clusters = cluster_rows(kinds, 4)
    assert clusters.sizes.tolist() == [50, 30, 9, 1]
    assert [len(set(clusters.numbers[part])) for part in (slice(50), slice(50, 80))] == [1, 1]
    central = clusters.list_central(1, 3)
    assert set(central) <= set(range(50, 80))
    assert (np.diff(clusters.similarity[central]) <= 0).all()
    scores = score_outliers(build_graph(kinds, 5))
    assert scores.argmax() == 89
    assert scores[89] > 0.9 > 0.1 > np.median(scores)


def test_rows_to_label_are_of_every_kind_without_labels(kinds):
    unlabeled = np.zeros(90, bool)
    chosen, _ = select_rows(kinds, 4, unlabeled)
    assert [np.searchsorted([50, 80, 89], i, side="right") for i in chosen] == [0, 1, 2, 3]
    is_labeled = np.arange(90) < 40
    chosen, _ = select_rows(kinds, 3, is_labeled)
    assert all(position >= 50 for position in chosen)
    chosen, _ = select_rows(kinds, 50, is_labeled)
    assert sorted(chosen) == list(range(40, 90))


def test_the_commands_write_tables_and_pages(store, tmp_path, capsys):
    table, page = tmp_path / "t.csv", tmp_path / "p.html"
    words = ["cluster", store.uri, "-k", "4"]
    assert main([*words, "--export", str(table), "-o", str(page)]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"cluster   1 +50 images  a 40  /x/000\d\d.png", shown)
    assert re.search(r"outlier 1\.\d+  /x/00089.png", shown)
    with table.open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 90
    assert list(rows[0]) == ["path", "cluster", "to_middle", "outlier", "label"]
    assert page.read_text().count("data:image/png") == 5
    assert main([*words, "--json", "true"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert [one["images"] for one in answer["clusters"]] == [50, 30, 9, 1]
    assert answer["outliers"][0]["path"] == "/x/00089.png"

    words = ["select", store.uri, "-k", "3", "--labeled", "label"]
    assert main([*words, "--export", str(table), "-o", str(page)]) == 0
    shown = capsys.readouterr()
    paths = shown.out.splitlines()
    assert "3 of 50 images without a label, beside 40 that have one" in shown.err
    with table.open() as file:
        assert [row["path"] for row in csv.DictReader(file)] == paths
    assert "data:image/png" in page.read_text()
    assert main([*words, "--json", "true"]) == 0
    images = json.loads(capsys.readouterr().out)["images"]
    assert [image["path"] for image in images] == paths


@pytest.mark.parametrize(
    ("words", "cause"),
    [
        ("cluster -k 1", "-k is 1. Give a number of clusters from 2 to 90"),
        ("cluster -k 91", "-k is 91."),
        ("cluster --export x.parquet", "Give a .csv file, or take --json true"),
        ("select -k 91", "-k is 91; there are 90 rows without a label"),
        ("select -k 0", "-k is 0;"),
        ("select --labeled lable", "no column of .* Did you mean 'label'. Columns: label."),
        ("select --labeled label --where label='a'", "Every row has a label already"),
    ],
)
def test_what_cannot_be_is_refused(store, capsys, words, cause):
    command, *more = words.split()
    assert main([command, store.uri, *more]) == 1
    assert re.search(cause, capsys.readouterr().err)
