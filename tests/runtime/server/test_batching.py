import asyncio
import contextlib
import random
import time
from types import SimpleNamespace

import numpy as np
import pytest
from vfm_runtime.server.batching import Batcher, BatchMetrics, QueueFullError

from tests.runtime.server.doubler import Doubler, ask, held_up, queued, rows


def test_answer_and_timing():
    async def main():
        batcher = Batcher(Doubler(seconds=0.02))
        outputs, timing = await batcher.submit(rows(3, 4))
        assert outputs["y"].tolist() == [6, 8]
        assert 20 <= timing.compute_ms < 500
        assert 0 <= timing.queue_ms < 500
        await batcher.close(1)

    asyncio.run(main())


def test_who_asks_alone_waits_for_nobody():
    async def main():
        batcher = Batcher(Doubler(), max_wait_ms=2000)
        start = time.monotonic()
        for number in range(5):
            await ask(batcher, number)
        assert time.monotonic() - start < 1
        await batcher.close(1)

    asyncio.run(main())


def test_those_who_wait_go_together_first_in_first_out():
    async def main():
        model = Doubler(open=False)
        batcher = Batcher(model, max_batch=4)
        first = await held_up(batcher, model)
        tasks = await queued(*(ask(batcher, number) for number in range(1, 11)))
        assert batcher.waiting == 10
        model.open()
        assert await asyncio.gather(first, *tasks) == [[2 * n] for n in range(11)]
        assert model.batches == [[0], [1, 2, 3, 4], [5, 6, 7, 8], [9, 10]]
        assert batcher.waiting == 0
        await batcher.close(1)

    asyncio.run(main())


def test_full_batch_goes_at_once():
    async def main():
        model = Doubler(open=False)
        batcher = Batcher(model, max_batch=4, max_wait_ms=10_000)
        first = await held_up(batcher, model)
        tasks = await queued(*(ask(batcher, number) for number in range(8)))
        start = time.monotonic()
        model.open()
        await asyncio.gather(first, *tasks)
        assert time.monotonic() - start < 5
        assert model.sizes == [1, 4, 4]
        await batcher.close(1)

    asyncio.run(main())


def test_two_who_ask_in_turn_are_waited_for():
    async def main():
        model = Doubler(seconds=0.2)
        batcher = Batcher(model, max_wait_ms=150)

        async def client():
            for number in range(5):
                await ask(batcher, number)

        first = asyncio.create_task(client())
        await asyncio.to_thread(model.entered.wait, 10)
        # One waits while the other runs, for longer than `max_wait_ms`; yet they come together.
        await asyncio.gather(first, client())
        assert model.sizes.count(2) >= 3
        await batcher.close(1)

    asyncio.run(main())


def test_waiting_for_others_has_an_end():
    async def main():
        model = Doubler()
        batcher = Batcher(model, max_wait_ms=200)
        await asyncio.gather(*(ask(batcher, number) for number in range(6)))
        start = time.monotonic()
        await ask(batcher, 1)  # of six lately one is back; the others never come
        assert 0.15 < time.monotonic() - start < 2
        for _ in range(12):
            await ask(batcher, 1)
        times = []
        for _ in range(3):
            start = time.monotonic()
            await ask(batcher, 1)  # and soon nobody expects them any more
            times.append(time.monotonic() - start)
        assert min(times) < 0.15
        await batcher.close(1)

    asyncio.run(main())


def test_more_rows_than_a_batch():
    async def main():
        model = Doubler(open=False)
        batcher = Batcher(model, max_batch=8)
        first = await held_up(batcher, model)
        large, small = await queued(ask(batcher, *range(1, 21)), ask(batcher, 21, 22))
        model.open()
        assert await large == [2 * number for number in range(1, 21)]
        assert await small == [42, 44]
        await first
        assert model.sizes == [1, 8, 8, 6]
        model.seconds = 0.02
        _, timing = await batcher.submit(rows(*range(20)))
        assert timing.compute_ms >= 60  # of three runs
        await batcher.close(1)

    asyncio.run(main())


