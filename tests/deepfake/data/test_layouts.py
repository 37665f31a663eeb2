"""The layouts of the public data sets, read from folders that hold their traps."""

import json
import warnings

import pytest

from tests.deepfake.data import trees
from tests.deepfake.data.trees import put, touch
from vfm.deepfake.data.filenames import CELEB, DFD, FORENSICS, parse_name
from vfm.deepfake.data.layouts import import_layout
from vfm.deepfake.data.manifest import read_manifest, write_manifest
from vfm.deepfake.data.record import DeepfakeDataError
from vfm.deepfake.data.splits import assign_splits, find_leaks

SHARES = {"train": 0.7, "val": 0.15, "test": 0.15}


def by_key(reading):
    return {item.key: item for item in reading.entries}


def labels(reading, root):
    return {item.path.removeprefix(f"{root.as_posix()}/"): item.label for item in reading.entries}


@pytest.mark.parametrize(
    ("tree", "options"),
    [
        (trees.forensics, {}),
        (trees.celeb, {}),
        (trees.celeb_plus, {}),
        (trees.challenge, {}),
        (trees.preview, {}),
        (trees.ffiw, {}),
        (trees.bench, {"compression": "c23"}),
        (trees.bench_celeb, {}),
    ],
)
def test_what_was_read_survives_a_manifest(tree, options, tmp_path):
    items = import_layout(tree(tmp_path), **options).entries
    write_manifest(tmp_path / "manifest.csv", items)
    assert read_manifest(tmp_path / "manifest.csv") == items
    again = import_layout(tmp_path)
    assert again.entries == items


