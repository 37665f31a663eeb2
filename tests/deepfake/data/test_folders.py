"""Folders without a layout of their own: real and fake, 0_real and 1_fake, ai and nature."""

import pytest

from tests.deepfake.data.test_layouts import SHARES, labels
from tests.deepfake.data.trees import touch
from vfm.deepfake.data.layouts import import_layout
from vfm.deepfake.data.record import DeepfakeDataError
from vfm.deepfake.data.splits import assign_splits, find_leaks


class TestPlain:
    def test_trap_08_the_order_of_folders_says_nothing(self, tmp_path):
        touch(tmp_path, "fake/a.png", "real/b.png")
        assert labels(import_layout(tmp_path), tmp_path) == {
            "fake/a.png": "fake",
            "real/b.png": "real",
        }

    def test_trap_08_ai_stands_before_nature(self, tmp_path):
        for split in ("train", "val"):
            touch(tmp_path, f"sdv4/x/{split}/ai/1.png", f"sdv4/x/{split}/nature/1.JPEG")
        reading = import_layout(tmp_path)
        for path, label in labels(reading, tmp_path).items():
            assert label == ("fake" if "/ai/" in path else "real")
        assert {(i.method, i.dataset) for i in reading.entries} == {("sdv4", "sdv4"), ("", "sdv4")}
        # The published protocol tests on what lies in val.
        assert {item.split for item in reading.entries} == {"train", "test"}
        assert "it is the test set here" in reading.notes[0]

    def test_trap_08_unreal_is_no_label(self, tmp_path):
        touch(tmp_path, "unreal/0_real/a.png", "unreal/1_fake/b.png")
        touch(tmp_path, "realistic_vision/dog/0_real/a.png", "realistic_vision/dog/1_fake/b.png")
        reading = import_layout(tmp_path)
        assert all(
            item.label == ("fake" if item.path.endswith("b.png") else "real")
            for item in reading.entries
        )
        assert {i.method for i in reading.entries} == {"", "unreal", "realistic_vision"}
        touch(tmp_path / "other", "unreal/a.png", "realistic/b.png")
        with pytest.raises(
            DeepfakeDataError, match=r"Nothing says .* real and which are fake.*realistic, unreal"
        ):
            import_layout(tmp_path / "other")

    def test_trap_01_folders_of_frames_are_videos(self, tmp_path):
        names = [f"{n}.png" for n in (10, 9, 100)]
        touch(tmp_path, *(f"real/a/{n}" for n in names), *(f"fake/swap/a/{n}" for n in names))
        reading = import_layout(tmp_path)
        assert [(item.label, item.method, item.video, item.frame) for item in reading.entries] == [
            *(("real", "", "a", n) for n in (9, 10, 100)),
            *(("fake", "swap", "a", n) for n in (9, 10, 100)),
        ]
        assert "2 folders of numbered images" in reading.notes[0]
        stills = import_layout(tmp_path, grouping="still").entries
        assert len({item.key for item in stills}) == 6

    def test_trap_01_frames_of_a_video_in_train_and_test_are_refused(self, tmp_path):
        for split, n in (("train", 1), ("test", 2)):
            touch(tmp_path, f"{split}/real/v/{n}.png", f"{split}/fake/swap/w{n}/{n}.png")
        items = import_layout(tmp_path).entries
        with pytest.raises(DeepfakeDataError, match=r"The splits share video 'v'"):
            assign_splits(items, SHARES, seed=0)

    def test_trap_01_frames_that_lie_flat_are_noticed(self, tmp_path):
        touch(tmp_path, *(f"real/00{v}_{n}.png" for v in range(2) for n in range(4)))
        touch(tmp_path, *(f"fake/000_001_{n}.png" for n in range(4)))
        notes = import_layout(tmp_path).notes
        assert any("12 images have names that begin alike" in note for note in notes)
        named = import_layout(tmp_path, grouping="name").entries
        assert {item.video for item in named} == {"000", "001", "000_001"}
        assert named[-1].identities == ("ff/000", "ff/001")

    def test_numbered_stills_of_two_splits_are_not_one(self, tmp_path):
        for split in ("train", "test"):
            touch(tmp_path, f"{split}/real/0001.png", f"{split}/fake/0001.png")
        items = import_layout(tmp_path).entries
        assert {item.frame for item in items} == {-1}
        assert not find_leaks(items)

    def test_videos_and_names_of_known_data_sets(self, tmp_path):
        touch(tmp_path, "real/000.mp4", "real/003.mp4", "fake/000_003.mp4")
        reading = import_layout(tmp_path)
        assert reading.entries[-1].source == "000"
        assert "named as in FaceForensics++" in reading.notes[0]

    def test_splits_above_or_below_the_labels(self, tmp_path):
        touch(tmp_path, "real/train/a.png", "fake/Validation/b.png", "test/real/c.png")
        reading = import_layout(tmp_path)
        assert {i.path[-5]: i.split for i in reading.entries} == {
            "a": "train",
            "b": "val",
            "c": "test",
        }

    def test_paths_that_contradict_themselves(self, tmp_path):
        touch(tmp_path / "a", "real/fake/x.png")
        with pytest.raises(DeepfakeDataError, match=r"real/fake in .* says both real and fake"):
            import_layout(tmp_path / "a")
        touch(tmp_path / "b", "train/real/test/x.png")
        with pytest.raises(DeepfakeDataError, match=r"names two splits: train and test"):
            import_layout(tmp_path / "b")
        touch(tmp_path / "c", "real/x.mp4", "real/x/1.png")
        with pytest.raises(
            DeepfakeDataError, match=r"two videos called 'x'.*as a file and as frames"
        ):
            import_layout(tmp_path / "c")

    def test_other_words_and_files_without_a_label(self, tmp_path):
        touch(tmp_path, "real/a.png", "deepfakes/b.png")
        reading = import_layout(tmp_path)
        assert "1 images and videos" in reading.notes[0]
        assert "deepfakes/b.png" in reading.notes[0]
        reading = import_layout(tmp_path, labels={"Deepfakes": "fake"})
        assert labels(reading, tmp_path)["deepfakes/b.png"] == "fake"

    def test_only_one_class_is_said(self, tmp_path):
        touch(tmp_path, "real/a.png")
        notes = import_layout(tmp_path).notes
        assert (
            "has only real images or videos, and no fake one. That is enough to train" in notes[0]
        )
        touch(tmp_path / "b", "fake/a.png")
        assert "Nothing can be trained" in import_layout(tmp_path / "b").notes[0]

    def test_hidden_files_and_those_of_macos_are_no_images(self, tmp_path):
        touch(tmp_path, "real/a.png", "real/._a.png", "__MACOSX/real/a.png", "fake/b.png")
        assert len(import_layout(tmp_path).entries) == 2
