"""Folds for cross-validation: how they are drawn, and what each data module makes of them."""

import warnings
from collections import Counter
from itertools import product

import numpy as np
import pytest

from tests.data.boxes_written import drawn as draw_scenes, write as write_boxes
from tests.data.test_idx import write as write_idx
from tests.data.test_shards import write_shards
from tests.data.test_table import rows_of, write as write_table
from tests.image_folders import write_image_folder
from vfm.data import (
    DetectionData,
    FolderData,
    IdxData,
    ImageData,
    ShardData,
    SyntheticData,
    TableData,
)
from vfm.data.splits import SPLITS, draw_folds
from vfm.deepfake.data.synthetic import SyntheticDeepfakes
from vfm.spec import build


def draw(counts, folds, seed=0):
    """Fold of each image by name, of classes with these numbers of images."""
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    keys = [f"{label}/{i}" for i, label in enumerate(labels)]
    drawn = draw_folds(keys, [(label,) for label in labels], folds, seed)
    return {key: (label, fold) for key, label, fold in zip(keys, labels, drawn, strict=True)}


@pytest.mark.parametrize("counts", [[20, 31, 7], [2] * 50, [1, 9], [3, 3, 3, 100]])
def test_classes_and_images_are_spread_as_evenly_as_they_can_be(counts):
    placed = Counter(draw(counts, 5).values())
    for label, count in enumerate(counts):
        each = [placed[label, fold] for fold in range(5)]
        assert max(each) - min(each) <= 1, (label, each)
        assert sum(each) == count
    sizes = Counter(fold for _, fold in draw(counts, 5).values())
    assert len(sizes) == 5
    assert max(sizes.values()) - min(sizes.values()) <= 1


def test_folds_depend_on_seed_and_keys_not_on_their_order():
    placed = draw([20, 31], 5)
    keys = sorted(placed, reverse=True)
    again = draw_folds(keys, [(placed[key][0],) for key in keys], 5, 0)
    assert again == [placed[key][1] for key in keys]
    assert placed != draw([20, 31], 5, seed=1)


def test_a_group_is_in_one_fold_and_labels_are_spread_over_them():
    keys = [f"patient {i % 12}" for i in range(60)]
    labels = [(i % 12 % 3,) for i in range(60)]
    drawn = draw_folds(keys, labels, 4, 0)
    assert len(set(zip(keys, drawn, strict=True))) == 12
    assert set(zip(labels, drawn, strict=True)) == set(product([(0,), (1,), (2,)], range(4)))


def test_several_labels_and_none_are_spread():
    labels = [((0,), (0, 1), (1, 2), ())[i % 4] for i in range(80)]
    drawn = draw_folds([str(i) for i in range(80)], labels, 5, 0)
    for label in range(3):
        counts = Counter(f for f, of in zip(drawn, labels, strict=True) if label in of)
        assert set(counts) == set(range(5))
        assert max(counts.values()) - min(counts.values()) <= 1
    assert set(Counter(drawn).values()) == {16}


@pytest.mark.parametrize("seed", range(20))
def test_no_fold_is_empty(seed):
    generator = np.random.default_rng(seed)
    keys = [f"{k}" for k in generator.integers(0, 9, 40)]
    labels = [tuple(np.flatnonzero(row).tolist()) for row in generator.random((40, 4)) < 0.2]
    folds = len(set(keys))
    assert set(draw_folds(keys, labels, folds, seed)) == set(range(folds))


def test_more_folds_than_images_are_refused():
    message = "folds is 5, but there are only 3 images to learn from: each fold"
    with pytest.raises(ValueError, match=message):
        draw([2, 1], 5)
    with pytest.raises(ValueError, match="only 4 images to learn from in 2 groups that stay"):
        draw_folds(["a", "a", "b", "b"], [(0,)] * 4, 3, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"folds": 1}, "folds is 1. Give 2 or more, such as 5"),
        ({"fold": 1}, "fold is 1, but nothing says of how many. Give folds too: --data.folds 5"),
        ({"folds": 3, "fold": 3}, "fold is 3. Choices: 0 to 2, since there are 3 folds"),
        ({"folds": 3, "fold": -1}, "fold is -1. Choices: 0 to 2"),
    ],
)
def test_folds_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SyntheticData(**options)


def read(kind, *arguments, **options):
    data = kind(*arguments, **options)
    data.setup()
    return data


def names(data, split):
    return [record.name for record in data.records.get(split, [])]


