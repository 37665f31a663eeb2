"""Tiles of large images: where they lie, how their boxes are merged, and bundles that have them."""

import json
from itertools import pairwise

import numpy as np
import pytest
import vfm_runtime
from fastapi.testclient import TestClient
from PIL import Image
from vfm_runtime import ContractError, ImageError
from vfm_runtime.bundle.contract import Contract
from vfm_runtime.tasks.tiling import Region, ScoredBoxes, Tiling, merge_tiles

from tests.runtime.server import toy_finder

TILES = {"side": 64, "overlap": 0.25, "max_tiles": 20}
PNG = {"Content-Type": "image/png"}
NOISE = np.random.default_rng(0).integers(0, 256, (160, 208, 3), dtype=np.uint8)


@pytest.mark.parametrize("overlap", [0.0, 0.2, 0.7])
@pytest.mark.parametrize("size", [(1000, 300), (97, 40), (2000, 1777)])
def test_tiles_cover_the_image_and_overlap(size, overlap):
    regions = Tiling(64, overlap).place(*size)
    assert len(regions) == Tiling(64, overlap).count(*size)
    seen = np.zeros(size, bool)
    for left, top, right, bottom in regions:
        assert (bottom - top, right - left) == (min(64, size[0]), min(64, size[1]))
        seen[top:bottom, left:right] = True
    assert seen.all()
    for starts in ({r.top for r in regions}, {r.left for r in regions}):
        assert all(b - a <= 64 * (1 - overlap) + 1 for a, b in pairwise(sorted(starts)))


def test_an_image_up_to_a_tile_and_a_half_stays_whole():
    assert Tiling(64).place(96, 96) == [Region(0, 0, 96, 96)]
    assert len(Tiling(64).place(97, 64)) == 2


def look(truth, tiling, size, *, jitter=0.0, seed=0):
    """What a model finds in each tile that sees every part of every object: its box, cut at the tile's edges."""
    draw = np.random.default_rng(seed)
    regions = tiling.place(*size)
    tiles = []
    for left, top, right, bottom in regions:
        moved = truth - np.array([left, top] * 2)
        inside = moved.clip(0, [right - left, bottom - top] * 2)
        area = (inside[:, 2:] - inside[:, :2]).prod(axis=1)
        visible = area / (truth[:, 2:] - truth[:, :2]).prod(axis=1)
        boxes = inside[visible > 0.1]
        boxes = boxes + draw.uniform(-jitter, jitter, boxes.shape)
        scores = (0.5 + 0.4 * visible[visible > 0.1]).astype(np.float32)
        order = np.argsort(-scores)
        tiles.append(
            ScoredBoxes(boxes[order].astype(np.float32), np.zeros(len(order), int), scores[order])
        )
    return regions, tiles


@pytest.mark.parametrize("jitter", [0.0, 0.6])
@pytest.mark.parametrize("overlap", [0.2, 0.5])
def test_every_object_is_found_once(overlap, jitter):
    draw = np.random.default_rng(1)
    corner = np.stack(np.meshgrid(np.arange(2, 560, 40), np.arange(2, 400, 40)), -1).reshape(-1, 2)
    corner = corner + draw.uniform(0, 14, corner.shape)
    # Small ones, and some that are longer than any overlap.
    sides = draw.uniform(8, 24, corner.shape)
    truth = np.concatenate([corner, corner + sides], axis=1)
    merged = merge_tiles(*look(truth, Tiling(128, overlap), (420, 600), jitter=jitter))
    assert len(merged.scores) == len(truth)
    assert (np.diff(merged.scores) <= 0).all()
    gaps = np.abs(merged.boxes[:, None] - truth[None]).max(-1)
    assert (gaps.min(axis=1) <= 2 * jitter + 1e-3).all()
    assert sorted(gaps.argmin(axis=1).tolist()) == list(range(len(truth)))


def test_pieces_of_an_object_larger_than_the_overlap_are_joined():
    truth = np.array([[20, 30, 400, 60], [100, 100, 130, 350]], float)
    merged = merge_tiles(*look(truth, Tiling(128, 0.2), (420, 600)))
    order = np.argsort(merged.boxes[:, 0])
    np.testing.assert_allclose(merged.boxes[order], truth, atol=0.01)


def test_only_pairs_of_different_tiles_in_their_overlap_are_merged():
    regions = [Region(0, 0, 100, 100), Region(80, 0, 180, 100)]

    def merge(first, second, classes=(0, 0)):
        parts = [
            ScoredBoxes(
                np.array(boxes, np.float32).reshape(-1, 4),
                np.full(len(boxes), label),
                np.full(len(boxes), 0.9, np.float32),
            )
            for boxes, label in zip((first, second), classes, strict=True)
        ]
        return len(merge_tiles(regions, parts).scores)

    same = [82, 10, 96, 30]
    moved = [2, 10, 16, 30]
    assert merge([same], [moved]) == 1
    assert merge([same], [moved], classes=(0, 1)) == 2
    # Twice in one tile: whatever a model means by it, it is as in an image of one tile.
    assert merge([same, same], []) == 2
    assert merge([same, same], [moved]) == 2
    # Beside the overlap.
    assert merge([[60, 10, 79, 30]], [[21, 10, 40, 30]]) == 2


