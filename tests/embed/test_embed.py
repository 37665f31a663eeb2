"""`vfm embed`: rows of a store by path, grown and dropped, killed and gone on with, refused where models differ."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from vfm_runtime.media.image import open_image

import vfm
from tests.image_folders import write_image_folder
from vfm.cli import main
from vfm.embed import update
from vfm.embed.location import StoreError, lock_store
from vfm.embed.passes import embed_batches
from vfm.embed.sources import list_source_images
from vfm.embed.store import EmbeddingStore

pytest.importorskip("lancedb")


@pytest.fixture
def images(tmp_path):
    root = write_image_folder(
        tmp_path / "images", num_classes=2, images_per_class=5, splits=["train", "val"]
    )
    (root / "train" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno image")
    return root


def run(source, to, weights, *more):
    words = ["embed", source, "--to", to, "--model", "test_vit", "--base", weights, *more]
    return main([str(word) for word in words])


def read(to, *columns):
    vectors, rows = [], []
    for part, values in EmbeddingStore.open(str(to)).read(["path", *columns]):
        vectors.append(part)
        rows += zip(*(values[name] for name in ("path", *columns)), strict=True)
    order = sorted(range(len(rows)), key=rows.__getitem__)
    return np.concatenate(vectors)[order], [rows[i] for i in order]


def test_a_folder_is_embedded_grows_and_shrinks(images, weights, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(update, "_CHUNK", 4)
    store = tmp_path / "store"
    assert run(images, store, weights) == 0
    shown = capsys.readouterr()
    assert "20 of 21 images embedded now" in shown.out
    assert "unreadable: " in shown.err
    assert "broken.png" in (store / "unreadable.csv").read_text()
    vectors, rows = read(store, "label", "split", "sha256")
    paths = sorted(p for p in images.rglob("*.png") if p.name != "broken.png")
    assert [row[0] for row in rows] == [str(p) for p in paths]
    assert {row[2] for row in rows} == {"train", "val"}
    assert {row[1] for row in rows} == {p.parent.name for p in paths}
    assert len(rows[0][3]) == 64
    bare = vfm.load("test_vit", base=weights, device="cpu")
    np.testing.assert_allclose(vectors, bare.embed(paths), atol=1e-5)
    assert EmbeddingStore.open(str(store)).num_versions <= 2  # no old ones stay

    # Again: nothing to do. Then one is new, one has changed, one is gone.
    assert run(images, store, weights) == 0
    assert "0 of 21 images embedded now" in capsys.readouterr().out
    (images / "val" / "new.png").write_bytes(paths[0].read_bytes())
    paths[1].write_bytes(paths[2].read_bytes() + b"\0")
    paths[3].unlink()
    assert run(images, store, weights) == 0
    assert "2 of 21 images embedded now" in capsys.readouterr().out
    vectors, rows = read(store)
    assert (len(rows), len({row[0] for row in rows})) == (21, 21)
    np.testing.assert_allclose(vectors[1], vectors[2], atol=1e-5)
    export = tmp_path / "vectors.parquet"
    assert run(images, store, weights, "--drop-gone", "true", "--export", export) == 0
    assert "1 rows dropped" in capsys.readouterr().out
    vectors, rows = read(store)
    assert str(paths[3]) not in {row[0] for row in rows}

    from pyarrow import parquet

    assert parquet.read_table(export).num_rows == 20
    assert run(images, store, weights, "--export", tmp_path / "vectors.npz") == 0
    with np.load(tmp_path / "vectors.npz") as arrays:
        assert arrays["vector"].shape == vectors.shape
        order = arrays["path"].argsort()
        np.testing.assert_array_equal(arrays["vector"][order], vectors)


def test_a_table_keeps_its_columns(images, weights, tmp_path, capsys):
    paths = sorted((images / "val").rglob("*.png"))
    table = tmp_path / "t.csv"
    lines = [f"{p.relative_to(tmp_path)},{i},{i / 4},00{i},x" for i, p in enumerate(paths)]
    table.write_text("\n".join(["path,number,score,code,label", *lines]))
    store = tmp_path / "store"
    assert run(table, store, weights, "--half", "true") == 0
    _, rows = read(store, "number", "score", "code", "label")
    assert rows[3] == (str(paths[3]), 3, 0.75, "003", "x")
    kinds = EmbeddingStore.open(str(store)).columns
    assert [kinds[n] for n in ("number", "score", "code")] == ["number", "number", "text"]
    # Another source in the same store: the columns that it lacks are empty, new ones are added.
    assert run(images / "train", store, weights) == 0
    _, rows = read(store, "number", "split")
    assert len(rows) == 20
    assert rows[0][1] is None
    table.write_text("path,number\n" + f"{paths[0].relative_to(tmp_path)},many\n")
    capsys.readouterr()
    assert run(table, store, weights) == 1
    assert "The column 'number' is int64" in capsys.readouterr().err


def test_what_cannot_go_together_is_refused(images, weights, tmp_path, capsys):
    store = tmp_path / "store"
    assert run(images / "val", store, weights) == 0
    assert run(images / "val", store, weights, "--embedding", "layers") == 1
    error = capsys.readouterr().err
    assert "holds other vectors: of test_vit (pooled, L2, fingerprint" in error
    assert "Take that model, or name a new store." in error
    with lock_store(str(store)):
        assert run(images / "val", store, weights) == 1
    assert "Another process is writing to" in capsys.readouterr().err
    assert run(images / "val", store, weights, "--model", "conse:test_vit") == 1
    assert "vfm classify --labels reads it. Name the backbone alone: test_vit." in (
        capsys.readouterr().err
    )
    assert run(images / "val", images, weights) == 1
    assert "exists and is no store of embeddings" in capsys.readouterr().err
    assert run(images / "val", store, weights, "--export", "x.csv") == 1
    assert "Choices: .parquet, .npz" in capsys.readouterr().err
    table = tmp_path / "t.csv"
    table.write_text("path,vector\na.png,1\n")
    assert run(table, store, weights) == 1
    assert "has a column 'vector', which a store has for itself" in capsys.readouterr().err
    table.write_text("path\na.png\na.png\n")
    assert run(table, store, weights) == 1
    assert "'a.png' is in the table twice" in capsys.readouterr().err
    table.write_text("path\na.png\n")
    assert run(table, tmp_path / "other", weights) == 1
    assert "None of the 1 images" in capsys.readouterr().err


def test_a_store_of_a_newer_format_is_refused(tmp_path):
    import lancedb
    import pyarrow as pa

    for number, text in enumerate(('{"format": 2}', "{}")):
        uri = str(tmp_path / str(number))
        schema = pa.schema([pa.field("path", pa.string())], metadata={"vfm": text})
        lancedb.connect(uri).create_table("embeddings", schema=schema)
    with pytest.raises(StoreError, match=r"newer vfm: its format is 2, .* Upgrade vfm"):
        EmbeddingStore.open(str(tmp_path / "0"))
    with pytest.raises(StoreError, match="that vfm did not write"):
        EmbeddingStore.open(str(tmp_path / "1"))
    with pytest.raises(
        StoreError, match=r"There is no store of embeddings at .* Make one: vfm embed"
    ):
        EmbeddingStore.open(str(tmp_path / "2"))


def test_a_full_disk_leaves_what_was_written(images, weights, tmp_path, monkeypatch):
    store = tmp_path / "store"
    assert run(images / "val", store, weights) == 0
    opened = EmbeddingStore.open(str(store))

    def fail(self, table):
        raise OSError(28, "No space left on device")

    from lancedb.merge import LanceMergeInsertBuilder

    monkeypatch.setattr(LanceMergeInsertBuilder, "execute", fail)
    with pytest.raises(StoreError, match=r"No space left on device.*can be read.*it goes on"):
        opened.write(np.zeros((1, opened.model.width), np.float32), {"path": ["x"]})
    assert opened.num_rows == 10


_CHILD = """
import sys
from vfm.cli import main
from vfm.embed import update
update._CHUNK = 2
write = update._write
def tell(*arguments):
    write(*arguments)
    print("wrote", flush=True)
