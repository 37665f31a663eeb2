import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from vfm.data import DigitsData
from vfm.preprocess import Preprocess


@pytest.fixture(scope="module")
def data():
    data = DigitsData(batch_size=64)
    data.preprocess = Preprocess(size=(16, 16))
    data.setup("fit")
    return data


def test_every_digit_is_in_one_split(data):
    names = [record.name for records in data.records.values() for record in records]
    assert len(names) == len(set(names)) == 1797
    sizes = {split: len(records) for split, records in data.records.items()}
    assert sizes["train"] == pytest.approx(0.7 * 1797, abs=10)
    assert sizes["val"] == pytest.approx(0.1 * 1797, abs=10)
    assert sizes["test"] == pytest.approx(0.2 * 1797, abs=10)
    assert data.labels == tuple("0123456789")


def test_images_use_the_whole_range(data):
    image = data.records["train"][0].source
    assert image.shape == (8, 8, 3)
    assert image.dtype == np.uint8
    assert image.max() == 255
    assert image.min() == 0


def test_labels_fit_the_images(data):
    def arrays(records):
        return np.stack([r.source[..., 0].ravel() / 255 for r in records]), [
            r.label for r in records
        ]

    model = LogisticRegression(max_iter=300).fit(*arrays(data.records["train"]))
    assert model.score(*arrays(data.records["test"])) > 0.93


def test_digits_are_not_mirrored_by_default(data):
    assert data.augment == "light"


def test_loaders_give_every_image(data):
    for loader, split in [
        (data.train_dataloader(), "train"),
        (data.val_dataloader(), "val"),
        (data.test_dataloader(), "test"),
        (data.predict_dataloader(), "test"),
    ]:
        indices = sorted(i for batch in loader for i in batch["index"].tolist())
        assert indices == list(range(len(data.records[split])))


def test_split_depends_on_the_seed():
    names = []
    for seed in (0, 0, 1):
        data = DigitsData(seed=seed)
        data.setup()
        names.append([record.name for record in data.records["test"]])
    assert names[0] == names[1] != names[2]