def test_boxes_of_low_scores_are_bounded():
    regions = Tiling(64).place(64, 1000)
    low = ScoredBoxes(
        np.tile(np.array([[10, 10, 20, 20]], np.float32), (5, 1)),
        np.zeros(5, int),
        np.full(5, 0.001, np.float32),
    )
    assert len(merge_tiles(regions, [low] * len(regions)).scores) == 5
    empty = ScoredBoxes(*(values[:0] for values in low))
    assert len(merge_tiles(regions, [empty] * len(regions)).scores) == 0


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """The finder as it is, and with tiles."""
    root = tmp_path_factory.mktemp("tiled")
    plain = toy_finder.build(root / "plain")
    with pytest.MonkeyPatch.context() as patch:
        values = {**toy_finder.contract(), "format": 2, "tiles": TILES}
        patch.setattr(toy_finder, "contract", lambda **_: values)
        return plain, toy_finder.build(root / "tiled")


def test_a_bundle_with_tiles_looks_at_each(bundles):
    whole, model = (vfm_runtime.load(path, device="cpu") for path in bundles)
    regions = model.contract.tiling.place(160, 208)
    tiles = [
        whole.predict(np.ascontiguousarray(NOISE[top:bottom, left:right]))
        for left, top, right, bottom in regions
    ]
    parts = [ScoredBoxes(tile.boxes, tile.class_ids, tile.scores) for tile in tiles]
    expected = merge_tiles(regions, parts)
    for batch_size in (1, 5, 32):
        for prediction in model.predict([NOISE, NOISE], batch_size=batch_size):
            np.testing.assert_array_equal(prediction.boxes, expected.boxes)
            np.testing.assert_array_equal(prediction.scores, expected.scores)
    small = NOISE[:96, :90]
    assert model.predict(small) == whole.predict(small)
    mixed = model.predict([small, NOISE, b"", small], errors="return", batch_size=4)
    assert mixed[0] == mixed[3] == whole.predict(small)
    assert isinstance(mixed[2], ImageError)


def test_more_tiles_than_the_contract_allows_are_refused(bundles, tmp_path):
    model = vfm_runtime.load(bundles[1], device="cpu")
    Image.new("RGB", (2000, 50)).save(tmp_path / "wide.png")
    text = r"wide.png: 2000 x 50 pixels are 42 tiles of 64 pixels, and the model takes at most 20. Cut it"
    with pytest.raises(ImageError, match=text):
        model.predict(tmp_path / "wide.png")


def test_the_server_answers_as_the_bundle(bundles, tmp_path):
    from vfm_runtime.server.app import create_app
    from vfm_runtime.server.settings import Settings

    path = tmp_path / "noise.png"
    Image.fromarray(NOISE).save(path)
    expected = vfm_runtime.load(bundles[1], device="cpu").predict(path).to_dict()["boxes"]
    # Tiles of one photo are more than a batch, more than the queue and more than may be open at once.
    options = {"max_batch": 2, "max_queue": 3, "max_open_pixels": 10_000, "num_threads": 1}
    settings = Settings(bundles=(str(bundles[1]),), device="cpu", **options)
    with TestClient(create_app(settings), base_url="http://localhost") as client:
        answer = client.post("/predict", content=path.read_bytes(), headers=PNG)
        assert answer.status_code == 200
        assert answer.json()["answer"]["boxes"] == expected
        assert (answer.json()["height"], answer.json()["width"]) == (160, 208)
        Image.new("RGB", (2000, 50)).save(path)
        refused = client.post("/predict", content=path.read_bytes(), headers=PNG)
        assert refused.status_code == 400
        assert "42 tiles of 64 pixels" in refused.text


def test_contracts_with_tiles(bundles):
    values = json.loads((bundles[1] / "vfm.json").read_text())["contract"]
    contract = Contract.from_dict(values)
    assert contract.tiling == Tiling(**TILES)
    assert Contract.from_json(contract.to_json()) == contract
    for wrong in ({"side": 64}, {**TILES, "side": 8}, {**TILES, "overlap": 0.9}, [64], None):
        with pytest.raises(ContractError, match=r"'tiles' is .*'max_tiles': count"):
            Contract.from_dict({**values, "tiles": wrong})
    with pytest.raises(ContractError, match="expected none for 'classification'"):
        Contract.from_dict({**values, "task": "classification"})
    heads = {**toy_finder.contract(heads=True), "format": 2, "tiles": TILES, "task": "multi_head"}
    with pytest.raises(ContractError, match="expected none for 'multi_head'"):
        Contract.from_dict(heads)
