"""Options that every data module takes."""

import inspect

import pytest

from vfm import data
from vfm.data.base import LOADER_DEFAULTS, ImageData, LoaderOptions
from vfm.spec import build

KINDS = [kind for kind in vars(data).values() if isinstance(kind, type)]


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
    }
    again = build(digits.spec, base=ImageData)
    assert (again.batch_size, again.num_workers, again.seed) == (7, 0, 0)
