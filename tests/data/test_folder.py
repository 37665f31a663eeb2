import os
import re
import shutil
from types import SimpleNamespace

import pytest
import torch

from tests.image_folders import write_image_folder
from vfm.data import FolderData
from vfm.preprocess import Preprocess
from vfm.spec import build

pytestmark = pytest.mark.filterwarnings("error")
SIZE = Preprocess(size=(12, 12))


@pytest.fixture
def root(tmp_path):
    """Three classes of ten, without split folders."""
    return write_image_folder(tmp_path / "root", images_per_class=10, size=[(9, 14), (20, 8)])


def read(root, **arguments):
    data = FolderData(root, num_workers=0, **arguments)
    data.preprocess = SIZE
    data.setup()
    return data


def sizes(data):
    return {split: len(records) for split, records in data.records.items()}


def names(loader):
    return [name for batch in loader for name in batch["name"]]


def test_split_is_drawn_class_by_class(root):
    data = read(root)
    assert data.labels == ("class_0", "class_1", "class_2")
    assert sizes(data) == {"train": 24, "val": 3, "test": 3}
    assert sorted(r.label for r in data.records["val"]) == [0, 1, 2]
    assert data.records == read(root).records
    assert data.records != read(root, seed=1).records


def test_a_moved_folder_has_the_same_split_and_fingerprint(root, tmp_path):
    shutil.copytree(root, tmp_path / "moved")
    one, two = read(root), read(tmp_path / "moved")
    assert [r.name for r in one.records["val"]] == [r.name for r in two.records["val"]]
    assert one.fingerprint() == two.fingerprint()


def test_fingerprint_changes_with_file_label_and_split(root):
    before = read(root).fingerprint()
    assert read(root, seed=1).fingerprint() != before
    with (root / "class_0" / "0000.png").open("ab") as file:
        file.write(b"x")
    changed = read(root).fingerprint()
    assert changed != before
    (root / "class_0").rename(root / "class_9")
    assert read(root).fingerprint() not in (before, changed)


@pytest.mark.parametrize("val", ["val", "valid", "validation", "Val"])
def test_split_folders_are_kept(tmp_path, val):
    root = write_image_folder(tmp_path, images_per_class=4, splits=["train", val, "test"])
    data = read(root)
    assert sizes(data) == {"train": 12, "val": 12, "test": 12}
    assert all(r.name.startswith(f"{val}/") for r in data.records["val"])


def test_validation_is_drawn_from_train(tmp_path):
    root = write_image_folder(tmp_path, images_per_class=10, splits=["train", "test"])
    data = read(root, val_fraction=0.2)
    assert sizes(data) == {"train": 24, "val": 6, "test": 30}
    assert all(r.name.startswith("train/") for r in data.records["val"])


def test_test_folder_alone_can_be_tested(tmp_path):
    data = read(write_image_folder(tmp_path, images_per_class=2, splits=["test"]))
    data.setup("test")
    assert len(names(data.test_dataloader())) == 6


def test_nested_and_hidden_folders(root):
    (root / "class_0" / "deep" / "deeper").mkdir(parents=True)
    shutil.move(root / "class_0" / "0000.png", root / "class_0" / "deep" / "deeper" / "x.PNG")
    shutil.copytree(root / "class_1", root / ".hidden")
    shutil.copytree(root / "class_1", root / "class_1" / ".thumbnails")
    shutil.copytree(root / "class_1", root / "class_2" / "@eaDir")
    for name in ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "lost+found"):
        (root / name).mkdir()
    data = read(root)
    assert data.labels == ("class_0", "class_1", "class_2")
    assert sum(sizes(data).values()) == 30
    assert "class_0/deep/deeper/x.PNG" in {r.name for s in data.records.values() for r in s}


def test_a_class_may_be_called_like_a_split(root):
    (root / "class_0").rename(root / "train")
    assert read(root).labels == ("class_1", "class_2", "train")


def test_train_loader_gives_every_image_in_another_order_each_epoch(root):
    data = read(root, batch_size=5)
    loader = data.train_dataloader()
    first = names(loader)
    assert sorted(first) == sorted(r.name for r in data.records["train"])
    loader.sampler.set_epoch(1)
    assert first != names(loader) != sorted(first)


