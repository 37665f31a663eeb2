"""`vfm index --bundle`: a copy of a bundle that carries a store's rows, and answers as the store does."""

from pathlib import Path

import numpy as np
import pytest
import vfm_runtime

from tests.runtime import toy, toy_embedder
from vfm.cli import main
from vfm.embed.store import EmbeddingStore
from vfm.search.exact import search_store

pytest.importorskip("lancedb")
RED, BLUE = (200, 40, 40), (40, 40, 200)


def embed(folder, bundle):
    """A store of twelve pictures of two colors by a toy bundle."""
    for label, color in (("red", RED), ("blue", BLUE)):
        toy_embedder.write_pictures(folder / "images" / label, color, 6)
    words = ["embed", folder / "images", "--to", folder / "store", "--model", bundle]
    assert main([str(word) for word in words]) == 0
    return str(folder / "store")


def test_the_bundle_answers_as_the_store_does(tmp_path, capsys):
    bundle, out = toy_embedder.build(tmp_path / "bundle"), tmp_path / "out"
    before = {path: path.read_bytes() for path in bundle.rglob("*") if path.is_file()}
    store = embed(tmp_path, bundle)
    assert main(["index", store, "--bundle", str(bundle), "-o", str(out)]) == 0
    assert f"{out}: {bundle} with the vectors of 12 images, 0.0 MiB" in capsys.readouterr().out
    model, pixels = vfm_runtime.load(out, device="cpu"), toy_embedder.paint(RED, 1, seed=3)[0]
    expected = search_store(
        EmbeddingStore.open(store), model.embed(pixels), count=5, columns=["label", "split"]
    )
    answer = model.search(pixels, k=5)
    assert [one.path for one in answer] == [one.path for one in expected.neighbors]
    np.testing.assert_allclose(
        [one.similarity for one in answer],
        [one.similarity for one in expected.neighbors],
        atol=1e-6,
    )
    assert answer[0].columns == {"label": "red", "split": None}
    assert "Carries the vectors of 12 images" in (out / "card.md").read_text()
    assert before == {path: path.read_bytes() for path in bundle.rglob("*") if path.is_file()}
    # A bundle that carries vectors gets others in their place.
    words = ["index", store, "--bundle", str(out), "-o", str(tmp_path / "less")]
    assert main([*words, "--where", "label = 'blue'", "--json", "true"]) == 0
    assert '"num_rows": 6' in capsys.readouterr().out
    less = vfm_runtime.load(tmp_path / "less", device="cpu").search(pixels, k=50)
    assert [Path(one.path).parent.name for one in less] == ["blue"] * 6


def test_what_cannot_be_carried_is_refused(tmp_path, capsys, monkeypatch, bundle_without_vectors):
    bundle, out = toy_embedder.build(tmp_path / "bundle"), tmp_path / "out"
    other = toy_embedder.build(tmp_path / "other", "fedcba9876543210")
    store = embed(tmp_path, bundle)
    words = ["index", store, "--bundle", str(bundle)]
    to = [*words, "-o", str(out)]
    for call, cause in (
        (["index", store, "--bundle", str(other), "-o", str(out)], "holds other vectors: of"),
        (
            ["index", store, "--bundle", str(bundle_without_vectors), "-o", str(out)],
            "no embeddings",
        ),
        (words, "Name its folder with -o OUT."),
        ([*to, "--recall", "0.9"], "all of them are compared. Leave --recall out."),
        (["index", store, "-o", str(out)], "--out goes with --bundle"),
        (["index", store, "--where", "label = 'red'"], "--where goes with --bundle"),
        ([*to, "--where", "label = 'none'"], "has no rows that the filter holds for"),
        ([*to, "--where", "lable = 'red'"], "no column 'lable'"),
        ([*words, "-o", str(other)], "is there already. Name a folder that is not."),
    ):
        assert main(call) == 1
        assert cause in capsys.readouterr().err
    monkeypatch.setattr("vfm_runtime.search.MOST_VECTORS", 11)
    assert main(to) == 1
    shown = capsys.readouterr().err
    assert "There are 12 vectors, and a bundle carries 11 at most" in shown
    assert "--where" in shown
    assert not out.exists()
    assert not list(tmp_path.glob(".out.*"))


@pytest.fixture
def bundle_without_vectors(tmp_path):

    return toy.build(tmp_path / "toy")