class TestForensics:
    def test_labels_methods_persons_and_sources(self, tmp_path):
        found = by_key(import_layout(trees.forensics(tmp_path)))
        real = found["FaceForensics++", "", "000"]
        fake = found["FaceForensics++", "Deepfakes", "000_003"]
        assert (real.label, real.identities, real.split) == ("real", ("ff/000",), "train")
        assert (fake.label, fake.identities, fake.source) == ("fake", ("ff/000", "ff/003"), "000")
        assert fake.mask.endswith("Deepfakes/masks/videos/000_003.mp4")
        assert {item.compression for item in found.values()} == {"c23"}

    def test_trap_02_names_tie_target_and_source(self, tmp_path):
        items = import_layout(trees.forensics(tmp_path, lists=False, dfd=False)).entries
        placed = assign_splits(items, {"train": 0.5, "val": 0.25, "test": 0.25}, seed=0)
        split = {name: item.split for item in placed for name in item.identities}
        assert split["ff/000"] == split["ff/003"]
        assert not find_leaks(placed)

    def test_trap_05_equal_names_of_methods_are_different_videos(self, tmp_path):
        reading = import_layout(trees.forensics(tmp_path))
        same = [item for item in reading.entries if item.video == "000_003"]
        assert [item.key[1] for item in same] == ["Deepfakes", "Face2Face"]

    def test_the_official_lists_hold_for_both_orders_of_a_pair(self, tmp_path):
        items = import_layout(trees.forensics(tmp_path)).entries
        split = {item.video: item.split for item in items}
        assert split["006_007"] == split["007_006"] == split["006"] == "test"
        assert split["004"] == "val"
        assert assign_splits(items, SHARES, seed=0) == items

    def test_deep_fake_detection_is_for_testing(self, tmp_path):
        reading = import_layout(trees.forensics(tmp_path))
        own = [item for item in reading.entries if item.dataset == "DeepFakeDetection"]
        assert {item.split for item in own} == {"test"}
        assert own[1].source == own[0].video == "01__walking_outside"
        assert "no splits of its own" in reading.notes[0]

    def test_frames_are_in_the_order_of_their_numbers(self, tmp_path):
        root = trees.forensics(tmp_path, frames=True, dfd=False)
        touch(root, "manipulated_sequences/Deepfakes/c23/masks/000_003/2.png")
        touch(root, "manipulated_sequences/Deepfakes/c23/landmarks/000_003/2.npy")
        items = [
            item for item in import_layout(root).entries if item.key[1:] == ("Deepfakes", "000_003")
        ]
        assert [item.frame for item in items] == [1, 2, 10]
        assert items[1].mask.endswith("c23/masks/000_003/2.png")
        assert items[1].landmarks.endswith("c23/landmarks/000_003/2.npy")
        assert items[0].mask == items[0].landmarks == ""

    def test_videos_are_taken_before_frames_unless_frames_are_asked_for(self, tmp_path):
        root = trees.forensics(trees.forensics(tmp_path, frames=True, dfd=False), dfd=False)
        assert {item.frame for item in import_layout(root).entries} == {-1}
        frames = import_layout(root, media="frames").entries
        assert {item.frame for item in frames} == {1, 2, 10}

    def test_several_compressions_must_be_chosen_from(self, tmp_path):
        root = trees.forensics(tmp_path, ("c23", "c40"))
        with pytest.raises(DeepfakeDataError, match=r"compressions c23, c40. Name the one"):
            import_layout(root)
        assert {i.compression for i in import_layout(root, compression="c40").entries} == {"c40"}
        with pytest.raises(
            DeepfakeDataError, match=r"no videos of compression 'raw'. Choices: c23, c40"
        ):
            import_layout(root, compression="raw")

    def test_a_video_in_two_lists_is_refused(self, tmp_path):
        root = trees.forensics(tmp_path)
        put(root / "test.json", [["000", "003"]])
        with pytest.raises(
            DeepfakeDataError, match=r"video '000' is in train.json and in .*test.json"
        ):
            import_layout(root)

    def test_lists_that_are_none_or_elsewhere(self, tmp_path):
        root = trees.forensics(tmp_path / "data", lists=False)
        notes = import_layout(root).notes
        assert any("without train.json, val.json and test.json" in note for note in notes)
        with pytest.raises(DeepfakeDataError, match=r"has no train.json, val.json, test.json"):
            import_layout(root, lists=tmp_path)
        for split, pairs in trees.PAIRS.items():
            # As numbers, which is how some copies write them.
            put(tmp_path / f"{split}.json", [[int(a), int(b)] for a, b in pairs])
        found = by_key(import_layout(root, lists=tmp_path))
        assert found["FaceForensics++", "", "007"].split == "test"
        put(tmp_path / "val.json", ["004", "005"])
        with pytest.raises(DeepfakeDataError, match=r"val.json is no list of pairs"):
            import_layout(root, lists=tmp_path)