update._write = tell
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_killed_run_goes_on(weights, tmp_path):
    root = write_image_folder(tmp_path / "images", num_classes=2, images_per_class=40)
    store = tmp_path / "store"
    words = ["embed", root, "--to", store, "--model", "test_vit", "--base", weights]
    words = [sys.executable, "-c", _CHILD, *map(str, words), "--batch-size", "2"]
    ending = []
    for lines in (3, 5, None):
        with subprocess.Popen(
            words, stdout=subprocess.PIPE, text=True, env=os.environ, cwd=Path.cwd()
        ) as child:
            for number, line in enumerate(child.stdout):
                if line == "wrote\n" and number + 1 == lines:
                    child.send_signal(signal.SIGKILL)  # in the middle of the next batch or write
                    break
            ending.append(child.wait())
    assert ending == [-signal.SIGKILL, -signal.SIGKILL, 0]
    _, rows = read(store)
    assert [row[0] for row in rows] == sorted(one.path for one in list_source_images(root))


def test_images_of_12_bits_are_read_by_their_range(weights, tmp_path, capsys):
    root, store = tmp_path / "images", tmp_path / "store"
    root.mkdir()
    shades = np.random.default_rng(0).integers(0, 256, (6, 24, 24), dtype=np.uint8)
    for number, image in enumerate(shades):
        scaled = np.rint(image * (4095 / 255)).astype(np.uint16)
        Image.fromarray(scaled).save(root / f"{number}.png")
    assert run(root, store, weights, "--bit-depth", "12") == 0
    vectors, _ = read(store)
    model = vfm.load("test_vit", base=weights)
    np.testing.assert_allclose(
        vectors, model.embed([np.repeat(i[..., None], 3, 2) for i in shades]), atol=1e-3
    )
    # The store remembers it: the query is read alike.
    words = ["search", str(store), "--image", str(root / "3.png"), "-k", "1", "--json"]
    assert main([*words, "--out", str(tmp_path / "found")]) == 0
    assert "3.png" in capsys.readouterr().out
    assert run(root, store, weights) == 1  # without it, these are other vectors
    assert "fingerprint" in capsys.readouterr().err
    assert run(root, tmp_path / "other", weights, "--bit-depth", "40") == 1
    assert "bit_depth is 40. Give the bits" in capsys.readouterr().err
    words = [
        "embed",
        str(root),
        "--to",
        str(store),
        "--model",
        "open_clip:a/b",
        "--bit-depth",
        "12",
    ]
    assert main(words) == 1
    assert "open_clip:a/b reads images by rules of its own" in capsys.readouterr().err


def test_what_the_model_was_given_does_not_wait_to_be_written(images):
    class Tower:
        embedding = None

        def prepare(self, image):
            return {"pixels": open_image(image)[None]}

        def embed_prepared(self, inputs):
            return inputs["pixels"][:, 0, 0].astype(np.float32)

    unreadable = 0
    for rows, vectors in embed_batches(Tower(), list_source_images(images), batch_size=3):
        assert all(row.inputs is None for row in rows)
        assert len(vectors) == sum(not row.reason for row in rows)
        unreadable += sum(bool(row.reason) for row in rows)
    assert unreadable == 1
