"""Records as arrays, for the data workers of large splits."""

import pickle
import subprocess
import sys
from dataclasses import dataclass

import numpy as np
import pytest

from tests.image_folders import write_image_folder
from vfm.data import FolderData, packed_records
from vfm.data.dataset import ImageDataset
from vfm.data.detection.annotation import Annotation
from vfm.data.packed_records import PackedRecords, pack_dataset
from vfm.data.records import Record
from vfm.preprocess import Preprocess


@dataclass(frozen=True, slots=True)
class Marked(Record):
    mark: float = 0.0


def test_records_come_back_as_they_were():
    boxes = Annotation(np.ones((1, 4), np.float32), np.zeros(1, bool), (5, 6))
    records = [
        Marked("a/ü.jpg", 3, "ü.jpg", ("x",), key="k", mark=0.5),
        Marked("b.jpg", (1, 2), "b.jpg"),
        Marked("c.jpg", (0,), "c.jpg", objects=boxes),
    ]
    packed = PackedRecords(records)
    assert list(packed[:2]) == records[:2]
    assert packed[-3] == records[0]
    assert packed[2].objects.size == (5, 6)
    assert (packed[2].objects.corners == 1).all()
    assert type(packed[1]) is Marked
    with pytest.raises(IndexError):
        packed[3]
    sent = pickle.loads(pickle.dumps(packed))
    assert len(pickle.dumps(packed)) < 300
    del packed  # a worker that maps the file already keeps it
    assert list(sent[:2]) == records[:2]


def test_a_spawned_worker_imports_no_lightning():
    names = "vfm.data.packed_records vfm.data.workers vfm.data.detection.dataset vfm.data.mixing"
    code = f"import {names.replace(' ', ', ')}, sys; print('lightning' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_workers_of_a_large_split_read_the_same_images(tmp_path, monkeypatch):
    write_image_folder(tmp_path, images_per_class=8)
    batches = []
    for few in (10_000, 2):
        monkeypatch.setattr(packed_records, "FEW", few)
        data = FolderData(tmp_path, num_workers=1, batch_size=4, augment="none")
        data.preprocess = Preprocess(size=(16, 16))
        data.setup("fit")
        loader = data.train_dataloader()
        assert isinstance(loader.dataset.records, PackedRecords) == (few == 2)
        assert data.train_dataloader().dataset.records is loader.dataset.records
        batches.append([batch["name"] for batch in loader])
    assert batches[0] == batches[1]


def test_images_in_memory_stay(monkeypatch):
    monkeypatch.setattr(packed_records, "FEW", 1)
    records = [Record(np.zeros((2, 2), np.uint8), 0, "a")] * 2
    dataset = ImageDataset(records, Preprocess(size=(16, 16)))
    assert pack_dataset(dataset, "train", {}).records is records
