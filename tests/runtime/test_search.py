"""Search in the vectors that a bundle carries: as brute force has it, and refused with a cause."""

import json
import shutil

import numpy as np
import pytest
import vfm_runtime
from vfm_runtime.bundle.manifest import read_manifest, write_manifest
from vfm_runtime.cli import main
from vfm_runtime.errors import BundleError, DataError, OptionError
from vfm_runtime.search import (
    MOST_VECTORS,
    ROWS_FILE,
    VECTORS_FILE,
    Neighbor,
    VectorTable,
    find_nearest,
)
from vfm_runtime.tasks.embedding import EmbeddingSpec

from tests.runtime import toy_embedder

SPEC = EmbeddingSpec(**toy_embedder.CONTRACT["embedding"])
RED, BLUE = (200, 40, 40), (40, 40, 200)


def make_table(number, width=toy_embedder.WIDTH, seed=0, spec=SPEC):
    vectors = np.random.default_rng(seed).normal(size=(number, width)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    labels = [None if i % 7 == 3 else f"label {i % 5}" for i in range(number)]
    columns = {"label": labels, "score": [i / 2 for i in range(number)]}
    return VectorTable(spec, vectors, [f"images/{i}.png" for i in range(number)], columns)


def write_bundle(folder, table):
    """A toy bundle that carries a table."""
    contract = read_manifest(toy_embedder.build(folder)).contract
    table.write(folder)
    write_manifest(folder, contract)
    return folder


@pytest.fixture(scope="module")
def searchable(tmp_path_factory):
    return write_bundle(tmp_path_factory.mktemp("searchable") / "bundle", make_table(500))


def search_slowly(table, query, count):
    """Paths by cosine in Python's own sort, equal ones in their order."""
    wide, vectors = query.astype(np.float64), table.vectors.astype(np.float64)
    cosines = vectors @ wide / np.linalg.norm(wide)
    order = sorted(range(len(vectors)), key=lambda row: (-cosines[row], row))
    return [(table.paths[row], cosines[row]) for row in order[:count]]


@pytest.mark.parametrize("count", [1, 10, 499, 500, 900])
def test_the_nearest_are_those_of_brute_force(searchable, count):
    model, table = vfm_runtime.load(searchable, device="cpu"), make_table(500)
    pictures = toy_embedder.paint(RED, 2) + toy_embedder.paint(BLUE, 1)
    answers = model.search(pictures, k=count)
    for query, answer in zip(model.embed(pictures), answers, strict=True):
        expected = search_slowly(table, query, count)
        assert [one.path for one in answer] == [path for path, _ in expected]
        np.testing.assert_allclose(
            [one.similarity for one in answer], [value for _, value in expected], atol=1e-6
        )
    (first,) = model.search(pictures[0], k=1)
    row = table.paths.index(first.path)
    assert first == Neighbor(
        first.path, first.similarity, {"label": table.columns["label"][row], "score": row / 2}
    )


def test_equal_similarities_keep_their_order():
    values = np.array([0.5, 0.9, 0.5, 0.1, 0.5, 0.9])
    assert [find_nearest(values, k).tolist() for k in (0, 1, 3, 4, 9)] == [
        [],
        [1],
        [1, 5, 0],
        [1, 5, 0, 2],
        [1, 5, 0, 2, 4, 3],
    ]


def test_fifty_thousand_rows_and_no_more():
    table = make_table(MOST_VECTORS, 8)
    query = np.ones(8, np.float32)
    assert [one.path for one in table.search(query, 5)] == [
        p for p, _ in search_slowly(table, query, 5)
    ]
    with pytest.raises(OptionError) as caught:
        make_table(MOST_VECTORS + 1, 8)
    assert str(caught.value).startswith(
        "There are 50,001 vectors, and a bundle carries 50,000 at most"
    )
    assert "--where" in str(caught.value)
    assert "vfm search STORE" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            {"vectors": np.zeros((2, 3), np.float32)},
            "with norms from 0 to 0. Give float32 of norm 1.",
        ),
        ({"vectors": np.eye(2)}, "The vectors are float64 with norms"),
        ({"vectors": np.zeros((0, 3), np.float32), "paths": [], "columns": {}}, "Give one or more"),
        ({"paths": ["a"]}, "vectors of shape [2, 2] with 1 names"),
        ({"columns": {"label": ["a"]}}, "columns of [1, 2] values"),
    ],
)
def test_tables_that_do_not_go_together_are_refused(change, text):
    values = {"vectors": np.eye(2, dtype=np.float32), "paths": ["a", "b"], "columns": {}, **change}
    with pytest.raises(DataError) as caught:
        VectorTable(SPEC, **values)
    assert text in str(caught.value)