def test_everyone_gets_his_own_rows():
    async def main():
        model = Doubler()
        batcher = Batcher(model, max_batch=5, max_wait_ms=1, max_queue=10_000)
        chance = random.Random(0)
        numbers = iter(range(1, 10_000))

        async def client():
            for _ in range(chance.randrange(1, 20)):
                mine = [next(numbers) for _ in range(chance.randrange(1, 13))]
                assert await ask(batcher, *mine) == [2 * number for number in mine]
                await asyncio.sleep(chance.choice((0, 0, 0.001)))

        await asyncio.gather(*(client() for _ in range(40)))
        assert max(model.sizes) == 5
        asked = sorted(number for batch in model.batches for number in batch)
        assert asked == list(range(1, len(asked) + 1))
        await batcher.close(1)

    asyncio.run(main())


def test_full_queue():
    async def main():
        model = Doubler(open=False)
        batcher = Batcher(model, max_batch=2, max_queue=4)
        first = await held_up(batcher, model)
        tasks = await queued(ask(batcher, 1, 2), ask(batcher, 3))
        with pytest.raises(QueueFullError) as caught:
            await ask(batcher, 4, 5)
        assert str(caught.value) == (
            "The queue is full: 3 rows wait, 2 more would pass the limit of 4. Try again in 1.0 s."
        )
        tasks += await queued(ask(batcher, 6))  # there is room for one
        with pytest.raises(QueueFullError):
            await ask(batcher, 7)
        model.open()
        await asyncio.gather(first, *tasks)
        assert [4, 5] not in model.batches
        await batcher.close(1)

    asyncio.run(main())


def test_when_to_come_back_follows_the_speed_of_late():
    async def main():
        model = Doubler(seconds=0.2)
        batcher = Batcher(model, max_batch=1, max_queue=3)
        for number in range(2):
            await ask(batcher, number)
        tasks = await queued(*(ask(batcher, number) for number in range(3)))
        tasks += await queued(ask(batcher, 3))  # one runs, three wait
        with pytest.raises(QueueFullError) as caught:
            await ask(batcher, 4)
        assert 0.7 < caught.value.retry_after < 2
        await asyncio.gather(*tasks)
        await batcher.close(1)

    asyncio.run(main())


def test_larger_than_the_queue_while_nothing_waits():
    async def main():
        batcher = Batcher(Doubler(), max_batch=2, max_queue=4)
        assert await ask(batcher, *range(9)) == list(range(0, 18, 2))
        await batcher.close(1)

    asyncio.run(main())


@pytest.mark.parametrize(
    "inputs", [{}, {"x": np.zeros(0)}, {"x": np.zeros(2), "geometry": np.zeros(1)}]
)
def test_inputs_without_rows_or_with_different_ones(inputs):
    async def main():
        with pytest.raises(ValueError, match=r"numbers of rows: {.*}\. Give as many of each, at l"):
            await Batcher(Doubler()).submit(inputs)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("name", "value", "least"),
    [
        ("max_batch", 0, 1),
        ("max_wait_ms", -0.5, 0),
        ("max_wait_ms", float("nan"), 0),
        ("max_queue", 0, 1),
    ],
)
def test_limits(name, value, least):
    with pytest.raises(ValueError, match=f"^{name} is {value}. Give at least {least}.$"):
        Batcher(Doubler(), **{name: value})


def test_metrics_are_kept():
    told = []

    def watch(name):
        return SimpleNamespace(
            set=lambda rows: told.append((name, rows)),
            observe=lambda value: told.append((name, value if "rows" in name else 0 <= value < 5)),
        )

    async def main():
        metrics = BatchMetrics(*map(watch, BatchMetrics._fields))
        batcher = Batcher(Doubler(), max_batch=2, metrics=metrics)
        await ask(batcher, 1, 2, 3)
        with contextlib.suppress(RuntimeError):
            await ask(batcher, -1)  # what failed did not run
        await batcher.close(1)

    asyncio.run(main())
    queue = [value for name, value in told if name == "queue_rows"]
    assert queue == [3, 1, 0, 1, 0]
    assert told.count(("queue_seconds", True)) == 2
    assert [value for name, value in told if name == "batch_rows"] == [2, 1]
    assert told.count(("compute_seconds", True)) == 2
