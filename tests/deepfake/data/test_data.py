import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from vfm_runtime.deepfake.faces.crop import CropSpec, crop_whole

from tests.deepfake.data.faces import write_faces
from vfm.deepfake.data.augment import View
from vfm.deepfake.data.base import GROUPS, write_crop
from vfm.deepfake.data.data import DeepfakeData
from vfm.deepfake.data.dataset import BLENDED, resize_mask
from vfm.deepfake.data.manifest import read_manifest, write_manifest
from vfm.deepfake.data.pairs import Pairs
from vfm.deepfake.data.record import LABELS, DeepfakeDataError, Item
from vfm.preprocess import Preprocess
from vfm.spec import build

SIDE = 48


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faces")
    write_faces(folder, num_identities=8, num_frames=2, size=SIDE)
    return folder


def listed(root, **changes):
    settings = {"batch_size": 4, "num_workers": 0, "val_fraction": 0.25, "test_fraction": 0.25}
    data = DeepfakeData(root, **(settings | changes))
    data.preprocess = Preprocess(size=(32, 32))
    return data


def rewritten(faces, folder, change, crop=True):
    """The manifest in another folder, each item changed; None leaves it out."""
    items = [change(item) for item in read_manifest(faces / "manifest.csv")]
    folder.mkdir(exist_ok=True)
    write_manifest(folder / "manifest.csv", [item for item in items if item is not None])
    if crop:
        write_crop(folder, CropSpec(source="cropped", size=SIDE))
    return folder


def batches(data, epoch=0):
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)
    return list(loader)


def images(data, epoch=0):
    return torch.cat([batch["image"] for batch in batches(data, epoch)])


def test_trap_08_fake_is_1_and_real_is_0_whatever_the_order(faces):
    data = listed(faces)
    data.setup("fit")
    assert data.labels == ("real", "fake") == LABELS
    assert data.group_columns == GROUPS
    for split, records in data.records.items():
        for record in records:
            assert record.label == (record.item.label == "fake")
            assert record.groups == (*record.item.key, record.component)
            assert record.source == record.item.path
            assert record.item.split == split


def test_trap_02_groups_tie_persons_and_no_split_shares_one(faces):
    data = listed(faces)
    data.setup("fit")
    tied = {s: {r.component for r in records} for s, records in data.records.items()}
    assert set(tied) == {"train", "val", "test"}
    assert not tied["train"] & tied["val"]
    assert not tied["test"] & (tied["train"] | tied["val"])


@pytest.mark.parametrize("mode", ["paired", "mixed", "sbi"])
def test_pairs_come_as_real_fake_real_fake(faces, mode):
    data = listed(faces, mode=mode)
    data.setup("fit")
    loaded = batches(data)
    assert [len(batch["target"].label) for batch in loaded] == [4, 4, 4, 4]
    for batch in loaded:
        assert batch["target"].label.tolist() == [0, 1, 0, 1]
        assert batch["target"].mask.shape == (4, 32, 32)
        assert batch["target"].mask.dtype == torch.float32
        assert batch["target"].mask[::2].max() == 0
        assert (batch["target"].mask[1::2].amax((1, 2)) > 0.3).all()
    names = [name for batch in loaded for name in batch["name"]]
    reals, deepfakes = names[::2], names[1::2]
    assert sorted(reals) == sorted(r.name for r in data.records["train"] if r.label == 0)
    blended = sum(BLENDED in name for name in deepfakes)
    assert {"paired": blended == 0, "sbi": blended == 8, "mixed": 0 < blended < 8}[mode]


def test_trap_18_pair_holds_a_forgery_of_the_same_video_and_frame(faces):
    data = listed(faces, mode="paired")
    data.setup("fit")
    items = {record.name: record.item for record in data.list_records("train")}
    for batch in batches(data):
        for real, fake in zip(batch["name"][::2], batch["name"][1::2], strict=True):
            assert items[fake].source == items[real].video
            assert items[fake].frame == items[real].frame


def test_without_own_frame_a_pair_takes_another_frame_of_the_video():
    items = [
        Item("r", "real", "v", frame=7),
        Item("a", "fake", "v_w", method="swap", source="v", frame=1),
        Item("b", "fake", "v_w", method="swap", source="v", frame=2),
        Item("c", "fake", "x_w", method="swap", source="x", frame=7),
    ]
    pairs = Pairs(items)
    drawn = {pairs.draw(0, np.random.default_rng(seed)) for seed in range(30)}
    assert drawn == {1, 2}
    assert pairs.unused == 1


