"""`vfm duplicates`: pairs by blocked products, leaks between splits, how sure it is, and what cannot be asked for."""

import csv
import json
import re

import numpy as np
import pytest
from PIL import Image

from tests.search.stores import write_store
from vfm.cli import main
from vfm.search import neighbor_graph
from vfm.search.neighbor_graph import build_graph, open_rows

pytest.importorskip("lancedb")
WIDTH = 12


def draw_vectors(num_rows, seed=0):
    vectors = np.random.default_rng(seed).normal(size=(num_rows, WIDTH)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def find_plainly(vectors, count):
    similarity = vectors @ vectors.T
    np.fill_diagonal(similarity, -2)
    return -np.sort(-similarity, axis=1)[:, :count]


def test_a_graph_of_few_rows_is_exact(monkeypatch):
    monkeypatch.setattr(neighbor_graph, "_BLOCK", 64)
    vectors = draw_vectors(300)
    graph = build_graph(vectors, 5)
    np.testing.assert_allclose(graph.similarity, find_plainly(vectors, 5), atol=1e-6)
    rows = np.arange(300)[:, None]
    np.testing.assert_allclose(
        (vectors[rows] * vectors[graph.neighbors]).sum(2), graph.similarity, atol=1e-6
    )
    assert (graph.recall, graph.num_probes) == (1, 0)
    # Fewer rows than neighbors: the rest is empty.
    few = build_graph(vectors[:3], 5)
    assert (few.neighbors >= 0).sum() == 6
    assert few.neighbors.max() == 2


def test_a_graph_by_cells_has_the_recall_that_it_says(monkeypatch):
    for name, value in (("_ONE_CELL", 100), ("_CELL", 100), ("_SAMPLE", 300), ("_BLOCK", 256)):
        monkeypatch.setattr(neighbor_graph, name, value)
    centers = draw_vectors(60)
    vectors = np.repeat(centers, 50, axis=0) + 0.1 * draw_vectors(3000, seed=1)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    said = []
    graph = build_graph(vectors, 4, progress=said.append)
    truth = find_plainly(vectors, 4)
    hits = [(g >= t[-1] - 1e-5).mean() for g, t in zip(graph.similarity, truth, strict=True)]
    assert graph.recall >= 0.95
    assert graph.num_pairs == 1200
    assert np.mean(hits) == pytest.approx(graph.recall, abs=0.02)
    assert "30 cells" in said[1]
    # Nothing is above the threshold: the nearest neighbor is what is judged.
    assert build_graph(vectors, 4, least=0.99999).num_pairs == 300


def test_many_vectors_are_read_into_a_file(tmp_path, monkeypatch):
    store = write_store(str(tmp_path / "store"), 3 * draw_vectors(50))
    monkeypatch.setattr(neighbor_graph, "_IN_MEMORY", 0)
    with open_rows(store) as block:
        assert isinstance(block.vectors.base, np.memmap) or isinstance(block.vectors, np.memmap)
        np.testing.assert_allclose(block.vectors, draw_vectors(50), atol=1e-6)

    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(neighbor_graph.np, "memmap", fail)
    with (
        pytest.raises(ValueError, match=r"50 vectors take .*No space left.* TMPDIR"),
        open_rows(store),
    ):
        pass


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """A store of 100 images, the last 10 of them near the first 10, half of these in another split."""
    folder = tmp_path_factory.mktemp("planted")
    vectors = draw_vectors(100)
    vectors[90:] = vectors[:10] + 0.01 * vectors[20:30]
    vectors[89] = vectors[90]
    paths = [str(folder / f"{i:03d}.png") for i in range(100)]
    Image.new("RGB", (9, 9)).save(paths[0])
    split = ["train"] * 95 + ["test"] * 4 + [None]
    return write_store(str(folder / "store"), vectors, paths, split=split), paths


def test_the_command_lists_pairs_and_leaks(planted, tmp_path, capsys):
    store, paths = planted
    table, page = tmp_path / "pairs.csv", tmp_path / "page.html"
    words = ["duplicates", store.uri, "--threshold", "0.98"]
    assert main([*words, "--export", str(table), "-o", str(page)]) == 0
    shown = capsys.readouterr().out
    assert (
        "12 pairs of a cosine from 0.98 on; 21 of 100 rows have such a neighbor, in 10 groups"
        in shown
    )
    assert "4 pairs lie in two values of 'split'" in shown
    assert "21% of the rows: to this model many images here look alike" in shown
    with table.open() as file:
        rows = list(csv.DictReader(file))
    ends = {(row["path"], row["other_path"]) for row in rows}
    assert ends == {(paths[i], paths[90 + i]) for i in range(10)} | {
        (paths[89], paths[90]),
        (paths[0], paths[89]),
    }
    assert len({row["group"] for row in rows}) == 10
    assert page.read_text().count("data:image/png") == 1
    assert main([*words, "--between", "split", "--json", "true"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert {row["path"] for row in answer["pairs"]} == set(paths[5:9])
    assert {row["other_split"] for row in answer["pairs"]} == {"test"}
    assert answer["recall"] == 1
    kept = tmp_path / "kept.csv"
    assert main([*words, "--keep_table", str(kept)]) == 0
    assert "Kept: 89 of 100 images, each other one near one of them" in capsys.readouterr().out
    with kept.open() as file:
        assert [row["path"] for row in csv.DictReader(file)] == paths[:89]
    # A copy is a pair at the highest threshold.
    assert main(["duplicates", store.uri, "--threshold", "1"]) == 0
    assert "1 pairs of a cosine from 1 on" in capsys.readouterr().out
    assert main([*words, "--where", "path = 'none'"]) == 1
    assert "has no rows that the filter holds for" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "cause"),
    [
        (["--threshold", "0"], "--threshold is 0. Give a cosine above 0 and up to 1"),
        (["--threshold", "95"], "--threshold is 95."),
        (["--between", "splt"], "no column of .* Did you mean 'split'. Columns: split."),
        (
            ["--between", "split", "--where", "split = 'train'"],
            "all rows have train, so no two can",
        ),
        (["--keep_table", "x.tsv"], r"--keep_table is x\.tsv\. Give a \.csv file"),
        (["--keep_table", "x.csv", "--between", "split"], "pairs that agree in split would stay"),
        (["--export", "x.json"], "Give a .csv file, or take --json true for JSON"),
        (["--where", "x = 1"], "there is no column 'x'"),
    ],
)
def test_what_cannot_be_asked_is_refused(planted, capsys, more, cause):
    assert main(["duplicates", planted[0].uri, *more]) == 1
    assert re.search(cause, capsys.readouterr().err)
