"""Shards: exact over processes and workers, resumable, and never silently short."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import numpy as np
import pytest
import webdataset
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image
from vfm_runtime.media.image import open_image

import vfm
from tests.tasks.tiny import VIT, fit, require_equal, trainer, vit
from vfm.data import PairShards, ShardData
from vfm.data.loader import Position
from vfm.data.shards import ShardStream
from vfm.data.tar import ShardError, expand_shards, list_shard
from vfm.models.text import SmallTextTower
from vfm.preprocess import Preprocess

COUNTS = (7, 5, 11)


def write_shards(folder: Path, counts: tuple[int, ...] = COUNTS, names: bool = False) -> str:
    generator = np.random.default_rng(0)
    number = 0
    folder.mkdir(parents=True, exist_ok=True)
    for shard, count in enumerate(counts):
        with webdataset.TarWriter(str(folder / f"{shard:03d}.tar")) as tar:
            for _ in range(count):
                pixels = generator.integers(0, 256, (20, 20, 3), dtype=np.uint8)
                file = io.BytesIO()
                Image.fromarray(pixels).save(file, "PNG")
                label = f"kind{number % 3}".encode() if names else str(number % 3).encode()
                files = {"png": file.getvalue(), "cls": label, "txt": f"number {number}".encode()}
                tar.write({"__key__": f"{number:05d}", **files})
                number += 1
    return str(folder / f"{{000..{len(counts) - 1:03d}}}.tar")


@pytest.fixture
def pattern(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("VFM_CACHE", str(tmp_path / "cache"))
    return write_shards(tmp_path / "shards")


def shard_data(pattern: str, **changes: Any) -> ShardData:
    settings = {"batch_size": 4, "num_workers": 0, "augment": "none", "shuffle": 6} | changes
    data = ShardData(pattern, val=pattern, **settings)
    data.preprocess = Preprocess(size=(16, 16))
    data.setup("fit")
    return data


def stream(data: ShardData, rank: int = 0, world: int = 1, **changes: Any) -> ShardStream:
    settings = {"batch_size": 4, "window": 6, "order": True} | changes
    return ShardStream(data.build_dataset("train"), rank=rank, world=world, **settings)


def names(batches: Any) -> list[str]:
    return [name for batch in batches for name in batch["name"]]


def test_labels_are_the_numbers_or_names_found(pattern: str, tmp_path: Path) -> None:
    assert shard_data(pattern).labels == ("0", "1", "2")
    assert shard_data(pattern, label_names=["a", "b", "c"]).labels == ("a", "b", "c")
    named = write_shards(tmp_path / "named", names=True)
    assert shard_data(named).labels == ("kind0", "kind1", "kind2")


def test_every_image_once_in_another_order_each_epoch(pattern: str) -> None:
    data = shard_data(pattern)
    one = stream(data)
    one.position = Position(0, 0)
    first, again = names(one), names(one)
    one.position = Position(1, 0)
    second = names(one)
    assert first == again
    assert first != second
    assert sorted(first) == sorted(second) == [f"{i:05d}" for i in range(sum(COUNTS))]
    assert one.__len__() == len(list(one))


@pytest.mark.parametrize("world", [2, 3, 4])
def test_ranks_share_the_images_and_have_as_many_batches(pattern: str, world: int) -> None:
    data = shard_data(pattern)
    parts = [list(stream(data, rank, world)) for rank in range(world)]
    assert len({len(part) for part in parts}) == 1
    counts = Counter(name for part in parts for name in names(part))
    assert len(counts) >= sum(COUNTS) - world  # a lonely last image is left out for an epoch
    assert sum(counts.values()) <= sum(COUNTS) + world


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_workers_share_the_batches_of_a_rank(
    pattern: str, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = stream(shard_data(pattern))
    parts = []
    for worker in range(workers):
        info = SimpleNamespace(id=worker, num_workers=workers)
        monkeypatch.setattr("vfm.data.shards.get_worker_info", lambda info=info: info)
        parts.append(list(one))
    assert sum(len(part) for part in parts) == len(one)
    assert sorted(n for part in parts for n in names(part)) == [f"{i:05d}" for i in range(23)]
    # A loader takes one batch of each in turn; the short one comes last.
    turns = [parts[i % workers][i // workers] for i in range(len(one))]
    assert [len(batch["name"]) for batch in turns] == [4] * 5 + [3]


def test_a_real_loader_with_workers_gives_every_image(pattern: str) -> None:
    data = shard_data(pattern, num_workers=2)
    assert sorted(names(data.train_dataloader())) == [f"{i:05d}" for i in range(23)]
    assert sorted(names(data.val_dataloader())) == [f"{i:05d}" for i in range(23)]


def test_resuming_gives_the_rest_of_the_epoch(
    pattern: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = stream(shard_data(pattern))
    for worker in range(2):
        info = SimpleNamespace(id=worker, num_workers=2)
        monkeypatch.setattr("vfm.data.shards.get_worker_info", lambda info=info: info)
        one.position = Position(2, 0)
        whole = list(one)
        one.position = Position(2, 3)
        rest = list(one)
        done = len(range(worker, 3, 2))
        assert names(rest) == names(whole[done:])


def test_a_position_means_the_same_numbers(pattern: str) -> None:
    loader = shard_data(pattern).train_dataloader()
    state = loader.state_dict()
    loader.load_state_dict(state | {"epoch": 3, "batches": 2})
    assert len(list(loader)) == 4
    with pytest.raises(ValueError, match=r"num workers \(2 to 0\)"):
        loader.load_state_dict(state | {"batches": 2, "num_workers": 2})
    loader.load_state_dict(state | {"batches": 0, "num_workers": 2})


def test_pixels_are_those_of_the_files(pattern: str) -> None:
    data = shard_data(pattern)
    batch = next(iter(data.val_dataloader()))
    record = data.records["val"][0]
    expected = data.preprocess.resize(open_image(record.source.read()))[0]  # type: ignore[union-attr]
    assert np.array_equal(batch["image"][0].numpy(), expected)


def test_a_memory_file_system_is_as_good_as_a_disk(pattern: str) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    for shard in expand_shards(pattern):
        memory.pipe(f"/far/{Path(shard).name}", Path(shard).read_bytes())
    far = shard_data("memory://far/*.tar")
    assert sorted(names(far.train_dataloader())) == [f"{i:05d}" for i in range(23)]


def test_training_on_shards_resumes_sample_for_sample(pattern: str, tmp_path: Path) -> None:
    L.seed_everything(0)
    each = ModelCheckpoint(tmp_path, every_n_train_steps=4, save_top_k=-1)
    task = vit(image_size=16)
    fit(tmp_path, task, shard_data(pattern), max_epochs=3, callbacks=[each])
    (middle,) = tmp_path.glob("*step=8.ckpt")
    again = vit(image_size=16)
    trainer(tmp_path, max_epochs=3, enable_checkpointing=False).fit(
        again, datamodule=shard_data(pattern), ckpt_path=middle, weights_only=True
    )
    require_equal(task.state_dict(), again.state_dict())


class Seen(L.Callback):
    def __init__(self) -> None:
        self.names: list[list[str]] = []

    def on_train_batch_start(self, run: Any, task: Any, batch: Any, batch_idx: int) -> None:
        self.names.append(batch["name"])


def pretrain(
    kind: str, pattern: str, out: Path, *callbacks: L.Callback, seed: int, **options: Any
) -> tuple[dict[str, Any], list[list[str]]]:
    """Return the weights after three epochs, and the images of each step."""
    L.seed_everything(seed, verbose=False)
    loading: Any = {"batch_size": 4, "num_workers": 0, "shuffle": 6}
    settings: Any = {"image_size": 32, "backbone_args": VIT, "drop_path": 0.2}
    task: Any = vfm.SelfSupervisedTask("vit_tiny_patch16_224", **settings)
    data: ShardData = ShardData(pattern, label_file=None, **loading)
    if kind == "pairs":
        text = SmallTextTower(16, 1, 2, context=8, vocab_size=300)
        task = vfm.ContrastiveTask("vit_tiny_patch16_224", text, dim=8, **settings)
        data = PairShards(pattern, **loading)
    seen = Seen()
    each = ModelCheckpoint(out, every_n_train_steps=2, save_top_k=-1)
    callbacks = (seen, each, *callbacks)
    trainer(out, max_epochs=3, limit_val_batches=0, callbacks=[*callbacks]).fit(
        task, datamodule=data, **options
    )
    return task.state_dict(), seen.names


KILL = """
import os, signal, sys
from pathlib import Path
import lightning as L
from tests.data.test_shards import pretrain

