import csv
import json
import shutil

import cv2
import numpy as np
import pytest
from PIL import Image
from skimage import data
from vfm_runtime.deepfake.faces.crop import CropSpec, scale_template
from vfm_runtime.errors import OptionError
from vfm_runtime.media.image import open_image

from tests.runtime import videos
from vfm.deepfake.data import crops, extract
from vfm.deepfake.data.crops import plan_videos
from vfm.deepfake.data.extract import CROP_FILE, FAILURES_FILE, SHEET_FILE, summarize
from vfm.deepfake.data.layouts import MANIFEST
from vfm.deepfake.data.manifest import read_manifest
from vfm.deepfake.data.record import DeepfakeDataError, Item

HEAD = data.astronaut()[20:212, 120:312]
SPEC = CropSpec(size=64)
NUM_FRAMES = 4


def scene(heads=((10, 20),), size=(240, 320), scale=1.0):
    """Grey with heads at these places."""
    picture = Image.new("RGB", size[::-1], (120, 125, 130))
    side = round(192 * scale)
    for x, y in heads:
        picture.paste(Image.fromarray(HEAD).resize((side, side)), (x, y))
    return np.array(picture)


def clip(path, num=10, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    frames = [scene(((10 + 4 * number, 20),), **options) for number in range(num)]
    path.write_bytes(videos.write(frames))
    return str(path)


def rows(path):
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A real and a fake video, one without a face, a damaged one, and a fake photo; changed by no test."""
    folder = tmp_path_factory.mktemp("deepfakes")
    clip(folder / "real" / "000.mp4")
    clip(folder / "fake" / "000_001.mp4", num=3)
    plain = [np.full((240, 320, 3), 90 + number, np.uint8) for number in range(5)]
    (folder / "real" / "empty.mp4").write_bytes(videos.write(plain))
    (folder / "fake" / "cut.mp4").write_bytes(b"no video at all")
    Image.fromarray(scene()).save(folder / "fake" / "photo.png")
    return folder


@pytest.fixture(scope="module")
def items(source):
    def item(name, label, video, **more):
        return Item(str(source / name), label, video, dataset="set", **more)

    return [
        item("real/000.mp4", "real", "000", identities=("000",), split="train"),
        item("real/empty.mp4", "real", "empty"),
        item("fake/000_001.mp4", "fake", "000_001", method="swap", source="000"),
        item("fake/cut.mp4", "fake", "cut", method="swap"),
        item("fake/photo.png", "fake", "photo", method="edit"),
    ]


@pytest.fixture(scope="module")
def done(items, tmp_path_factory):
    """Everything extracted once; changed by no test."""
    out = tmp_path_factory.mktemp("done") / "faces"
    counts = extract.extract(items, out, SPEC, num_frames=NUM_FRAMES, num_workers=1)
    return out, counts


def test_the_manifest_lists_crops_and_keeps_what_is_known(done):
    out, _ = done
    found = read_manifest(out / MANIFEST)
    assert {(item.key, item.frame) for item in found} == {
        *((("set", "", "000"), frame) for frame in (0, 3, 6, 9)),
        *((("set", "swap", "000_001"), frame) for frame in (0, 1, 2)),
        (("set", "edit", "photo"), 0),
    }
    real = next(item for item in found if item.video == "000")
    assert (real.identities, real.split, real.label) == (("000",), "train", "real")
    assert next(item for item in found if item.method == "swap").source == "000"


def test_crops_show_the_face_where_the_specification_says(done):
    out, _ = done
    for item in read_manifest(out / MANIFEST):
        assert np.asarray(Image.open(item.path)).shape == (64, 64, 3)
        landmarks = np.load(item.landmarks)
        assert landmarks.shape == (5, 2)
        assert np.abs(landmarks - scale_template(SPEC)).max() < 4
    # The head moves through the picture; its crops are alike.
    one, other = (
        np.asarray(Image.open(out / f"crops/set/real/000/{frame:06d}.png"), float)
        for frame in (0, 9)
    )
    assert np.abs(one - other)[16:48, 16:48].mean() < 12


def test_trap_09_the_crop_specification_lies_beside_the_manifest(done):
    out, _ = done
    assert CropSpec.from_dict(json.loads((out / CROP_FILE).read_text())) == SPEC


def test_trap_21_failures_are_listed_and_counted_for_each_class(done):
    out, counts = done
    found = {row["video"]: row for row in rows(out / FAILURES_FILE)}
    assert set(found) == {"empty", "cut"}
    assert (found["empty"]["reason"], found["empty"]["num_frames"]) == ("no_face", "4")
    assert found["cut"]["reason"] == "unreadable"
    assert found["cut"]["label"] == "fake"
    assert "cut.mp4" in found["cut"]["detail"]
    assert counts["real"] == (2, 1, 8, 4, {"no_face": 4})
    assert counts["fake"] == (3, 1, 4, 4, {"unreadable": 1})
    text = summarize(counts)
    assert "real: 4 crops from 8 frames of 2 videos or images; 1 of these have none (50.0%)" in text
    assert "frames that failed: 1 unreadable" in text
    assert "WARNING: the classes fail unequally" in text


def test_equal_failures_are_no_warning(done):
    _, counts = done
    assert "WARNING" not in summarize({"real": counts["real"]})


def test_the_contact_sheet_shows_every_crop(done):
    out, _ = done
    with Image.open(out / SHEET_FILE) as sheet:
        assert sheet.width > 8 * 140
        colours = {colour for _, colour in sheet.convert("RGB").getcolors(1 << 24)}
    assert {(0x1A, 0x98, 0x50), (0xD7, 0x30, 0x27), (0, 255, 0)} <= colours


def test_what_is_done_is_not_done_again(items, done, tmp_path, monkeypatch):
    out = shutil.copytree(done[0], tmp_path / "faces")
    shutil.rmtree(out / "crops/set/swap/000_001")
    (out / MANIFEST).unlink()
    made, whole = [], extract.cut_video
    monkeypatch.setattr(
        extract, "cut_video", lambda job, *rest: made.append(job.folder) or whole(job, *rest)
    )
    said = []
    counts = extract.extract(
        items, out, SPEC, num_frames=NUM_FRAMES, num_workers=1, progress=said.append
    )
    assert made == ["set/swap/000_001"]
    assert said[0] == "4 of 5 videos are done already."
    assert counts == done[1]
    for name in (MANIFEST, FAILURES_FILE, SHEET_FILE):
        assert (out / name).read_bytes() == (done[0] / name).read_bytes()


def test_an_interrupted_video_leaves_nothing_behind(items, tmp_path, monkeypatch):
    out, written = tmp_path / "faces", []
    whole = crops._write_crop

    def interrupted(*arguments):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(whole(*arguments))
        return written[-1]

    monkeypatch.setattr(crops, "_write_crop", interrupted)
    with pytest.raises(KeyboardInterrupt):
        extract.extract(items[:1], out, SPEC, num_frames=NUM_FRAMES, num_workers=1)
    folder = out / "crops/set/real/000"
    assert len(list(folder.iterdir())) == 2
    (folder / "000007.png").write_bytes(b"half")
    monkeypatch.setattr(crops, "_write_crop", whole)
    extract.extract(items[:1], out, SPEC, num_frames=NUM_FRAMES, num_workers=1)
    names = sorted(path.stem for path in folder.glob("*.png"))
    assert names == ["000000", "000003", "000006", "000009"]


# Importing torch in a fresh process takes most of it.
@pytest.mark.slow
def test_several_processes_give_the_same(items, done, tmp_path):
    counts = extract.extract(items, tmp_path / "faces", SPEC, num_frames=NUM_FRAMES, num_workers=2)
    assert counts == done[1]
    for path in done[0].rglob("*.*"):
        assert (tmp_path / "faces" / path.relative_to(done[0])).read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("change", "num_frames", "text"),
    [
        ({"margin": 1.5}, 4, "margin 1.3 there, 1.5 now. Crops of two kinds do not mix"),
        ({"size": 128}, 8, "size 64 there, 128 now, frames 4 there, 8 now"),
    ],
)
def test_crops_made_otherwise_do_not_mix(items, done, change, num_frames, text):
    spec = CropSpec.from_dict(SPEC.to_dict() | change)
    with pytest.raises(DeepfakeDataError, match=text):
        extract.extract(items, done[0], spec, num_frames=num_frames)


def test_a_folder_of_other_things_is_left_alone(items, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DeepfakeDataError, match=r"is there already, but has no crop\.json"):
        extract.extract(items, tmp_path, SPEC)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_no_face_at_all_is_an_error_that_says_why(items, tmp_path):
    with pytest.raises(DeepfakeDataError) as error:
        extract.extract([items[1], items[3]], tmp_path / "faces", SPEC, num_workers=1)
    text = str(error.value)
    assert "No face was found in 2 videos or images (real: 5 no_face; fake: 1 unreadable)" in text
    assert "empty.mp4" in text
    assert "lower --min_score" in text
    assert len(rows(tmp_path / "faces" / FAILURES_FILE)) == 2


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"num_frames": 0}, "--frames is 0. Give 1 or more"),
        ({"num_workers": 0}, "--workers is 0. Give 1 or more"),
    ],
)
def test_wrong_numbers_are_refused(items, tmp_path, options, text):
    with pytest.raises(DeepfakeDataError, match=text):
        extract.extract(items, tmp_path / "faces", SPEC, **options)


def test_nothing_to_cut_is_refused(tmp_path):
    with pytest.raises(DeepfakeDataError, match="no videos or images to cut"):
        extract.extract([], tmp_path / "faces", SPEC)


def test_trap_13_the_forged_face_is_cut_and_the_mask_with_it(tmp_path):
    # The forged head is the smaller one, on the right.
    image = np.array(scene(((0, 20),), size=(240, 420)))
    image[60:180, 280:400] = np.array(Image.fromarray(HEAD).resize((120, 120)))
    mask = np.zeros((240, 420), np.uint8)
    mask[90:140, 320:370] = 255
    Image.fromarray(image).save(tmp_path / "fake.png")
    Image.fromarray(mask).save(tmp_path / "mask.png")
    item = Item(
        str(tmp_path / "fake.png"), "fake", "v", method="m", mask=str(tmp_path / "mask.png")
    )
    for policy in ("largest", "all"):
        out = tmp_path / policy
        spec = CropSpec(size=64, policy=policy)
        extract.extract([item], out, spec, num_workers=1)
        (found,) = read_manifest(out / MANIFEST)
        covered = np.asarray(Image.open(found.mask)) > 127
        crop = np.asarray(Image.open(found.path)).astype(int)
        assert 0.1 < covered.mean() < 0.6
        rows_, columns = np.nonzero(covered)
        assert abs(columns.mean() - 32) < 10
        assert abs(rows_.mean() - 32) < 14
        assert crop[covered].std() > 10


def test_trap_13_a_face_that_was_not_forged_is_no_fake(tmp_path):
    Image.fromarray(scene(size=(240, 420))).save(tmp_path / "fake.png")
    mask = np.zeros((240, 420), np.uint8)
    mask[90:140, 320:370] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    item = Item(
        str(tmp_path / "fake.png"), "fake", "v", method="m", mask=str(tmp_path / "mask.png")
    )
    with pytest.raises(DeepfakeDataError, match="none of the 1 faces found lies under the mask"):
        extract.extract([item], tmp_path / "out", SPEC, num_workers=1)


def test_every_large_face_is_cut_where_all_count(tmp_path):
    image = scene(((0, 20), (200, 20)), size=(240, 400))
    Image.fromarray(image).save(tmp_path / "two.png")
    item = Item(str(tmp_path / "two.png"), "real", "two")
    extract.extract([item], tmp_path / "out", CropSpec(size=64, policy="all"), num_workers=1)
    found = read_manifest(tmp_path / "out" / MANIFEST)
    assert [item.path.rpartition("/")[2] for item in found] == ["000000.png", "000000_1.png"]
    assert [item.frame for item in found] == [0, 0]


def test_the_mask_of_a_video_may_be_a_video(tmp_path):
    path = clip(tmp_path / "fake.mp4", num=6)
    masks = []
    for number in range(6):
        mask = np.zeros((240, 320, 3), np.uint8)
        mask[80:150, 70 + 4 * number : 150 + 4 * number] = 255
        masks.append(mask)
    (tmp_path / "mask.mp4").write_bytes(videos.write(masks))
    item = Item(path, "fake", "v", method="m", mask=str(tmp_path / "mask.mp4"))
    extract.extract([item], tmp_path / "out", SPEC, num_frames=3, num_workers=1)
    found = read_manifest(tmp_path / "out" / MANIFEST)
    assert len(found) == 3
    # Mask and head move together, so the mask stays where it is in the crops.
    shown = [np.asarray(Image.open(item.mask)) > 127 for item in found]
    assert all(0.05 < mask.mean() < 0.6 for mask in shown)
    assert np.abs(shown[0].astype(int) - shown[2]).mean() < 0.08
    (tmp_path / "mask.mp4").write_bytes(videos.write(masks[:4]))
    with pytest.raises(DeepfakeDataError, match="the mask has 4 frames, its video 6"):
        extract.extract([item], tmp_path / "other", SPEC, num_frames=3, num_workers=1)


def test_a_mask_of_another_shape_is_a_failure(tmp_path):
    Image.fromarray(scene()).save(tmp_path / "a.png")
    Image.new("L", (90, 200)).save(tmp_path / "mask.png")
    items = [
        Item(str(tmp_path / "a.png"), "fake", "v", method="m", mask=str(tmp_path / "mask.png"))
    ]
    with pytest.raises(
        DeepfakeDataError, match=r"fake: 1 bad_mask.*90 x 200 pixels, the image 320 x 240"
    ):
        extract.extract(items, tmp_path / "out", SPEC, num_workers=1)


def test_landmarks_that_come_along_are_used(tmp_path):
    Image.fromarray(scene()).save(tmp_path / "a.png")
    points = scale_template(CropSpec(size=100, margin=1.0)) + 60.0
    np.save(tmp_path / "a.npy", points)
    spec = CropSpec(size=64, detector="precomputed")
    items = [
        Item(str(tmp_path / "a.png"), "real", "a", landmarks=str(tmp_path / "a.npy")),
        Item(str(tmp_path / "a.png"), "fake", "b", method="m"),
    ]
    counts = extract.extract(items, tmp_path / "out", spec, num_workers=1)
    (item,) = read_manifest(tmp_path / "out" / MANIFEST)
    np.testing.assert_allclose(np.load(item.landmarks), scale_template(spec), atol=1e-4)
    assert counts["fake"].failures == {"bad_landmarks": 1}


def test_photos_of_12_bits_are_cut_as_those_of_8(tmp_path):
    wide = scene().astype(np.uint32)
    cv2.imwrite(str(tmp_path / "a.png"), ((wide[..., ::-1] * 4095 + 127) // 255).astype(np.uint16))
    Image.fromarray(scene()).save(tmp_path / "b.png")
    np.save(tmp_path / "points.npy", scale_template(CropSpec(size=100, margin=1.0)) + 60.0)
    spec = CropSpec(size=64, detector="precomputed")
    items = [
        Item(str(tmp_path / f"{name}.png"), "real", name, landmarks=str(tmp_path / "points.npy"))
        for name in "ab"
    ]
    options = {"num_workers": 1, "bit_depth": 12}
    extract.extract(items, tmp_path / "out", spec, **options)
    deep, plain = (open_image(item.path) for item in read_manifest(tmp_path / "out" / MANIFEST))
    assert np.array_equal(deep, plain)
    with pytest.raises(DeepfakeDataError, match="bit_depth 12 there, None now"):
        extract.extract(items, tmp_path / "out", spec, num_workers=1)
    with pytest.raises(OptionError, match="bit_depth is 40"):
        extract.extract(items, tmp_path / "more", spec, bit_depth=40)


def test_frames_as_images_are_spread_over_their_video(tmp_path):
    items = []
    for number in range(9):
        path = tmp_path / f"{number}.png"
        Image.fromarray(scene(((4 * number, 20),))).save(path)
        items.append(Item(str(path), "real", "v", frame=number))
    extract.extract(items[::-1], tmp_path / "out", SPEC, num_frames=3, num_workers=1)
    assert [item.frame for item in read_manifest(tmp_path / "out" / MANIFEST)] == [0, 4, 8]


def test_trap_05_videos_of_one_name_keep_their_own_folders():
    def item(path, dataset, method, video, **more):
        return Item(path, "fake" if method else "real", video, (), method, dataset, **more)

    items = [
        item("a.png", "d", "", "000"),
        item("b.png", "d", "swap", "000"),
        item("c.png", "e", "swap", "000"),
        item("d.png", "", "", "000"),
        item("e.png", "data", "", "000"),
        item("f.png", "d", "swap", "0/0"),
        item("g.png", "d", "swap", "0_0"),
        item("h.png", "d", "real", "000"),
        item("i.png", "d", "swap", "../../x"),
        item("j.png", "d", "swap", "000", compression="c23"),
        item("k.png", "../d", "", ".."),
    ]
    folders = [job.folder for job in plan_videos(items)]
    assert len(set(folders)) == len(items)
    for folder in folders:
        parts = folder.split("/")
        assert len(parts) == 3
        assert not any(part in ("", ".", "..") for part in parts)
    assert {"d/real/000", "d/swap/000", "e/swap/000", "d/swap_c23/000"} <= set(folders)


def test_two_files_of_one_video_are_refused(tmp_path):
    items = [Item("a.mp4", "real", "v"), Item("b.mp4", "real", "v")]
    with pytest.raises(DeepfakeDataError, match=r"The video 'v' is both a\.mp4 and b\.mp4"):
        plan_videos(items)


def test_a_damaged_record_is_named(items, done, tmp_path):
    out = shutil.copytree(done[0], tmp_path / "faces")
    (out / "crops/set/real/000/video.json").write_text("{}")
    with pytest.raises(
        DeepfakeDataError, match=r"video\.json is damaged.*Delete it to cut that video"
    ):
        extract.extract(items, out, SPEC, num_frames=NUM_FRAMES, num_workers=1)


def test_the_command_reads_a_folder_and_reports(source, tmp_path, capsys):
    manifest = extract.faces(source, out=tmp_path / "faces", frames=NUM_FRAMES, size=64, workers=1)
    found = read_manifest(manifest)
    assert {item.label for item in found} == {"real", "fake"}
    printed = capsys.readouterr().out
    assert "real: 4 crops from 8 frames of 2 videos or images" in printed
    assert f"Manifest: {manifest}" in printed


def test_crops_do_not_go_into_the_data_set(source):
    with pytest.raises(DeepfakeDataError, match="The crops would go into the data set itself"):
        extract.faces(source, out=source / "faces")