def require_folds(kind, *arguments, folds=3, drawn=True, **options):
    """Each image of train, and of val where it is drawn, is held out once; test is that of no folds."""
    plain = read(kind, *arguments, **options)
    pool = names(plain, "train") + names(plain, "val") * drawn
    everything = read(kind, *arguments, folds=folds, **options)
    assert sorted(names(everything, "train")) == sorted(pool)
    assert names(everything, "val") == ([] if drawn else names(plain, "val"))
    held_out = []
    for fold in range(folds):
        data = read(kind, *arguments, folds=folds, fold=fold, **options)
        assert sorted(names(data, "train") + names(data, "val")) == sorted(pool)
        assert names(data, "test") == names(plain, "test") == names(everything, "test")
        held_out += names(data, "val")
    assert sorted(held_out) == sorted(pool)
    assert len(set(held_out)) == len(pool)
    return data


def require_pinned(data, folder):
    """What a run keeps states the splits, without folds."""
    pinned = build(data.keep_split(folder), base=ImageData)
    pinned.setup()
    assert pinned.folds is pinned.fold is None
    assert [names(pinned, s) for s in SPLITS] == [names(data, s) for s in SPLITS]
    assert pinned.fingerprint() == data.fingerprint()


def test_each_image_of_a_folder_is_held_out_once(tmp_path):
    root = write_image_folder(tmp_path / "images", images_per_class=10)
    require_pinned(require_folds(FolderData, root), tmp_path)


def test_a_val_split_that_is_stated_stays_out(tmp_path):
    root = write_image_folder(tmp_path / "images", splits=("train", "val", "test"))
    message = "The val split that the data states, 24 images, stays out of the folds: nothing"
    with pytest.warns(UserWarning, match=message):
        data = require_folds(FolderData, root, drawn=False)
    again = build(data.keep_split(tmp_path), base=ImageData)
    with pytest.warns(UserWarning, match=message):
        again.setup()
    assert again.fingerprint() == data.fingerprint()


def test_patients_of_a_table_are_in_one_fold(tmp_path):
    images = write_image_folder(tmp_path / "images", images_per_class=20)
    rows = rows_of(images)
    table = write_table(tmp_path / "images.csv", rows)
    options = {"root": images, "key_column": "patient", "test_fraction": 0.2}
    data = require_folds(TableData, table, **options)
    require_pinned(data, tmp_path)
    patient = {name: patient for name, _, patient, _ in rows}
    train, val = ({patient[name] for name in names(data, split)} for split in ("train", "val"))
    assert len(val) == 4
    assert not train & val


def test_a_group_that_holds_a_class_is_said(tmp_path):
    images = write_image_folder(tmp_path / "images", images_per_class=6)
    rows = [
        (path, label, label if label == "class_2" else path) for path, label, *_ in rows_of(images)
    ]
    table = write_table(tmp_path / "images.csv", rows, ("path", "label", "patient"))
    options = {"root": images, "key_column": "patient", "val_fraction": 0.0, "test_fraction": 0.0}
    said = []
    for fold in range(3):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            read(TableData, table, folds=3, fold=fold, **options)
        said += [str(w.message).partition(" of 3 ")[2] for w in caught]
    class_2 = "1 of the 3 classes, such as 'class_2'"
    assert sorted(said) == [
        *(
            f"has no image of {class_2}: they have fewer images, or groups, than folds."
            for _ in "12"
        ),
        f"holds out every image of {class_2}. Its model cannot know them.",
    ]


def test_idx_files_shards_and_drawn_shapes_have_folds(tmp_path, monkeypatch):
    monkeypatch.setenv("VFM_CACHE", str(tmp_path / "cache"))
    require_folds(IdxData, write_idx(tmp_path / "idx"))
    require_folds(ShardData, write_shards(tmp_path / "shards"))
    require_folds(SyntheticData, num_images=60)


@pytest.mark.parametrize("tile", [None, 32])
def test_photos_with_boxes_and_their_tiles_are_in_one_fold(tile, tmp_path):
    scenes = draw_scenes()
    root = write_boxes(tmp_path, "coco", {s: scenes[s] for s in ("train", "test")})
    data = require_folds(DetectionData, root, tile=tile)
    require_pinned(data, tmp_path)
    photos = [{name.partition("@")[0] for name in names(data, s)} for s in ("train", "val")]
    assert not photos[0] & photos[1]


def test_persons_and_sources_of_deepfakes_are_in_one_fold():
    settings = {"num_identities": 16, "num_frames": 1, "image_size": 32, "mode": "plain"}
    data = require_folds(SyntheticDeepfakes, **settings)
    shown = [{r.component for r in data.list_records(split)} for split in ("train", "val")]
    assert shown[0]
    assert not shown[0] & shown[1]
    with pytest.raises(ValueError, match=r"36 videos make 6 groups .* folds is 7, but there are"):
        read(SyntheticDeepfakes, folds=7, **settings)


def test_without_a_fold_there_is_nothing_to_validate_on():
    data = SyntheticData(num_images=30, folds=3)
    with pytest.raises(ValueError, match=r"There are no val images.*name the fold.*--data.fold 0"):
        data.setup("validate")