class TestCeleb:
    def test_trap_08_one_is_real_in_the_list_of_testing_videos(self, tmp_path):
        found = by_key(import_layout(trees.celeb(tmp_path / "Celeb-DF-v2")))
        assert found["Celeb-DF-v2", "", "id0_0000"].label == "real"
        assert found["Celeb-DF-v2", "Celeb-synthesis", "id0_id1_0000"].label == "fake"
        root = trees.celeb(tmp_path / "b", "0 YouTube-real/00001.mp4\n")
        with pytest.raises(
            DeepfakeDataError, match=r"line 1: .* is fake by its digit \(0; .* 1 is real"
        ):
            import_layout(root)

    def test_trap_04_official_test_videos_stay_out_of_training(self, tmp_path):
        items = import_layout(trees.celeb(tmp_path)).entries
        tested = {item.video for item in items if item.split == "test"}
        assert tested == {"00001", "id0_0000", "id0_id1_0000"}
        with pytest.warns(UserWarning, match="share something with the test set"):
            placed = assign_splits(items, {"train": 0.5, "val": 0.5}, seed=0)
        assert {item.video for item in placed if item.split == "test"} == tested
        # id0 and id1 are in the test set, and id1_id2_0000 shows id1.
        shown = {name for item in placed if item.split != "test" for name in item.identities}
        assert shown
        assert not shown & {"celeb/id0", "celeb/id1"}
        assert not find_leaks(placed)

    def test_trap_04_with_ties_of_videos_persons_may_recur(self, tmp_path):
        items = import_layout(trees.celeb(tmp_path)).entries
        placed = assign_splits(items, {"train": 0.5, "val": 0.5}, seed=0, group_by="video")
        assert len(placed) == len(items)
        assert not find_leaks(placed, "video")
        assert find_leaks(placed)

    def test_persons_and_sources_come_from_the_names(self, tmp_path):
        found = by_key(import_layout(trees.celeb(tmp_path)))
        fake = found["Celeb-DF", "Celeb-synthesis", "id1_id2_0000"]
        assert (fake.identities, fake.source) == (("celeb/id1", "celeb/id2"), "id1_0000")
        assert found["Celeb-DF", "", "00000"].identities == ()

    def test_folders_of_videos_below(self, tmp_path):
        items = import_layout(trees.celeb(tmp_path, under="videos/")).entries
        assert sum(item.split == "test" for item in items) == 3

    def test_trap_08_a_method_called_real_is_still_fake(self, tmp_path):
        reading = import_layout(trees.celeb_plus(tmp_path))
        item = by_key(reading)["Celeb-DF", "Real3DPortrait", "id0_id1_0000"]
        assert (item.label, item.split) == ("fake", "test")
        other = by_key(reading)["Celeb-DF", "SimSwap", "id0_id1_0000"]
        assert (other.label, other.split) == ("fake", "")

    def test_lists_that_miss_or_do_not_fit(self, tmp_path):
        assert (
            "nothing says which videos are its test set"
            in import_layout(trees.celeb(tmp_path / "a", listed=None)).notes[0]
        )
        root = trees.celeb(tmp_path / "b", "1 Celeb-real/id9_0000.mp4\n")
        with pytest.raises(
            DeepfakeDataError, match=r"1 of the 1 videos .* such as Celeb-real/id9_0000"
        ):
            import_layout(root)
        root = trees.celeb(tmp_path / "c", "Celeb-real/id0_0000.mp4\n")
        with pytest.raises(
            DeepfakeDataError, match=r"line 1: .* is not 0 or 1, a space and a video"
        ):
            import_layout(root)


class TestChallenge:
    def test_digit_word_and_source(self, tmp_path):
        found = by_key(import_layout(trees.challenge(tmp_path)))
        assert found["DFDC", "", "x"].split == "test"
        assert found["DFDC", "DFDC", "y"].label == "fake"
        assert found["DFDC", "DFDC", "bbb"].source == "aaa"
        assert found["DFDC", "", "aaa"].split == "train"

    def test_a_part_alone_is_split_by_source(self, tmp_path):
        root = trees.challenge(tmp_path) / "train" / "dfdc_train_part_0"
        reading = import_layout(root)
        assert len(reading.entries) == 3
        assert not any(item.split == "test" for item in reading.entries)

    def test_labels_that_are_none(self, tmp_path):
        root = trees.challenge(tmp_path)
        put(root / "test" / "labels.csv", "filename,label\nx.mp4,2\n")
        with pytest.raises(DeepfakeDataError, match=r"labels.csv, line 2: the label is '2'"):
            import_layout(root)
        put(root / "test" / "labels.csv", "file,label\nx.mp4,1\n")
        with pytest.raises(DeepfakeDataError, match=r"has no column 'filename'"):
            import_layout(root)

    def test_preview_takes_label_set_and_persons_from_the_list(self, tmp_path):
        found = by_key(import_layout(trees.preview(tmp_path)))
        fake = found["DFDCP", "method_A", "10/11/10_A"]
        assert (fake.label, fake.split) == ("fake", "train")
        assert fake.identities == ("dfdcp/10", "dfdcp/11")
        assert found["DFDCP", "", "original_videos/20/20_A"].label == "real"

    def test_preview_with_a_label_against_its_folder(self, tmp_path):
        root = trees.preview(tmp_path)
        entries = json.loads((root / "dataset.json").read_text())
        entries["original_videos/10/10_A.mp4"]["label"] = "fake"
        put(root / "dataset.json", entries)
        with pytest.raises(
            DeepfakeDataError, match=r"is fake by its label, but lies in 'original_videos'"
        ):
            import_layout(root)

    def test_trap_05_ffiw_counts_anew_in_each_split(self, tmp_path):
        items = import_layout(trees.ffiw(tmp_path)).entries
        assert len({item.key for item in items}) == len(items) == 12
        assert {i.label for i in items if "/target/" in i.path} == {"fake"}
        assert not find_leaks(items)


