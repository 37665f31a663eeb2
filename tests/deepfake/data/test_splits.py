"""Splits in which nothing that was trained on is tested."""

import random
from collections import Counter

import pytest

from vfm.deepfake.data.record import DeepfakeDataError, Item
from vfm.deepfake.data.splits import assign_splits, find_leaks, name_components

SHARES = {"train": 0.7, "val": 0.15, "test": 0.15}


def pairs(number, frames=1, method="DF"):
    """Videos as in FaceForensics++: 000_001 and 001_000 tie 000 and 001."""
    items = []
    for n in range(number):
        real, donor = f"{n:03}", f"{n ^ 1:03}"
        for frame in range(frames):
            items.append(Item(f"/r/{real}/{frame}.png", "real", real, (real,), frame=frame))
            fake = f"{real}_{donor}"
            items.append(
                Item(
                    *(f"/f/{fake}/{frame}.png", "fake", fake, (real, donor), method),
                    source=real,
                    frame=frame,
                )
            )
    return items


def split_of(items):
    return {item.path: item.split for item in items}


def test_trap_01_frames_of_a_video_are_never_divided():
    items = [item._replace(identities=(), source="") for item in pairs(40, frames=6)]
    placed = assign_splits(items, SHARES, seed=0)
    assert len(placed) == len(items)
    for key in {item.key for item in items}:
        assert len({item.split for item in placed if item.key == key}) == 1
    assert set(Counter(item.split for item in placed)) == {"train", "val", "test"}


def test_trap_01_a_given_split_of_frames_is_refused():
    items = [
        item._replace(split="test" if item.frame == 2 else "train") for item in pairs(4, frames=3)
    ]
    with pytest.raises(
        DeepfakeDataError, match=r"The splits share video '000'.* /r/000/2.png in test"
    ):
        assign_splits(items, SHARES, seed=0)


def test_trap_02_target_and_source_stay_in_one_split():
    placed = assign_splits(pairs(60), SHARES, seed=3)
    shown = {}
    for item in placed:
        for name in item.identities:
            assert shown.setdefault(name, item.split) == item.split
    assert not find_leaks(placed)
    counts = Counter((item.split, item.label) for item in placed)
    # 15 % of 30 groups of two real and two fake videos each.
    assert counts["test", "real"] == counts["test", "fake"] in (8, 10)


def test_trap_02_a_given_split_that_shares_a_person_is_refused_by_name():
    items = pairs(4)
    given = {"000": "train", "000_001": "train", "001": "test"}
    items = [item._replace(split=given.get(item.video, "")) for item in items]
    with pytest.raises(
        DeepfakeDataError,
        match=r"The splits share identity '001' \(1 in all\).*Or set group_by to 'video'",
    ):
        assign_splits(items, SHARES, seed=0)
    with pytest.warns(UserWarning, match=r"/f/001_000/0.png the video '001'"):
        placed = assign_splits(items, SHARES, seed=0, group_by="video")
    assert split_of(placed)["/r/001/0.png"] == "test"


def test_trap_02_a_fake_whose_source_is_in_the_test_set_is_refused():
    items = [
        Item("/r", "real", "a", split="test"),
        Item("/f", "fake", "b", method="m", split="train", source="a"),
    ]
    with pytest.raises(DeepfakeDataError, match=r"share video 'a'") as error:
        assign_splits(items, SHARES, seed=0)
    # Other group_by would not mend it.
    assert "set group_by" not in str(error.value)


def test_trap_03_what_is_given_for_testing_is_never_validated_on():
    items = [item._replace(split="test") if item.video < "01" else item for item in pairs(40)]
    placed = assign_splits(items, SHARES, seed=0)
    assert {item.split for item in placed if item.video < "01"} == {"test"}
    assert {item.split for item in placed} == {"train", "val", "test"}
    assert not find_leaks(placed)


def test_trap_04_what_is_tied_to_the_test_set_is_left_out_of_training():
    items = pairs(40)
    items = [item._replace(split="test") if item.video == "000" else item for item in items]
    with pytest.warns(
        UserWarning, match=r"2 of the 80 .* such as /f/000_001/0.png the video '000'.*would leak"
    ):
        placed = assign_splits(items, SHARES, seed=0)
    videos = {item.video for item in placed}
    assert "000" in videos
    assert not {"000_001", "001_000"} & videos
    # The other person's real videos share nothing with the test set.
    assert "001" in videos
    assert [item.video for item in placed if item.split == "test"] == ["000"]


