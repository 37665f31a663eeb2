from __future__ import annotations

import gzip
import struct

import numpy as np
import pytest

from vfm.data import IdxData
from vfm.data.idx import read_idx

RNG = np.random.default_rng(0)


def idx(array: np.ndarray) -> bytes:
    head = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}i", *array.shape)
    return head + array.astype(np.uint8).tobytes()


def write(root, suffix=".gz", num_train=40, num_test=10, classes=4, joint="-idx"):
    root.mkdir(exist_ok=True)
    for stem, count in (("train", num_train), ("t10k", num_test)):
        files = {
            f"{stem}-images{joint}3-ubyte": RNG.integers(0, 255, (count, 9, 7)),
            f"{stem}-labels{joint}1-ubyte": np.arange(count) % classes,
        }
        for name, array in files.items():
            data = idx(array)
            (root / (name + suffix)).write_bytes(gzip.compress(data) if suffix else data)
    return root


@pytest.mark.parametrize("suffix", [".gz", ""])
@pytest.mark.parametrize("joint", ["-idx", ".idx"])
def test_splits_and_labels(tmp_path, suffix, joint):
    data = IdxData(write(tmp_path, suffix, joint=joint), val_fraction=0.2)
    data.setup()
    assert data.labels == ("0", "1", "2", "3")
    assert {split: len(records) for split, records in data.records.items()} == {
        "train": 32,
        "val": 8,
        "test": 10,
    }
    raw = read_idx(next(tmp_path.glob("t10k-images*")), num_dimensions=3)
    record = data.records["test"][5]
    assert np.array_equal(record.source, raw[5])
    assert record.label == 1
    assert data.describe()["splits"]["val"]["per_class"] == dict.fromkeys("0123", 2)


def test_names_in_place_of_numbers(tmp_path):
    data = IdxData(write(tmp_path), label_names=["a", "b", "c", "d"])
    data.setup()
    assert data.labels == ("a", "b", "c", "d")


def test_no_validation(tmp_path):
    data = IdxData(write(tmp_path), val_fraction=0)
    data.setup()
    assert len(data.records["train"]) == 40
    with pytest.raises(ValueError, match=r"There are no val images.*Set val_fraction above 0"):
        data.setup("validate")


def test_predict_answers_for_the_test_images(tmp_path):
    data = IdxData(write(tmp_path))
    data.setup("predict")
    assert len(data.records["predict"]) == 10


def test_the_seed_draws_the_split(tmp_path):
    write(tmp_path)
    names = []
    for seed in (0, 0, 1):
        data = IdxData(tmp_path, seed=seed)
        data.setup()
        names.append([record.name for record in data.records["val"]])
    assert names[0] == names[1] != names[2]
