"""`vfm embed STORE --migrate`: another model's vectors beside the old ones, a map meanwhile, an exchange at the end."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import vfm
from tests.embed.test_embed import read, run
from tests.image_folders import write_image_folder
from vfm.cli import main
from vfm.embed import migration, update
from vfm.embed.location import lock_store
from vfm.embed.query_map import fit_rotation
from vfm.embed.store import NEXT_TABLE, EmbeddingStore
from vfm.models.backbone import Backbone

pytest.importorskip("lancedb")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    return write_image_folder(root, num_classes=3, images_per_class=40, size=(16, 16))


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """Weights of another model, drawn at random."""
    torch.manual_seed(2)
    path = tmp_path_factory.mktemp("others") / "vit2.safetensors"
    save_file(Backbone("test_vit2", pretrained=False).model.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def embedded(images, weights, tmp_path_factory):
    uri = tmp_path_factory.mktemp("embedded") / "store"
    assert run(images, uri, weights) == 0
    return uri


@pytest.fixture
def store(embedded, tmp_path):
    return Path(shutil.copytree(embedded, tmp_path / "store"))


def migrate(store, others, *more, model="test_vit2"):
    words = ["embed", store, "--migrate", model, "--base", others, "--device", "cpu", *more]
    return main([str(word) for word in words])


def list_paths(images):
    return sorted(images.rglob("*.png"))


def test_a_stopped_migration_answers_by_a_map_and_then_exchanges(
    store, images, others, capsys, monkeypatch
):
    before, rows = read(store, "label", "sha256", "vfm_source", "vfm_stamp")
    write, writes = update._write, []

    def write_or_stop(*arguments):
        writes.append(arguments)
        if len(writes) == 7:  # in the second part, after 5 writes of the sample
            raise KeyboardInterrupt
        write(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(update, "_CHUNK", 16)
        patch.setattr(migration, "NUM_FITTED", 60)
        patch.setattr(migration, "NUM_QUERIES", 20)
        patch.setattr(update, "_write", write_or_stop)
        with pytest.raises(KeyboardInterrupt):
            migrate(store, others, "--batch-size", "16")
    capsys.readouterr()
    # Old vectors are what they were; the new model's query is mapped, and what that loses is said.
    np.testing.assert_array_equal(read(store)[0], before)
    begun = EmbeddingStore.find(str(store), NEXT_TABLE)
    assert begun.num_rows == 96
    query = list_paths(images)[50]
    words = ["search", str(store), "--image", str(query), "-k", "3", "--device", "cpu"]
    assert main(words) == 0
    assert "linear map" not in capsys.readouterr().out
    words += ["--model", "test_vit2", "--base", str(others)]
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert "The store is being migrated to test_vit2; the query went through a linear map" in shown
    assert main([*words, "--json", "true"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["map"]["num_rows"] == 80
    assert answer["recall"] == answer["map"]["recall"] > 0.2  # 10 of 80 by chance: 0.13
    # It goes on with what is missing, and then all rows are the new model's, with all else as it was.
    assert migrate(store, others) == 0
    shown = capsys.readouterr()
    assert "24 of 120 images embedded now" in shown.out
    assert f"{store} is now of test_vit2, no longer of test_vit." in shown.out
    assert "The linear map had, of all of them, recall@10 0." in shown.err
    assert "held-out images against exact search by test_vit2 among 120" in shown.err
    after, now = read(store, "label", "sha256", "vfm_source", "vfm_stamp")
    assert now == rows
    bare = vfm.load("test_vit2", base=others, device="cpu")
    np.testing.assert_allclose(after, bare.embed(list_paths(images)), atol=1e-5)
    assert sorted(path.name for path in store.glob("*.lance")) == ["embeddings.lance"]
    assert EmbeddingStore.open(str(store)).num_versions <= 2
    assert main(words) == 0
    assert "linear map" not in capsys.readouterr().out
    assert run(images, store, others, "--model", "test_vit2") == 0
    assert "0 of 120 images embedded now" in capsys.readouterr().out


def test_images_that_are_gone_are_listed_and_keep_the_old_model(store, images, others, capsys):
    lost = list_paths(images)[3]
    content = lost.read_bytes()
    lost.write_bytes(b"no image")
    assert migrate(store, others) == 1
    error = capsys.readouterr().err
    assert f"unreadable: {lost}: " in error
    assert "1 of 120 images of" in error
    assert "It keeps the vectors of test_vit. Bring the images back and run the same" in error
    assert str(lost) in (store / "unreadable.csv").read_text()
    assert EmbeddingStore.open(str(store)).model.model == "test_vit"
    assert migrate(store, others, "--drop-gone", "true") == 0
    assert str(lost) not in [path for (path,) in read(store)[1]]
    lost.write_bytes(content)
    opened = EmbeddingStore.open(str(store))
    assert (opened.model.model, opened.num_rows) == ("test_vit2", 119)


def test_what_cannot_be_migrated(store, images, weights, others, capsys):
    error = lambda: capsys.readouterr().err  # noqa: E731
    with lock_store(str(store)):
        assert migrate(store, others) == 1
    assert "Another process is writing to" in error()
    assert migrate(store, weights, model="test_vit") == 1
    assert "holds vectors of test_vit already. There is nothing to migrate" in error()
    assert migrate(store, others, "--to", "x") == 1
    assert "--to x and --migrate test_vit2 was given. To embed images: vfm embed IMAGES" in error()
    assert main(["embed", str(images), "--to", str(store)]) == 1
    assert "To embed those of a store again by another model: vfm embed STORE --migrate" in error()
    opened = EmbeddingStore.open(str(store))
    model = opened.model
    opened.create_next(type(model)(**{**vars(model), "model": "third", "fingerprint": "3"}))
    assert migrate(store, others) == 1
    assert "is being migrated to third (fingerprint 3), not to test_vit2. Go on with" in error()
    words = ["search", str(store), "--image", str(list_paths(images)[0]), "--device", "cpu"]
    assert main([*words, "--model", "test_vit2", "--base", str(others)]) == 1
    assert "holds other vectors: of test_vit" in error()
    give_up = ["embed", str(store), "--migrate", "none"]
    assert main(give_up) == 0
    assert f"{store} stays of test_vit; 0 vectors of third are deleted." in capsys.readouterr().out
    assert main(give_up) == 0
    assert "not being migrated: there is nothing to give up" in capsys.readouterr().out
    assert main(words) == 0
    assert migrate(store.parent / "none", others) == 1
    assert "There is no store of embeddings at" in error()


def test_frames_of_a_video_are_embedded_again(weights, others, tmp_path):
    pytest.importorskip("av")
    from tests.runtime.videos import picture, write

    folder = tmp_path / "media"
    folder.mkdir()
    write([picture(n) for n in range(20)], rate=10, path=folder / "a.mp4")
    store = tmp_path / "store"
    assert run(folder, store, weights, "--num_frames", "3") == 0
    _, rows = read(store, "time", "sha256")
    assert migrate(store, others) == 0
    vectors, now = read(store, "time", "sha256")
    assert now == rows
    mean = vectors[1:].mean(0)
    np.testing.assert_allclose(vectors[0], mean / np.linalg.norm(mean), atol=1e-5)


@pytest.mark.parametrize("width", [12, 20, 30])
def test_a_rotation_is_found(width):
    random = np.random.default_rng(0)
    inputs = random.normal(size=(300, 20)).astype(np.float32)
    inputs /= np.linalg.norm(inputs, axis=1, keepdims=True)
    true = np.linalg.qr(random.normal(size=(max(width, 20),) * 2))[0][:20, :width]
    fitted = fit_rotation(inputs, (inputs @ true).astype(np.float32))
    if width >= 20:
        np.testing.assert_allclose(fitted, true, atol=1e-4)
    identity = fitted @ fitted.T if width >= 20 else fitted.T @ fitted
    np.testing.assert_allclose(identity, np.eye(min(width, 20)), atol=1e-4)


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
def test_a_killed_migration_goes_on(store, images, others):
    words = ["embed", store, "--migrate", "test_vit2", "--base", others, "--batch-size", "2"]
    words = [sys.executable, "-c", _CHILD, *map(str, words)]
    ending = []
    for lines in (3, 50, None):
        with subprocess.Popen(
            words, stdout=subprocess.PIPE, text=True, env=os.environ, cwd=Path.cwd()
        ) as child:
            for number, line in enumerate(child.stdout):
                if line == "wrote\n" and number + 1 == lines:
                    child.send_signal(signal.SIGKILL)
                    break
            ending.append(child.wait())
    assert ending == [-signal.SIGKILL, -signal.SIGKILL, 0]
    vectors, rows = read(store)
    assert [path for (path,) in rows] == [str(path) for path in list_paths(images)]
    bare = vfm.load("test_vit2", base=others, device="cpu")
    np.testing.assert_allclose(vectors, bare.embed(list_paths(images)), atol=1e-5)