def test_in_a_pair_both_get_the_same_edits(faces, tmp_path):
    # Fakes that are copies of their reals: any difference would be one of the edits.
    def copied(item):
        if item.label == "real":
            return item
        path = tmp_path / f"{item.video}-{item.method}-{item.frame}.png"
        source = Path(item.path.replace(item.method, "real").replace(item.video, item.source))
        Image.open(source).save(path)
        return item._replace(path=path.as_posix())

    data = listed(rewritten(faces, tmp_path, copied), mode="paired", benign_share=0.0)
    data.setup("fit")
    for batch in batches(data):
        assert (batch["image"][::2] == batch["image"][1::2]).all()
    whole = listed(tmp_path, mode="paired", benign_share=0.0, edits=False)
    whole.setup("fit")
    assert (images(data) != images(whole)).any()


@pytest.mark.parametrize("mode", ["plain", "mixed", "sbi"])
def test_trap_15_epochs_differ_and_a_seed_reproduces(faces, mode):
    def made(epoch=0, **changes):
        data = listed(faces, mode=mode, **changes)
        data.setup("fit")
        one = data._build_training_dataset()
        return [one[epoch, index] for index in range(len(one))]

    def pixels(samples):
        flat = [s for sample in samples for s in (sample if mode != "plain" else (sample,))]
        return np.stack([sample.image for sample in flat])

    first, again, later, other = made(), made(), made(epoch=1), made(seed=1)
    assert (pixels(first) == pixels(again)).all()
    assert (pixels(first) != pixels(later)).any(axis=(1, 2, 3)).mean() > 0.9
    assert not np.array_equal(pixels(first), pixels(other))


def test_trap_15_workers_make_what_one_process_makes(faces):
    alone, shared = listed(faces), listed(faces, num_workers=2)
    for data in (alone, shared):
        data.setup("fit")
    one = images(alone)
    assert (one == images(shared)).all()
    # No two workers draw alike: every image is another one.
    assert len(torch.unique(one.flatten(1), dim=0)) == len(one)


def test_evaluation_shows_images_as_they_are_with_their_masks(faces):
    data = listed(faces)
    data.setup("fit")
    (batch, *_) = data.val_dataloader()
    for image, name in zip(batch["image"], batch["name"], strict=True):
        pixels = np.asarray(Image.open(faces / name))
        assert (image.numpy() == data.preprocess.resize(pixels)[0]).all()
    peak = batch["target"].mask.amax((1, 2))
    assert (peak[batch["target"].label == 0] == 0).all()
    assert (peak[batch["target"].label == 1] > 0.8).all()


def test_fake_without_a_mask_has_an_unknown_one(faces, tmp_path):
    root = rewritten(faces, tmp_path / "m", lambda item: item._replace(mask=""))
    for mode in ("plain", "paired"):
        data = listed(root, mode=mode)
        data.setup("fit")
        for batch in (*batches(data), *data.val_dataloader()):
            known = batch["target"].mask.amin((1, 2)) >= 0
            assert (known == (batch["target"].label == 0)).all()
            assert (batch["target"].mask[batch["target"].label == 1] == -1).all()


@pytest.mark.parametrize("fit", ["crop", "squash", "letterbox"])
@pytest.mark.parametrize("size", [(32, 32), (20, 36), (96, 96)])
def test_trap_13_mask_lies_where_the_image_lies(fit, size):
    white = np.zeros((60, 60, 3), np.uint8)
    white[15:40, 20:50] = 255
    preprocess = Preprocess(size=size, fit=fit, crop_fraction=0.9, interpolation="bilinear")
    mask = resize_mask(View(white, white[..., 0].astype(np.float32) / 255), preprocess)
    pixels = preprocess.resize(white)[0][..., 0].astype(np.float32) / 255
    # Beside the image there is a grey border, which is not forged.
    border = preprocess.resize(np.zeros_like(white))[0][..., 0] > 64
    assert (mask[border] == 0).all()
    pixels[border] = 0
    assert np.abs(mask - pixels).mean() < 0.02
    assert ((mask > 0.5) != (pixels > 0.5)).mean() < 0.02


