"""Memory of the server: images are opened a few at a time, and what they took is given back."""

import asyncio
import io
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from vfm_runtime.media import image as image_module
from vfm_runtime.media.image import open_image
from vfm_runtime.server.memory import PixelBudget

from tests.runtime.server.live import ask
from tests.runtime.server.test_main import Server

UPLOADS, SIDE = 72, 5000


def let_in(budget, sizes, *, cancel=()):
    """The indices of the images that are let in, before any of them is closed."""
    entered = []

    async def enter(index, num_pixels):
        await budget.acquire(num_pixels)
        entered.append(index)

    async def run():
        tasks = [asyncio.ensure_future(enter(i, size)) for i, size in enumerate(sizes)]
        await asyncio.sleep(0)
        for index in cancel:
            tasks[index].cancel()
        await asyncio.sleep(0.01)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(run())
    return entered


def test_images_are_let_in_while_they_fit():
    assert let_in(PixelBudget(10), [4, 6, 1]) == [0, 1]
    # First come, first served: a small one does not overtake.
    assert let_in(PixelBudget(10), [4, 7, 1]) == [0]
    assert let_in(PixelBudget(10), [4, 7, 1], cancel=[1]) == [0, 2]
    # A larger one goes alone.
    assert let_in(PixelBudget(10), [40, 1]) == [0]


def test_those_who_wait_get_in_as_others_are_closed():
    async def run():
        budget = PixelBudget(10)
        await budget.acquire(10)
        waiting = [asyncio.ensure_future(budget.acquire(size)) for size in (5, 5, 5)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        budget.release(10)
        await asyncio.gather(*waiting, return_exceptions=True)
        assert [task.cancelled() for task in waiting] == [True, False, False]
        budget.release(5)
        budget.release(5)
        await asyncio.wait_for(budget.acquire(10), 5)

    asyncio.run(run())


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "CMYK", "YCbCr", "1"])
def test_strips_give_the_pixels_of_the_whole(mode, monkeypatch):
    noise = np.random.default_rng(0).integers(0, 256, (31, 17, 3), dtype=np.uint8)
    image = Image.fromarray(noise).convert(mode)
    expected = np.array(image.convert("RGB"))
    monkeypatch.setattr(image_module, "_STRIP", 40)
    pixels = open_image(image)
    assert pixels.flags.writeable
    assert np.array_equal(pixels, expected)


def read_memory(process, key):
    """A value of a process's status, in MB."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise KeyError(key)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_many_large_uploads_at_once(folders, tmp_path):
    """72 uploads of 25 megapixels: at most 800 MB at the peak, and 400 MB within a minute."""
    y, x = np.mgrid[:SIDE, :SIDE]
    pixels = np.stack([(x // 20) % 256, (y // 20) % 256, (x + y) % 256], -1).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=80)
    server = Server(tmp_path, folders / "toy", "--timeout", "900", "--body-timeout", "900")
    try:
        server.wait_for("Ready")
        port = int(server.address.rpartition(":")[2])
        statuses = []

        def send():
            answer = ask(port, "/predict", file.getvalue(), "image/jpeg", 900)
            statuses.append(answer[0])

        threads = [threading.Thread(target=send) for _ in range(UPLOADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        peak = read_memory(server.process.pid, "VmHWM")
        give_up = time.monotonic() + 60
        while (
            rest := read_memory(server.process.pid, "VmRSS")
        ) > 400 and time.monotonic() < give_up:
            time.sleep(1)
    finally:
        server.stop()
    print(f"peak {peak:.0f} MB, then {rest:.0f} MB")
    assert statuses == [200] * UPLOADS
    assert peak <= 800
    assert rest <= 400