@pytest.mark.parametrize(
    ("batch_size", "given"), [(23, 23), (24, 24), (5, 24), (1, 24), (32, 24), (12, 24)]
)
def test_only_a_last_batch_of_one_is_left_out(root, batch_size, given):
    loader = read(root, batch_size=batch_size).train_dataloader()
    assert len(names(loader)) == given
    assert len(loader) == len(list(loader))


def test_evaluation_is_in_order_and_whole(root):
    data = read(root, batch_size=2)
    assert names(data.val_dataloader()) == [r.name for r in data.records["val"]]
    assert names(data.test_dataloader()) == [r.name for r in data.records["test"]]


def test_unreadable_files_are_counted_and_not_replaced(root):
    (root / "class_0" / "0000.png").write_bytes(b"")
    (root / "class_1" / "0000.png").write_text("no image")
    (root / "class_2" / "0000.jpg").write_bytes((root / "class_2" / "0001.png").read_bytes()[:60])
    data = read(root, val_fraction=0, test_fraction=0)
    batches = list(data.train_dataloader())
    skipped = [name for batch in batches for name, _ in batch["skipped"]]
    assert sorted(skipped) == ["class_0/0000.png", "class_1/0000.png", "class_2/0000.jpg"]
    assert sorted(i for b in batches for i in b["index"].tolist()) == [
        i for i, r in enumerate(data.records["train"]) if r.name not in skipped
    ]


def test_two_processes_share_the_images(root):
    seen = []
    for rank in range(2):
        data = read(root, batch_size=4)
        progress = SimpleNamespace(current=SimpleNamespace(ready=0, processed=0))
        loop = SimpleNamespace(epoch_progress=progress, restarting=False)
        data.trainer = SimpleNamespace(global_rank=rank, world_size=2, num_devices=2, fit_loop=loop)
        seen.append([batch["index"] for batch in data.train_dataloader()])
        assert sum(len(batch["name"]) for batch in data.val_dataloader()) == 2
    data = read(root, batch_size=8)
    for one, two, whole in zip(*seen, data.train_dataloader(), strict=True):
        assert torch.equal(torch.cat([one, two]).sort()[0], whole["index"].sort()[0])


def test_workers_by_default_leave_a_core(root):
    data = FolderData(root)
    assert data._choose_num_workers() == min(8, len(os.sched_getaffinity(0)) - 1)
    assert read(root).train_dataloader().num_workers == 0


def test_spec_makes_equal_data(root):
    data = read(root, val_fraction=0.2, split_file=None)
    again = build(data.spec, base=FolderData)
    again.setup()
    assert again.records == data.records


# --- predict


def test_predict_takes_every_image_below_the_root(root):
    shutil.copy(root / "class_0" / "0000.png", root / "loose.png")
    data = FolderData(root, num_workers=0)
    data.preprocess = SIZE
    batches = list(data.predict_dataloader())
    assert batches[-1]["name"][-1] == "loose.png"
    assert sum(len(b["name"]) for b in batches) == 31
    assert all((b["target"].label == -1).all() for b in batches)


def test_folder_without_classes_can_only_be_predicted(root):
    data = read(root / "class_0")
    assert sizes(data) == {"predict": 10}
    assert data.labels == ()
    assert len(names(data.predict_dataloader())) == 10
    assert data.describe()["splits"]["predict"] == {"images": 10, "per_class": {}}
    with pytest.raises(ValueError, match=r"no train images; found: 10 predict\. Put images in"):
        data.setup("fit")


# --- split files


@pytest.mark.parametrize("name", ["split.csv", "first.split"])
def test_split_is_saved_and_read_back(root, tmp_path, name):
    path = tmp_path / name
    data = read(root, seed=3)
    data.save_split(path)
    again = read(root, split_file=path)
    assert again.records == data.records
    assert again.labels == data.labels
    assert path.read_text().splitlines()[0] == "path,label,split"


def test_files_that_the_table_lacks_are_named(root, tmp_path):
    read(root).save_split(tmp_path / "split.csv")
    shutil.copy(root / "class_0" / "0000.png", root / "class_0" / "new.png")
    message = r"1 image is in .*root but not listed in .*split.csv: 'class_0/new.png'. Is it"
    with pytest.raises(ValueError, match=message):
        read(root, split_file=tmp_path / "split.csv")


