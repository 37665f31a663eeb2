"""Duplicates: copies that were saved anew, cropped or mirrored, and leaks between splits."""

import numpy as np
from PIL import Image, ImageDraw

from tests.audit.doctor.conftest import draw_scene
from vfm.data.records import Record
from vfm.search import image_duplicates as duplicates
from vfm.search.image_duplicates import DuplicatePair, find_duplicate_images, list_leaks
from vfm.search.image_scan import scan_images


def find_pairs(folder):
    paths = sorted(folder.rglob("*.*"))
    records = [Record(str(path), 0, path.name) for path in paths]
    pairs, notes = find_duplicate_images(scan_images(records))
    named = {frozenset((paths[p.first].stem, paths[p.second].stem)): p.how for p in pairs}
    return named, notes


def make_copies():
    scene = draw_scene(0)
    mirrored = scene.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return {
        **{f"other{k}.png": draw_scene(k) for k in range(1, 9)},
        "whole.png": scene,
        "same.png": scene,
        "encoded.jpg": scene.resize((70, 70)),
        "cropped.jpg": scene.crop((8, 14, 88, 90)).resize((96, 96)),
        "mirrored.jpg": mirrored,
        "both.jpg": mirrored.crop((3, 5, 85, 88)),
    }


def test_each_kind_of_copy_is_found_and_nothing_else(scenes):
    named, notes = find_pairs(scenes(make_copies()))
    assert named[frozenset(("same", "whole"))] == "same file"
    kinds = {
        "encoded": "near-copy",
        "cropped": "crop",
        "mirrored": "mirrored near-copy",
        "both": "mirrored crop",
    }
    for name, how in kinds.items():
        ends = [pair for pair in named if name in pair and pair & {"same", "whole"}]
        assert [named[pair] for pair in ends] == [how], name
    assert not any(end.startswith("other") for pair in named for end in pair)
    assert notes == []


def test_smooth_pictures_of_one_color_are_told_apart(scenes):
    ramp = np.linspace(60, 66, 96)[None, :, None].repeat(96, 0).repeat(3, 2)
    pictures = {f"sky{k}.png": ramp + 9 * k for k in range(4)} | {"again.jpg": ramp}
    named, _ = find_pairs(
        scenes({n: Image.fromarray(p.astype(np.uint8)) for n, p in pictures.items()})
    )
    assert list(named) == [frozenset(("sky0", "again"))]


def draw_disc(color, side, start, has_spots=True):
    """A disc on white, perhaps with two spots."""
    picture = Image.new("RGB", (200, 200), "white")
    draw = ImageDraw.Draw(picture)
    draw.ellipse((start, start, start + side, start + side), fill=color)
    for left in (0.2, 0.5) if has_spots else ():
        ends = [start + side * part for part in (left, 0.3, left + 0.2, 0.5)]
        draw.ellipse(ends, fill="white")
    return picture


def test_other_objects_on_a_plain_ground_are_no_crops(scenes):
    red, brown = (216, 40, 40), (150, 70, 60)  # of one brightness
    pictures = {"1.png": draw_disc(red, 110, 25), "2.png": draw_disc(red, 90, 50)}
    assert find_pairs(scenes(pictures))[0] == {frozenset("12"): "crop"}
    for other in (draw_disc(brown, 90, 50), draw_disc(red, 90, 50, has_spots=False)):
        assert find_pairs(scenes(pictures | {"2.png": other}))[0] == {}


def test_among_many_images_crops_are_left_out_and_it_says_so(scenes, monkeypatch):
    monkeypatch.setattr(duplicates, "MOST_CROPPED", 5)
    named, notes = find_pairs(scenes(make_copies()))
    assert {"mirrored near-copy", "near-copy"} <= set(named.values())
    assert "Among more than 5 images crops are not looked for by thumbnails" in notes[0]


def test_leaks_go_by_way_of_other_copies():
    pairs = [DuplicatePair(0, 1, "crop", 0.99), DuplicatePair(1, 2, "near-copy", 0.98)]
    leaks = list_leaks(pairs, ["train", "train", "test", "test"])
    assert leaks == [pairs[1]]
    leaks = list_leaks(pairs, ["train", "", "test", "test"])
    assert [(leak.first, leak.second, leak.how) for leak in leaks] == [(0, 2, "by way of others")]
    assert list_leaks(pairs, [""] * 4) == []