def test_trap_12_unreadable_image_takes_its_pair_away_and_is_listed(faces, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")

    def damaged(item):
        first = item.label == "real" and item.video == "person000" and item.frame == 0
        return item._replace(path=broken.as_posix()) if first else item

    data = listed(rewritten(faces, tmp_path / "m", damaged), mode="sbi", force_split="train")
    data.setup("fit")
    loaded = batches(data)
    skipped = [name for batch in loaded for name, _ in batch["skipped"]]
    assert [Path(name).name for name in skipped] == ["broken.png"]
    assert sum(len(batch["target"].label) for batch in loaded) == 2 * (16 - 1)
    for batch in loaded:
        assert batch["target"].label.tolist() == [0, 1] * (len(batch["target"].label) // 2)


def test_unreadable_mask_and_landmarks_are_named(faces, tmp_path):
    def astray(item):
        return item._replace(mask=item.mask and "/nowhere/mask.png", landmarks="/nowhere/p.npy")

    root = rewritten(faces, tmp_path / "m", astray)
    plain, blended = listed(root, mode="plain"), listed(root, mode="sbi")
    for data in (plain, blended):
        data.setup("fit")
    reasons = {reason for batch in batches(plain) for _, reason in batch["skipped"]}
    assert reasons == {"its mask /nowhere/mask.png: no such file"}
    reasons = {reason for batch in batches(blended) for _, reason in batch["skipped"]}
    assert all("landmarks in /nowhere/p.npy cannot be read" in reason for reason in reasons)
    assert reasons


def test_trap_09_images_that_say_nothing_of_their_crop_are_refused(faces, tmp_path):
    root = rewritten(faces, tmp_path / "m", lambda item: item, crop=False)
    with pytest.raises(
        DeepfakeDataError, match=r"no .*crop\.json.*vfm faces.*--data\.cropped true"
    ):
        listed(root).setup("fit")
    data = listed(root, cropped=True, crop_size=40)
    data.setup("fit")
    assert data.crop == CropSpec(source="cropped", size=40)
    (batch, *_) = data.val_dataloader()
    pixels = crop_whole(np.asarray(Image.open(data.records["val"][0].source)), data.crop).pixels
    assert (batch["image"][0].numpy() == data.preprocess.resize(pixels)[0]).all()


def test_trap_09_declaration_against_the_crop_file_is_refused(faces):
    with pytest.raises(
        DeepfakeDataError, match=r"says that the images are 'cropped', --data\.native"
    ):
        listed(faces, native=True, mode="plain").setup("fit")


def test_trap_09_picture_that_is_no_crop_is_not_resized_to_one(faces, tmp_path):
    root = rewritten(faces, tmp_path / "m", lambda item: item)
    write_crop(root, CropSpec(source="faces", size=64))
    data = listed(root)
    data.setup("fit")
    (batch, *_) = data.val_dataloader()
    assert len(batch["target"].label) == 0
    assert {r for _, r in batch["skipped"]} == {
        "it has 48 x 48 pixels, but crops of faces have 64 x 64"
    }


def test_crop_file_of_another_kind_is_refused(faces, tmp_path):
    root = rewritten(faces, tmp_path / "m", lambda item: item)
    (root / "crop.json").write_text(json.dumps({"size": 3}), encoding="utf-8")
    with pytest.raises(
        DeepfakeDataError, match=r"crop\.json is not the crop specification.*missing"
    ):
        listed(root).setup("fit")


def test_trap_17_native_tiles_are_not_resized(faces, tmp_path):
    root = rewritten(faces, tmp_path / "m", lambda item: item, crop=False)
    settings = {"native": True, "crop_size": 32, "tiles": 5, "mode": "plain", "benign_share": 0.0}
    data = listed(root, **settings, edits=False)
    data.setup("fit")
    assert len(data.records["val"]) == 5 * len({r.source for r in data.records["val"]})
    assert len(data.records["train"]) == len({r.source for r in data.records["train"]})
    (batch, *_) = data.val_dataloader()
    whole = np.asarray(Image.open(data.records["val"][0].source))
    places = [(8, 8), (0, 0), (0, 16), (16, 0)]
    for image, (top, left) in zip(batch["image"], places, strict=True):
        assert (image.numpy() == whole[top : top + 32, left : left + 32]).all()
    epochs = [data._build_training_dataset()[epoch, 0].image for epoch in range(4)]
    assert any((epochs[0] != image).any() for image in epochs[1:])


def test_blends_of_whole_images_are_refused(faces, tmp_path):
    root = rewritten(faces, tmp_path / "m", lambda item: item, crop=False)
    with pytest.raises(ValueError, match="mode is mixed, but blends are made of faces"):
        listed(root, native=True).setup("fit")


def test_real_images_alone_are_enough_for_blends(faces, tmp_path):
    root = rewritten(faces, tmp_path / "m", lambda i: i if i.label == "real" else None)
    data = listed(root, mode="sbi")
    with pytest.warns(UserWarning, match="The val split has no fakes: one is blended from each"):
        data.setup("fit")
    one = list(data.val_dataloader())
    for first, second in zip(one, data.val_dataloader(), strict=True):
        assert (first["image"] == second["image"]).all()
        shown = first["target"].mask.amax((1, 2)) > 0.3
        assert shown.tolist() == (first["target"].label == 1).tolist()
    labels = torch.cat([batch["target"].label for batch in one])
    assert labels.float().mean() == 0.5
    kept = build(data.keep_split(tmp_path), base=DeepfakeData)
    with pytest.warns(UserWarning, match="has no fakes"):
        assert kept.fingerprint() == data.fingerprint()


def test_training_on_blends_sees_no_fake_but_tests_on_them(faces):
    data = listed(faces, mode="sbi")
    data.setup("fit")
    assert {record.label for record in data.records["train"]} == {0}
    assert {record.label for record in data.records["val"]} == {0, 1}
    assert data.describe()["methods"]["train"] == {}


def test_kept_split_reads_the_same_images(faces, tmp_path):
    # The images may also lie below the folder of the run.
    for root in (faces, shutil.copytree(faces, tmp_path / "faces")):
        data = listed(root)
        data.setup("fit")
        again = build(data.keep_split(tmp_path), base=DeepfakeData)
        assert again.fingerprint() == data.fingerprint()
        assert again.crop == data.crop
        assert again.describe() == data.describe()


def test_whole_data_set_can_be_one_split(faces):
    data = listed(faces, force_split="test")
    data.setup("test")
    assert list(data.records) == ["test"]
    assert len(data.records["test"]) == 48
    with pytest.raises(ValueError, match="There are no train images"):
        data.setup("fit")


def test_predict_takes_every_image_below_the_root(faces):
    loaded = list(listed(faces).predict_dataloader())
    assert sum(len(batch["target"].label) for batch in loaded) == 48 + 32  # crops and masks
    assert all((batch["target"].mask == -1).all() for batch in loaded)


def test_videos_are_refused_with_the_command_that_makes_images(faces, tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"0")
    (tmp_path / "b.mp4").write_bytes(b"0")
    items = [Item("a.mp4", "real", "a"), Item("b.mp4", "fake", "b", method="x")]
    write_manifest(tmp_path / "manifest.csv", items)
    with pytest.raises(DeepfakeDataError, match=r"2 of the 2 files .*a\.mp4.*vfm faces"):
        listed(tmp_path, cropped=True).setup("fit")


def test_forgeries_without_a_named_source_make_no_pairs(faces, tmp_path):
    root = rewritten(faces, tmp_path / "m", lambda item: item._replace(source=""))
    named = r"None of the 16 fakes .*column 'source'.*mode plain"
    with pytest.raises(DeepfakeDataError, match=named):
        listed(root, mode="paired").setup("fit")
    with pytest.warns(UserWarning, match="16 of the 16 fakes to train on are in no pair"):
        listed(root, mode="mixed").setup("fit")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        listed(root, mode="plain").setup("fit")


@pytest.mark.parametrize(("label", "said"), [("real", "none is real"), ("fake", "takes both")])
def test_one_label_alone_is_refused(faces, tmp_path, label, said):
    root = rewritten(faces, tmp_path / "m", lambda i: None if i.label == label else i)
    with pytest.raises(DeepfakeDataError, match=said):
        listed(root, mode="plain" if label == "fake" else "sbi").setup("fit")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"mode": "pairs"}, r"mode is 'pairs'\. Choices: plain, paired, sbi, mixed"),
        ({"sbi_share": 1.5}, r"sbi_share is 1\.5\. Give a share"),
        ({"benign_share": -1}, r"benign_share is -1\. Give a share"),
        ({"batch_size": 5}, "batch_size is 5, but two images make a pair"),
        ({"cropped": True, "native": True}, "cropped and native are both set"),
        ({"force_split": "dev"}, r"force_split is 'dev'\. Choices: train, val, test"),
        ({"val_fraction": 0.9}, r"val_fraction is 0\.9 and test_fraction is 0\.25"),
    ],
)
def test_wrong_arguments_are_refused(faces, arguments, said):
    with pytest.raises(ValueError, match=said):
        listed(faces, **arguments)


def test_a_stated_val_split_stays_out_of_the_folds(faces, tmp_path):
    val = {"person000", "person001"}

    def place(item):
        return item._replace(split="val" if val & set(item.identities) else "")

    root = rewritten(faces, tmp_path / "stated", place)
    plain = listed(root, test_fraction=0.0)
    plain.setup()
    held_out = []
    for fold in range(2):
        data = listed(root, test_fraction=0.0, folds=2, fold=fold)
        with pytest.warns(UserWarning, match=f"stays out of the folds.* fold {fold} is in its pl"):
            data.setup()
        assert data.leaves_val_out
        held_out += [record.name for record in data.records["val"]]
    assert sorted(held_out) == sorted(record.name for record in plain.records["train"])
    everything = listed(root, test_fraction=0.0, folds=2)
    everything.setup()
    assert everything.records.keys() == {"train", "val"}
    with pytest.raises(ValueError, match="force_split is 'train' and folds is 2, but images of"):
        listed(root, folds=2, force_split="train").setup()