def test_files_that_the_folder_lacks_are_named(root, tmp_path):
    read(root).save_split(tmp_path / "split.csv")
    shutil.rmtree(root / "class_2")
    message = (
        "10 images are listed in .*split.csv but not in .*root: 'class_2/0000.png', "
        "'class_2/0001.png', 'class_2/0002.png', .... Is it the table of this folder"
    )
    with pytest.raises(ValueError, match=message):
        read(root, split_file=tmp_path / "split.csv")


# --- errors


def refused(root, message, **arguments):
    with pytest.raises(ValueError, match=message):
        read(root, **arguments)


def test_missing_folder(tmp_path):
    refused(tmp_path / "nowhere", r"folder .*nowhere does not exist \(looked in .*\). Check")


def test_file_in_place_of_a_folder(root):
    refused(root / "class_0" / "0000.png", r"0000.png is a file, not a folder. Give the folder")


def test_empty_folder(tmp_path):
    refused(tmp_path, r"no images in .* Looked for .*\.jpg.*; found no files at all. Put images")


def test_folder_of_other_files(tmp_path):
    for name in ("a.txt", "b.txt", "c.pdf", "README"):
        (tmp_path / name).write_text("x")
    refused(tmp_path, re.escape("found 2 x .txt, 1 x .pdf, 1 x no suffix."))


def test_only_one_class(root):
    shutil.rmtree(root / "class_1")
    shutil.rmtree(root / "class_2")
    refused(root, "root has only one class, 'class_0'. A classifier needs at least two")


def test_empty_class_folder(root):
    (root / "class_7").mkdir()
    refused(root, "no images in the class folder 'class_7' of .*root. Add images or delete")


def test_class_without_training_images(tmp_path):
    root = write_image_folder(tmp_path, images_per_class=3, splits=["train", "val"])
    shutil.rmtree(root / "train" / "class_1")
    refused(root, "val split has classes without training images: 'class_1'. Add training")


@pytest.mark.parametrize("twin", ["Class_0", "class_0 "])
def test_classes_that_look_alike(root, twin):
    shutil.copytree(root / "class_1", root / twin)
    refused(root, "classes '.*' and '.*' in .*root differ only by case or spaces. If they")


def test_class_too_small_for_the_splits(root):
    for index in range(2, 10):
        (root / "class_1" / f"{index:04d}.png").unlink()
    refused(root, "Class 'class_1' has 2 images, too few for one each in train, val, test.")


def test_split_and_class_folders_mixed(tmp_path):
    root = write_image_folder(tmp_path, images_per_class=3, splits=["train", "extra"])
    refused(root, r"mixes split folders \('train'\) with others \('extra'\). Use")


def test_two_folders_for_one_split(tmp_path):
    root = write_image_folder(tmp_path, images_per_class=3, splits=["train", "val", "valid"])
    refused(root, "two folders for one split: 'val' and 'valid'. Keep one")


def test_split_folder_without_classes(tmp_path):
    root = write_image_folder(tmp_path, images_per_class=3, splits=["train", "val"])
    shutil.copytree(root / "train" / "class_0", root / "test")
    refused(root, r"test has no class folders \(3 images lie in it directly\). Put the images")


def test_images_beside_class_folders_are_told(root):
    shutil.copy(root / "class_0" / "0000.png", root / "loose.png")
    with pytest.warns(UserWarning, match="1 images lie directly in .*root, beside the class"):
        assert sum(sizes(read(root)).values()) == 30


@pytest.mark.parametrize(
    ("fractions", "message"),
    [
        ((0.6, 0.4), "val_fraction is 0.6 and test_fraction is 0.4. Give shares"),
        ((-0.1, 0.1), "val_fraction is -0.1"),
    ],
)
def test_fractions_that_leave_nothing(root, fractions, message):
    val, test = fractions
    refused(root, message, val_fraction=val, test_fraction=test)


def test_missing_splits_say_what_to_do(root):
    data = read(root, val_fraction=0, test_fraction=0)
    with pytest.raises(ValueError, match=r"no val images; found: 30 train. .*limit_val_batches=0"):
        data.val_dataloader()
    with pytest.raises(ValueError, match=r"no test images; .*set test_fraction above 0"):
        data.setup("test")


def test_missing_preprocess_says_who_sets_it(root):
    data = FolderData(root)
    with pytest.raises(ValueError, match=r"FolderData does not know the size .*data.preprocess ="):
        data.train_dataloader()
