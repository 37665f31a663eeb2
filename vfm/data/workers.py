"""Data workers: signals, threads, memory and limits of each process that opens images, and its garbage collection."""

import gc
import shutil
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from vfm_runtime.errors import OptionError

_SHARED_MEMORY = Path("/dev/shm")


def allow_pixels(max_pixels: int | None) -> int | None:
    """Let this process open photos of so many pixels, where a number is given; return it.

    Raises:
        OptionError: It is below 1.
    """
    if max_pixels is None:
        return None
    if max_pixels < 1:
        raise OptionError(
            f"max_pixels is {max_pixels}. Give the pixels of your largest photo, such as 400000000 for 20,000 x "
            "20,000; null keeps Pillow's limit."
        )
    Image.MAX_IMAGE_PIXELS = max_pixels
    return max_pixels


@contextmanager
def pause_gc() -> Iterator[None]:
    """Switch the garbage collector off while a million records are read.

    It would look through all of them again for every few hundred that are added, and none of them is garbage.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def prepare_worker(worker_id: int, max_pixels: int | None = None) -> None:
    """Keep OpenCV to one thread in a worker, one of as many as there are cores, and leave signals to the main process.

    SLURM, `docker stop` and Ctrl-C signal every process of a job: without its workers it could not end its step. The
    garbage collector leaves alone what came with the fork, whose memory is shared as long as nobody writes to it.
    """
    import cv2

    gc.freeze()
    allow_pixels(max_pixels)
    cv2.setNumThreads(0)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def warn_of_small_memory(num_workers: int, batch_bytes: int) -> None:
    """Warn where the shared memory that workers hand their batches over in is too small: they would be killed.

    Args:
        num_workers: Number of processes that open images.
        batch_bytes: Size of a batch of images in bytes.
    """
    if not _SHARED_MEMORY.is_dir():
        return  # other systems hand batches over in another way
    # Each worker has two batches ready, and one is in use.
    needed, size = (2 * num_workers + 1) * batch_bytes, shutil.disk_usage(_SHARED_MEMORY).total
    if needed > size:
        warnings.warn(
            f"{_SHARED_MEMORY} has {size / 1e6:.0f} MB, and the batches of {num_workers} workers take about "
            f"{needed / 1e6:.0f} MB: a bus error may end them. Start the container with more (docker run --shm-size "
            f"{max(1, round(2 * needed / 1e9))}g; in Kubernetes an emptyDir of medium Memory there), or "
            "take fewer workers (--data.num_workers 1, or 0 for none) or smaller batches.",
            stacklevel=4,
        )
