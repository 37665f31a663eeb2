"""A model of which a test knows all, and those who ask it."""

import asyncio
import threading
import time

import numpy as np


class Doubler:
    """A model that doubles numbers, remembers its batches, and can be held up or poisoned."""

    def __init__(self, *, open=True, seconds=0.0):
        self.batches = []
        self.entered = threading.Event()
        self.gate = threading.Semaphore(0)  # lets one run pass
        self.seconds = seconds
        if open:
            self.open()

    def open(self):
        self.gate.release(10_000)

    def __call__(self, inputs):
        numbers = inputs["x"]
        self.batches.append(numbers.tolist())
        self.entered.set()
        assert self.gate.acquire(timeout=10)
        time.sleep(self.seconds)
        if -1 in numbers:
            raise RuntimeError("a poisoned row")
        return {"y": numbers * 2, "z": -numbers}

    @property
    def sizes(self):
        return [len(batch) for batch in self.batches]


def rows(*numbers):
    return {"x": np.array(numbers)}


def soon(seconds):
    return time.monotonic() + seconds


async def ask(batcher, *numbers, deadline=None):
    outputs, _ = await batcher.submit(
        rows(*numbers), soon(20) if deadline is None else soon(deadline)
    )
    np.testing.assert_array_equal(outputs["z"], [-number for number in numbers])
    return outputs["y"].tolist()


async def held_up(batcher, model):
    """A request that is in the model, which does not answer before its gate is opened."""
    task = asyncio.create_task(ask(batcher, 0))
    await asyncio.to_thread(model.entered.wait, 10)
    return task


async def queued(*asks):
    tasks = [asyncio.create_task(one) for one in asks]
    await asyncio.sleep(0.01)
    return tasks
