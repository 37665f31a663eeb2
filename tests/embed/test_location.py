"""Stores by address: `file://` as LanceDB itself opens it, and what is no address."""

import os

import pytest

from tests.embed.test_embed import read, run
from tests.image_folders import write_image_folder
from vfm.cli import main
from vfm.embed import command
from vfm.embed.location import StoreError, find_folder, lock_store
from vfm.embed.store import EmbeddingStore

lancedb = pytest.importorskip("lancedb")


def test_a_store_by_its_address(weights, tmp_path, capsys, monkeypatch):
    images = write_image_folder(tmp_path / "images", num_classes=2, images_per_class=3)
    (images / "broken.png").write_bytes(b"no image")
    seen, connect = [], lancedb.connect
    monkeypatch.setattr(lancedb, "connect", lambda uri: seen.append(uri) or connect(uri))
    folder = tmp_path / "my store"
    uri = folder.as_uri()
    assert "my%20store" in uri
    assert run(images, uri, weights) == 0
    shown = capsys.readouterr()
    assert "6 of 7 images embedded now" in shown.out
    assert "broken.png" in (folder / "unreadable.csv").read_text()
    query = next(images.rglob("0001.png"))
    assert main(["search", uri, "--image", str(query), "-k", "2", "--device", "cpu"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[-1] == str(query)
    assert main(["index", uri]) == 1
    assert f"{uri} has 6 rows; recall is measured with at least 1,000" in capsys.readouterr().err
    assert set(seen) == {f"file://{folder}"}  # by LanceDB's own way for addresses
    assert int(os.environ["LANCE_DEFAULT_IO_BUFFER_SIZE"]) < 2**30  # memory of compaction
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "my store"]
    with lock_store(str(folder)):  # one store, by whatever name
        assert run(images, uri, weights) == 1
    assert f"Another process is writing to {uri}" in capsys.readouterr().err
    # The same rows by the folder's own name.
    assert len(read(folder)[1]) == 6


def test_unreadable_files_of_an_object_store_are_all_said(capsys):
    command._list_unreadable("s3://bucket/store", {f"{i}.png": "broken" for i in range(9)})
    error = capsys.readouterr().err
    assert error.count(".png: broken") == 9
    assert "9 images could not be read, so no row was written: see those above." in error


def test_what_is_no_address(tmp_path):
    assert find_folder("s3://bucket/store") is None
    for uri in ("file://store", "file:///", "file:///x?y=1"):
        with pytest.raises(StoreError, match=r"Write three slashes and the whole path, such as"):
            EmbeddingStore.find(uri)
    with pytest.raises(StoreError, match=r"s4://bucket/x cannot be opened as a store: .*s4"):
        EmbeddingStore.find("s4://bucket/x")