class TestBench:
    def test_trap_25_backslashes_and_numeric_order(self, tmp_path):
        items = import_layout(trees.bench(tmp_path), compression="c23").entries
        assert [item.frame for item in items[:2]] == [2, 10]
        assert not any("\\" in item.path for item in items)
        fake = next(item for item in items if item.method == "Face2Face")
        assert fake.mask.endswith("/masks/v/002.png")
        assert fake.source == "000"
        assert {item.split for item in items} == {"train", "val", "test"}

    def test_trap_04_test_videos_listed_for_training_are_for_testing_alone(self, tmp_path):
        reading = import_layout(trees.bench_celeb(tmp_path))
        split = {item.video: item.split for item in reading.entries}
        assert split == {"id0_0000": "test", "id0_id1_0000": "test", "id1_0000": ""}
        assert "2 of 3 videos are in several splits" in reading.notes[0]

    def test_trap_03_validation_on_the_test_set_is_undone(self, tmp_path):
        video = trees.bench_entry("DFDCP_FakeA", "x")
        real = trees.bench_entry("DFDCP_Real", "y")
        content = {
            "DFDCP": {
                "DFDCP_FakeA": {"train": {}, "val": {"x": video}, "test": {"x": video}},
                "DFDCP_Real": {"train": {"y": real}, "val": {}, "test": {}},
            }
        }
        put(tmp_path / "DFDCP.json", content)
        trees.touch_frames(content, tmp_path)
        found = by_key(import_layout(tmp_path))
        assert found["DFDCP", "DFDCP_A", "x"].split == "test"
        assert found["DFDCP", "", "y"].split == "train"

    def bench_of(self, root, key, **more):
        content = {"set": {key: {"train": {"v": trees.bench_entry(key, "v") | more}}}}
        put(root / "set.json", content)
        trees.touch_frames(content, root)
        return root

    def test_trap_08_labels_go_by_their_end(self, tmp_path):
        item = import_layout(self.bench_of(tmp_path / "a", "whichisreal_Fake")).entries[0]
        assert (item.label, item.method) == ("fake", "whichisreal")
        assert import_layout(self.bench_of(tmp_path / "b", "sd2.1_Real")).entries[0].label == "real"
        root = self.bench_of(tmp_path / "c", "unreal")
        with pytest.raises(
            DeepfakeDataError, match=r"Nothing says whether 'unreal' of set is real"
        ):
            import_layout(root)
        item = import_layout(root, labels={"unreal": "fake"}).entries[0]
        assert (item.label, item.method) == ("fake", "unreal")

    def test_trap_05_a_label_against_its_place_is_refused(self, tmp_path):
        root = self.bench_of(tmp_path, "x_Real", label="x_Fake")
        with pytest.raises(
            DeepfakeDataError, match=r"stands under 'x_Real', but its label is 'x_Fake'"
        ):
            import_layout(root)

    def test_trap_21_videos_without_frames_are_counted(self, tmp_path):
        root = trees.bench_celeb(tmp_path)
        content = json.loads((root / "Celeb-DF-v2.json").read_text())
        content["Celeb-DF-v2"]["CelebDFv2_real"]["train"]["id1_0000"]["frames"] = []
        put(root / "Celeb-DF-v2.json", content)
        notes = import_layout(root).notes
        assert any("1 videos of the lists have no frames (1 real, 0 fake)" in n for n in notes)

    def test_frames_elsewhere_are_found_or_asked_for(self, tmp_path):
        root = trees.bench_celeb(tmp_path / "frames")
        lists = tmp_path / "lists" / "Celeb-DF-v2.json"
        put(lists, (root / "Celeb-DF-v2.json").read_text())
        with pytest.raises(DeepfakeDataError, match=r"first frame .* is not in .*with base"):
            import_layout(lists)
        assert len(import_layout(lists, base=root).entries) == 6
        (root / "CDF").rename(lists.parent / "CDF")
        assert len(import_layout(lists).entries) == 6

    def test_a_file_that_is_no_list(self, tmp_path):
        path = put(tmp_path / "x.json", {"a": {"b": 3}})
        with pytest.raises(
            DeepfakeDataError, match=r"'b' holds no object. Give a list as DeepfakeBench"
        ):
            import_layout(path, "deepfakebench")


