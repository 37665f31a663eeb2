"""Options that every data module takes."""

import inspect

import pytest
from PIL import Image
from vfm_runtime.errors import OptionError

from vfm import data
from vfm.data.base import ImageData
from vfm.data.options import LOADER_DEFAULTS, LoaderOptions
from vfm.preprocess import Preprocess
from vfm.spec import build

KINDS = [getattr(data, name) for name in data.__all__]


def test_every_option_has_a_type_and_a_default():
    assert LOADER_DEFAULTS.keys() == LoaderOptions.__annotations__.keys()


@pytest.mark.parametrize("kind", KINDS)
def test_each_data_module_shows_all_options_with_its_own_defaults(kind):
    arguments = inspect.signature(kind).parameters
    assert {name: arguments[name].default for name in LOADER_DEFAULTS} == kind.option_defaults
    assert "batch_size: Images in a batch" in inspect.getdoc(kind.__init__)


def test_options_are_recorded_and_rebuilt():
    digits = data.DigitsData(batch_size=7)
    assert digits.spec["init_args"] == {
        "augment": "auto",
        "batch_size": 7,
        "num_workers": 0,
        "seed": 0,
        "folds": None,
        "fold": None,
        "bit_depth": None,
        "max_pixels": None,
        "balance": "none",
        "balance_power": 1.0,
    }
    again = build(digits.spec, base=ImageData)
    assert (again.batch_size, again.num_workers, again.seed) == (7, 0, 0)


def test_large_photos_are_read_where_a_number_allows_them(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for number in range(6):
        path = tmp_path / f"{'ab'[number % 2]}/{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (40, 30)).save(path)
    options = {"num_workers": 1, "val_fraction": 0.0, "test_fraction": 0.0}
    for max_pixels, count in ((None, 0), (1200, 6)):
        images = data.FolderData(tmp_path, max_pixels=max_pixels, **options)
        images.preprocess = Preprocess(size=(8, 8))
        (batch,) = images.train_dataloader()
        assert len(batch["name"]) == count
        assert all("more pixels than is safe" in reason for _, reason in batch["skipped"])
    with pytest.raises(
        OptionError, match=r"max_pixels is 0\. Give the pixels of your largest photo"
    ):
        data.FolderData(tmp_path, max_pixels=0)
