"""Memory of the server: how many pixels are opened at once, and blocks that go back to the system when freed."""

import asyncio
import ctypes
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

# Of mallopt, in glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_BLOCK, _SPARE = 2**20, 2**23


def return_freed_blocks() -> None:
    """Have the C library give large blocks back to the system as soon as they are freed; glibc keeps them else."""
    # Other C libraries have no mallopt, and Windows has no library of the process itself.
    with suppress(AttributeError, OSError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_MMAP_THRESHOLD, _BLOCK)
        mallopt(_TRIM_THRESHOLD, _SPARE)


class PixelBudget:
    """Lets images in, first come first served, while all that are open have no more pixels than the limit.

    To be used on one event loop. An image that is larger by itself is let in alone.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._open = 0
        self._waiters: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def acquire(self, num_pixels: int) -> None:
        """Wait until an image may be opened."""
        if not self._waiters and self._fits(num_pixels):
            self._open += num_pixels
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiters.append((num_pixels, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():
                self.release(num_pixels)  # it was let in, and its request ended at the same time
            self._admit()  # it may have kept others waiting
            raise

    def release(self, num_pixels: int) -> None:
        """Tell that an image is open no more."""
        self._open -= num_pixels
        self._admit()

    @asynccontextmanager
    async def hold(self, num_pixels: int) -> AsyncIterator[None]:
        """Wait until an image may be opened, which is open until the context ends; 0 pixels do not wait."""
        if num_pixels:
            await self.acquire(num_pixels)
        try:
            yield
        finally:
            if num_pixels:
                self.release(num_pixels)

    def _fits(self, num_pixels: int) -> bool:
        return not self._open or self._open + num_pixels <= self._limit

    def _admit(self) -> None:
        while self._waiters:
            num_pixels, turn = self._waiters[0]
            if not turn.cancelled():
                if not self._fits(num_pixels):
                    return
                self._open += num_pixels
                turn.set_result(None)
            self._waiters.popleft()
