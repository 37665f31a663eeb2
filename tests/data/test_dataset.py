import io
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from vfm.data.dataset import ImageDataset, Sample, Skipped, collate, sample_seed
from vfm.data.records import Record
from vfm.data.sampler import EpochSampler
from vfm.data.synthetic import draw_shape
from vfm.data.transforms import TrainTransform
from vfm.preprocess import Preprocess

SIZE = Preprocess(size=(16, 24))


@pytest.fixture
def records(tmp_path):
    """Six files: whole at 0, 3 and 5; bad at 1, 2 and 4."""
    jpeg = io.BytesIO()
    Image.fromarray(draw_shape(0, 2, (64, 64), (1,))).save(jpeg, "jpeg")
    contents = [
        jpeg.getvalue(),
        jpeg.getvalue()[:400],
        b"",
        jpeg.getvalue(),
        b"this is a text\n",
        jpeg.getvalue(),
    ]
    names = ["whole", "truncated", "nothing", "second", "text", "third"]
    records = []
    for label, (name, content) in enumerate(zip(names, contents, strict=True)):
        path = tmp_path / f"{name}.jpg"
        path.write_bytes(content)
        records.append(Record(str(path), label, path.name))
    return records


def batches(dataset, batch_size, **options):
    return list(DataLoader(dataset, batch_size=batch_size, collate_fn=collate, **options))


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_files_leave_the_batch_smaller(records, workers):
    first, second = batches(ImageDataset(records, SIZE), 3, num_workers=workers)
    assert first["index"].tolist() == [0]
    assert first["target"].label.tolist() == [0]
    assert first["name"] == ["whole.jpg"]
    assert [name for name, _ in first["skipped"]] == ["truncated.jpg", "nothing.jpg"]
    assert all(reason for _, reason in first["skipped"])
    assert second["index"].tolist() == [3, 5]
    assert [name for name, _ in second["skipped"]] == ["text.jpg"]


def test_every_sample_is_given_once_or_skipped_once(records):
    given = batches(ImageDataset(records, SIZE), 2)
    assert [i for b in given for i in b["index"].tolist()] == [0, 3, 5]
    assert sum(len(b["skipped"]) for b in given) == 3


def test_batch_without_a_readable_file_is_empty(records):
    (batch,) = batches(ImageDataset([records[1], records[2]], SIZE), 2)
    assert batch["image"].shape == (0, 16, 24, 3)
    assert batch["image"].dtype == torch.uint8
    assert batch["target"].label.shape == batch["index"].shape == (0,)
    assert batch["target"].label.dtype == batch["index"].dtype == torch.int64
    assert batch["name"] == []
    assert len(batch["skipped"]) == 2


def test_missing_file_is_skipped(tmp_path):
    skipped = ImageDataset([Record(str(tmp_path / "gone.png"), 0, "gone.png")], SIZE)[0]
    assert isinstance(skipped, Skipped)
    assert skipped.name == "gone.png"


def test_batch_is_as_the_contract_says():
    images = [draw_shape(i, 3, size, (i,)) for i, size in enumerate([(9, 20), (40, 30), (16, 24)])]
    dataset = ImageDataset([Record(im, i, f"{i}") for i, im in enumerate(images)], SIZE)
    (batch,) = batches(dataset, 3)
    assert batch["image"].shape == (3, 16, 24, 3)
    assert batch["image"].dtype == torch.uint8
    assert batch["target"].label.tolist() == batch["index"].tolist() == [0, 1, 2]
    np.testing.assert_array_equal(batch["image"][1], SIZE.resize(images[1])[0])


def test_augmentation_depends_on_seed_epoch_and_index_alone():
    image = draw_shape(0, 2, (32, 32), (0,))
    records = [Record(image, 0, "a"), Record(image, 0, "b")]
    transform = TrainTransform("standard", SIZE)
    dataset = ImageDataset(records, SIZE, transform, seed=3)
    first = dataset[(2, 1)].image
    np.testing.assert_array_equal(first, pickle.loads(pickle.dumps(dataset))[(2, 1)].image)
    others = [dataset[(3, 1)], dataset[(2, 0)], ImageDataset(records, SIZE, transform, 4)[(2, 1)]]
    for other in others:
        assert not np.array_equal(first, other.image)


@pytest.mark.parametrize("workers", [1, 2])
def test_number_of_workers_changes_nothing(workers):
    records = [Record(draw_shape(i % 2, 2, (20, 20), (i,)), 0, f"{i}") for i in range(9)]
    dataset = ImageDataset(records, SIZE, TrainTransform("standard", SIZE))
    alone = batches(dataset, 2, sampler=EpochSampler(9, shuffle=True))
    helped = batches(dataset, 2, sampler=EpochSampler(9, shuffle=True), num_workers=workers)
    for a, b in zip(alone, helped, strict=True):
        assert torch.equal(a["image"], b["image"])
        assert a["name"] == b["name"]


def test_plain_index_is_epoch_0():
    dataset = ImageDataset(
        [Record(draw_shape(0, 2, (32, 32), (0,)), 7, "a")], SIZE, TrainTransform("light", SIZE)
    )
    sample = dataset[0]
    assert isinstance(sample, Sample)
    assert sample.label == 7
    np.testing.assert_array_equal(sample.image, dataset[(0, 0)].image)


def test_seeds_of_neighbours_are_unrelated():
    seeds = {sample_seed(s, e, i) for s in range(10) for e in range(10) for i in range(10)}
    assert len(seeds) == 1000
    assert sample_seed(0, 0, 0) == sample_seed(0, 0, 0) >= 0
