"""Bundles that differ in their weights, and ways to put one in the place of another."""

import asyncio
import shutil
import time

import numpy as np

from tests.runtime import toy

PIXELS = np.random.default_rng(3).integers(0, 256, (1, toy.SIDE, toy.SIDE, 3), np.uint8)


def weights(seed):
    return np.random.default_rng(seed).normal(0, 0.2, toy.WEIGHTS.shape).astype("float32")


def answer_of(seed):
    flat = PIXELS.reshape(1, -1).astype("float32") / 255 - 0.5
    return toy.softmax(flat @ weights(seed))


def count(metrics, line):
    for text in metrics.render()[0].decode().splitlines():
        if text.startswith(f"{line} "):
            return float(text.rpartition(" ")[2])
    return None


def failures(metrics, name="toy"):
    return count(metrics, f'vfm_reload_failures_total{{model="{name}"}}')


def reloads(metrics, name="toy"):
    return count(metrics, f'vfm_reloads_total{{model="{name}"}}')


async def seed_of(served):
    """Which of the bundles answers."""
    outputs, _ = await served.batcher.submit({"pixels": PIXELS}, time.monotonic() + 20)
    (found,) = [s for s in (1, 2, 3) if np.allclose(outputs["scores"], answer_of(s), atol=1e-5)]
    return found


async def none_leaves(repository):
    """Fails where a model that was replaced is not closed."""
    deadline = time.monotonic() + 60
    while repository._leaving:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


def replace_files(source, target):
    """As a careful copy does it: the manifest last, all at once."""
    for path in sorted(path for path in source.rglob("*") if path.is_file()):
        new = target / path.relative_to(source)
        if new.name != "vfm.json":
            shutil.copy(path, new.with_suffix(".part"))
            new.with_suffix(".part").replace(new)
    shutil.copy(source / "vfm.json", target / "vfm.json.part")
    (target / "vfm.json.part").replace(target / "vfm.json")


def by_files(bundles, place, tmp_path):
    replace_files(bundles / "2", place)


def by_rename(bundles, place, tmp_path):
    shutil.copytree(bundles / "2", tmp_path / "new")
    place.rename(tmp_path / "old")
    (tmp_path / "new").rename(place)


def by_link(bundles, place, tmp_path):
    (tmp_path / "link").symlink_to(bundles / "2")
    (tmp_path / "link").replace(place)