def test_a_manifest_in_a_folder_or_by_name(tmp_path):
    path = put(tmp_path / "manifest.csv", "path,label,video\nreal/a.png,fake,a\n")
    touch(tmp_path, "real/a.png")
    assert import_layout(tmp_path).entries[0].label == "fake"
    assert import_layout(path).entries == import_layout(tmp_path).entries
    listed = put(tmp_path / "list.json", [{"path": "real/a.png", "label": "real", "video": "a"}])
    assert import_layout(listed).entries[0].label == "real"


def test_a_folder_of_data_sets_names_them(tmp_path):
    trees.celeb(tmp_path / "cdf")
    trees.forensics(tmp_path / "ff")
    with pytest.raises(DeepfakeDataError, match=r"has some in it: cdf \(celeb\), ff \(ffpp\)"):
        import_layout(tmp_path)


def test_two_layouts_in_one_folder_must_be_chosen_from(tmp_path):
    trees.celeb(trees.forensics(tmp_path))
    with pytest.raises(DeepfakeDataError, match=r"looks like ffpp and like celeb. Name the one"):
        import_layout(tmp_path)
    assert {i.dataset for i in import_layout(tmp_path, "celeb").entries} == {"Celeb-DF"}


def test_options_that_would_have_no_effect_are_refused(tmp_path):
    root = trees.celeb(tmp_path)
    with pytest.raises(
        DeepfakeDataError, match=r"'celeb' takes no compression. It takes: media, lists"
    ):
        import_layout(root, compression="c23")
    with pytest.raises(DeepfakeDataError, match=r"format is 'celebdf'. Choices: auto, manifest"):
        import_layout(root, "celebdf")
    with pytest.raises(
        DeepfakeDataError, match=r"media is 'movies'. Choices: auto, videos, frames"
    ):
        import_layout(root, media="movies")


def test_folders_that_are_missing_or_empty(tmp_path):
    with pytest.raises(DeepfakeDataError, match=r"There is no file or folder .*nowhere"):
        import_layout(tmp_path / "nowhere")
    with pytest.raises(DeepfakeDataError, match=r"no images or videos in .*, read as 'plain'"):
        import_layout(tmp_path, "plain")


def test_auto_detection_warns_of_nothing(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        import_layout(trees.forensics(tmp_path))


@pytest.mark.parametrize("dataset", [FORENSICS, DFD, CELEB])
@pytest.mark.parametrize("name", ["", "video", "12345", "unreal_12", "id_0", "000_0034", "00_000"])
def test_other_names_say_nothing(dataset, name):
    assert parse_name(dataset, name) == ((), "")