def test_queries_that_cannot_be_are_refused(searchable, tmp_path):
    model = vfm_runtime.load(searchable, device="cpu")
    with pytest.raises(OptionError, match=r"k is 0\. Ask for at least 1 image"):
        model.search(toy_embedder.paint(RED, 1)[0], k=0)
    with pytest.raises(
        DataError, match=r"shape \[3\] and norm 1.73205; it is compared with vectors of 48"
    ):
        model.vectors.search(np.ones(3, np.float32))
    with pytest.raises(DataError, match=r"norm 0; .* must not be 0"):
        model.vectors.search(np.zeros(toy_embedder.WIDTH, np.float32))
    bare = vfm_runtime.load(toy_embedder.build(tmp_path / "bare"), device="cpu")
    with pytest.raises(
        OptionError, match=r"carries no vectors to search in\. .* vfm index STORE --bundle"
    ):
        bare.search(toy_embedder.paint(RED, 1)[0])


def test_vectors_of_another_model_and_damage_are_refused(searchable, tmp_path):
    other = EmbeddingSpec("embedding", "pooled", False, "fedcba9876543210")
    folder = write_bundle(tmp_path / "other", make_table(5, spec=other))
    with pytest.raises(BundleError) as caught:
        vfm_runtime.load(folder, device="cpu")
    assert "holds vectors of another model (pooled, fingerprint fedcba987654)" in str(caught.value)
    assert "the bundle's gives pooled, fingerprint 0123456789ab" in str(caught.value)
    copy = tmp_path / "copy"
    shutil.copytree(searchable, copy)
    with (copy / VECTORS_FILE).open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x7f")
    with pytest.raises(BundleError, match=r"vectors.npy is damaged: its sha256"):
        vfm_runtime.load(copy, device="cpu")
    rows = json.loads((searchable / ROWS_FILE).read_text())
    for data, text in [
        ({**rows, "format": 9}, "has the format 9, and this version reads 1. To read it, upgrade"),
        ({**rows, "paths": rows["paths"][:-1]}, "with 499 names"),
        ({"format": 1}, "are no vectors to search in ('fingerprint')"),
        ([], "are no vectors to search in"),
    ]:
        (copy / ROWS_FILE).write_text(json.dumps(data))
        with pytest.raises(BundleError) as caught:
            VectorTable.read(copy, SPEC)
        assert text in str(caught.value)
    manifest = json.loads((copy / "vfm.json").read_text())
    del manifest["files"][VECTORS_FILE]
    (copy / "vfm.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=r"does not list vectors\.npy"):
        vfm_runtime.load(copy, device="cpu")


def test_the_command_lists_them(searchable, tmp_path, capsys):
    (picture,) = toy_embedder.write_pictures(tmp_path, RED, 1)
    (tmp_path / "bad.png").write_text("none")
    words = ["search", str(searchable), str(tmp_path), "--device", "cpu", "-k", "2"]
    assert main(words) == 1
    shown = capsys.readouterr()
    assert "not an image" in shown.err
    expected = vfm_runtime.load(searchable, device="cpu").search(picture, 2)
    best = expected[0]
    assert shown.out.splitlines()[0] == (
        f"{picture}: {best.similarity:.4f} {best.path} (label {best.columns['label']}, score {best.columns['score']})"
    )
    assert main([*words, "--json"]) == 1
    first, last = sorted(map(json.loads, capsys.readouterr().out.splitlines()), key=len)
    assert {"error", "image"} <= {*first, *last}
    (answer,) = [row for row in (first, last) if "neighbors" in row]
    assert answer == {"image": str(picture), "neighbors": [one.to_dict() for one in expected]}
    assert main(["info", str(searchable), "--device", "cpu"]) == 0
    assert "vectors    of 500 images, to search in" in capsys.readouterr().out