class Kill(L.Callback):
    def on_train_batch_start(self, run, task, batch, batch_idx):
        if (run.current_epoch, batch_idx) == (1, 3):
            os.kill(os.getpid(), signal.SIGKILL)

pretrain(sys.argv[1], sys.argv[2], Path(sys.argv[3]), Kill(), seed=3)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["views", "pairs"])
def test_a_pretraining_killed_within_a_shard_goes_on_with_the_rest_to_the_same_end(
    pattern: str, tmp_path: Path, kind: str
) -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", KILL, kind, pattern, str(tmp_path / "cut")],
        cwd=root,
        env=os.environ | {"PYTHONPATH": f"{root}:{root / 'export'}"},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr[-3000:]
    # Eight images of the second epoch are done, and no shards together have as many.
    (last,) = (tmp_path / "cut").glob("*step=8.ckpt")
    assert not list((tmp_path / "cut").glob("*step=1?.ckpt"))
    weights, names = pretrain(kind, pattern, tmp_path / "whole", seed=3)
    rest = pretrain(kind, pattern, tmp_path / "rest", seed=9, ckpt_path=last, weights_only=True)
    assert rest[1] == names[8:]
    require_equal(weights, rest[0])


@pytest.mark.parametrize("keep", [700, 9_000, 20_000, None])
def test_a_shard_cut_off_is_said(pattern: str, keep: int | None) -> None:
    shard = Path(expand_shards(pattern)[2])
    whole = shard.read_bytes()
    # Without a number: only the empty blocks at the end are gone, as when a copy stops between two files.
    keep = keep or -(-len(whole.rstrip(bytes(1))) // 512) * 512
    shard.write_bytes(whole[:keep])
    with pytest.raises(
        ShardError, match=r"002.tar is cut off after \d+ samples. Copy it again"
    ) as caught:
        shard_data(pattern)
    assert str(shard) in str(caught.value)


def test_all_shards_that_are_cut_off_are_counted_and_listed(pattern: str) -> None:
    first, _, last = map(Path, expand_shards(pattern))
    for shard in (first, last):
        shard.write_bytes(shard.read_bytes()[:3500])
    with pytest.raises(
        ShardError,
        match=rf"2 of 3 shards are cut off\. Copy them again:\n{first} after \d samples\n{last} after \d samples$",
    ):
        shard_data(pattern)


def test_a_shard_cut_off_after_it_was_listed_is_said(pattern: str) -> None:
    data = shard_data(pattern)
    shard = Path(expand_shards(pattern)[1])
    shard.write_bytes(shard.read_bytes()[:2000])
    with pytest.raises(ShardError, match=r"001.tar is cut off before byte [\d,]+\. Copy"):
        list(data.train_dataloader())


def test_what_is_no_shard_is_said(pattern: str, tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"No shard matches 'nothing/\*.tar'"):
        expand_shards("nothing/*.tar")
    with pytest.raises(ShardError, match="cannot be reached"):
        list_shard(str(tmp_path / "gone.tar"), "cls")
    text = tmp_path / "text.tar"
    text.write_text("no tar " * 500)
    with pytest.raises(ShardError, match="is no tar file without compression"):
        list_shard(str(text), "cls")
    with pytest.raises(ShardError, match=r"has no file '00000.json' with its label"):
        shard_data(pattern, label_file="json")
    with pytest.raises(ShardError, match=r"has the label '1', which is none of a\."):
        shard_data(pattern, label_names=["a"])