def test_a_missing_validation_set_is_drawn_from_the_training_set():
    items = [item._replace(split="train" if item.video < "03" else "test") for item in pairs(40)]
    placed = assign_splits(items, SHARES, seed=0)
    before, after = split_of(items), split_of(placed)
    changed = {path for path in after if after[path] != before[path]}
    assert {after[path] for path in changed} == {"val"}
    assert {before[path] for path in changed} == {"train"}
    assert not find_leaks(placed)


def test_what_has_no_split_joins_its_own_group_or_the_training_set():
    items = pairs(6)
    given = {
        "000": "train",
        "001": "train",
        "002": "val",
        "003": "val",
        "004": "test",
        "005": "test",
    }
    items = [
        item._replace(split=given.get(item.video[:3], "")) if item.label == "real" else item
        for item in items
    ]
    items.append(Item("/r/other.png", "real", "other"))
    with pytest.warns(UserWarning, match=r"tied to the test set|share something with the test set"):
        placed = split_of(assign_splits(items, SHARES, seed=0))
    assert placed["/f/000_001/0.png"] == "train"
    assert placed["/f/003_002/0.png"] == "val"
    assert "/f/004_005/0.png" not in placed
    assert placed["/r/other.png"] == "train"


def test_what_lies_between_train_and_val_is_left_out():
    items = [
        Item("/r/a", "real", "a", ("a",), split="train"),
        Item("/r/b", "real", "b", ("b",), split="val"),
        Item("/f/ab", "fake", "ab", ("a", "b"), "m"),
    ]
    with pytest.warns(
        UserWarning,
        match=r"1 images or videos without a split, such as /f/ab, are tied to train and to val",
    ):
        assert len(assign_splits(items, SHARES, seed=0)) == 2


def test_the_draw_depends_on_seed_and_content_not_on_order():
    items = pairs(60)
    first = split_of(assign_splits(items, SHARES, seed=0))
    random.Random(1).shuffle(items)
    assert split_of(assign_splits(items, SHARES, seed=0)) == first
    assert split_of(assign_splits(items, SHARES, seed=1)) != first


def test_groups_are_connected_through_other_videos_and_named_alike_in_any_order():
    items = [
        Item("/1", "real", "v1", ("a",)),
        Item("/2", "fake", "v2", ("a", "b"), "m"),
        Item("/3", "real", "v3", ("b",)),
        Item("/4", "real", "v10", ("c",)),
    ]
    named = name_components(items)
    assert named[0] == named[1] == named[2] != named[3]
    assert name_components(items[::-1]) == named[::-1]
    assert len(set(name_components(items, "video"))) == 4


def test_equal_videos_of_two_data_sets_are_not_tied():
    one = Item("/1", "real", "000", dataset="A")
    assert len(set(name_components([one, one._replace(path="/2", dataset="B")]))) == 2


def test_one_large_group_says_how_to_go_on():
    items = [Item(f"/{n}", "real", f"v{n}", ("same",)) for n in range(9)]
    items += [Item(f"/f{n}", "fake", f"v{n}", ("same",), "m") for n in range(9)]
    with pytest.raises(
        DeepfakeDataError,
        match=r"18 videos make 1 group that share no person.*set group_by to 'video'",
    ):
        assign_splits(items, SHARES, seed=0)
    assert {item.split for item in assign_splits(items, SHARES, 0, "video")} == set(SHARES)


def test_only_one_label_can_be_split():
    items = [item for item in pairs(40) if item.label == "real"]
    assert {item.split for item in assign_splits(items, SHARES, seed=0)} == set(SHARES)


@pytest.mark.parametrize("shares", [{"train": 0.5}, {"train": 1.5, "val": -0.5}, {"dev": 1.0}, {}])
def test_shares_that_do_not_add_up_are_refused(shares):
    with pytest.raises(
        DeepfakeDataError, match=r"The shares of the splits are .* that add up to 1"
    ):
        assign_splits(pairs(4), shares, seed=0)


def test_unknown_ties_are_refused():
    with pytest.raises(DeepfakeDataError, match=r"group_by is 'face'. Choices: identity, video"):
        name_components(pairs(2), "face")
