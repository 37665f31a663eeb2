import json

import numpy as np
import pytest
from PIL import Image
from sklearn.neighbors import KNeighborsClassifier

from tests.image_folders import write_image_folder
from vfm.data import SyntheticData
from vfm.preprocess import Preprocess
from vfm.spec import build


def arrays(records):
    pixels = np.stack([r.source.ravel() / 255 for r in records])
    return pixels, [r.label for r in records]


def test_images_are_the_same_every_time():
    one, two, other = SyntheticData(), SyntheticData(), SyntheticData(seed=1)
    assert one.fingerprint() == two.fingerprint() != other.fingerprint()


def test_classes_can_be_learned():
    data = SyntheticData(num_images=200, image_size=16)
    data.setup()
    model = KNeighborsClassifier(3).fit(*arrays(data.records["train"]))
    assert model.score(*arrays(data.records["test"])) > 0.9


def test_description_counts_images_by_split_and_class():
    described = SyntheticData(num_classes=4, num_images=64).describe()
    assert described["data"] == "SyntheticData"
    assert described["labels"] == ["class_0", "class_1", "class_2", "class_3"]
    assert {s: d["images"] for s, d in described["splits"].items()} == {
        "train": 32,
        "val": 16,
        "test": 16,
    }
    assert described["splits"]["train"]["per_class"] == dict.fromkeys(described["labels"], 8)
    assert json.loads(json.dumps(described)) == described


def test_predict_gives_the_test_images():
    data = SyntheticData()
    data.preprocess = Preprocess(size=(8, 8))
    (batch,) = data.predict_dataloader()
    assert len(batch["name"]) == 16


def test_spec_makes_equal_data():
    data = SyntheticData(num_classes=3, seed=2)
    again = build(data.spec, base=SyntheticData)
    assert again.fingerprint() == data.fingerprint()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": 1}, "num_classes is 1. Give 2 or more."),
        ({"image_size": 7}, "image_size is 7. Give 8 pixels or more."),
        ({"num_images": 11}, "num_images is 11, too few for 4 classes. Give 12 or more"),
        ({"batch_size": 0}, "batch_size is 0. Give 1 or more."),
        ({"num_workers": -1}, "num_workers is -1. Give 0 or more."),
        ({"seed": -1}, "seed is -1. Give 0 or more."),
        (
            {"augment": "much"},
            "augment is 'much'. Choices: auto, none, light, standard, strong, or a list",
        ),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        SyntheticData(**arguments)


def test_folder_of_odd_sizes_is_written(tmp_path):
    root = write_image_folder(
        tmp_path / "new" / "root",
        num_classes=2,
        images_per_class=2,
        size=[(5, 33), (40, 7)],
        splits=["train", "val"],
        suffix=".jpg",
    )
    files = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.jpg"))
    assert len(files) == 8
    assert files[0] == "train/class_0/0000.jpg"
    with Image.open(root / files[0]) as first, Image.open(root / files[1]) as second:
        assert (first.size, second.size) == ((33, 5), (7, 40))
