import asyncio
import gc
import random
import threading
import time

import numpy as np
import pytest
from vfm_runtime.server.batching import (
    Batcher,
    BatchRequest,
    ClosedError,
    DeadlineError,
    QueueFullError,
)

from tests.runtime.server.doubler import Doubler, ask, held_up, queued, rows


def test_deadline_that_has_passed():
    async def main():
        model = Doubler()
        batcher = Batcher(model)
        with pytest.raises(DeadlineError, match="time of the request was up after 0 ms in the q"):
            await ask(batcher, 1, deadline=-1)
        assert model.batches == []
        await batcher.close(1)

    asyncio.run(main())


def test_deadline_in_the_queue_costs_no_run():
    async def main():
        model = Doubler(open=False)
        batcher = Batcher(model, max_queue=2)
        first = await held_up(batcher, model)
        start = time.monotonic()
        with pytest.raises(DeadlineError, match=r"Allow it more time, or send less at once\."):
            await ask(batcher, 1, 2, deadline=0.05)
        # At its time, though the model is busy; and the room is free for others.
        assert time.monotonic() - start < 2
        assert batcher.waiting == 0
        (other,) = await queued(ask(batcher, 3, 4))
        model.open()
        assert await other == [6, 8]
        await first
        assert model.batches == [[0], [3, 4]]
        await batcher.close(1)

    asyncio.run(main())


def test_deadline_counts_when_the_loop_is_late():
    async def main():
        model = Doubler(open=False)
        batcher = Batcher(model)
        first = await held_up(batcher, model)
        (late,) = await queued(ask(batcher, 1, deadline=0.1))
        threading.Timer(0.2, model.open).start()
        time.sleep(0.4)  # the loop cannot tell anybody; the thread sees it itself
        assert model.batches == [[0]]
        with pytest.raises(DeadlineError):
            await late
        await first
        await batcher.close(1)

    asyncio.run(main())


def test_deadline_in_the_model():
    async def main():
        model = Doubler(open=False)
        batcher = Batcher(model)
        with pytest.raises(DeadlineError, match="with the model"):
            await ask(batcher, 1, deadline=0.05)
        model.open()
        assert await ask(batcher, 2) == [4]
        await batcher.close(1)

    asyncio.run(main())


def test_cancelled_in_the_queue():
    async def main():
        model = Doubler(open=False)
        batcher = Batcher(model)
        first = await held_up(batcher, model)
        gone, stays = await queued(ask(batcher, 1), ask(batcher, 2))
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        assert batcher.waiting == 1
        model.open()
        assert await stays == [4]
        await first
        assert model.batches == [[0], [2]]
        await batcher.close(1)

    asyncio.run(main())


def test_cancelled_in_the_model():
    async def main():
        model = Doubler(open=False)
        batcher = Batcher(model, max_batch=2)
        first = await held_up(batcher, model)
        tasks = await queued(ask(batcher, 1), ask(batcher, 2), ask(batcher, *range(3, 9)))
        gone = (first, tasks[2])
        for task in gone:
            task.cancel()
        # They have left before the model goes on; else its thread may take rows that are still there.
        ends = await asyncio.gather(*gone, return_exceptions=True)
        assert [type(end) for end in ends] == [asyncio.CancelledError] * 2
        model.open()
        assert await tasks[0] == [2]
        assert await tasks[1] == [4]
        assert await ask(batcher, 10) == [20]
        # None of its rows ran, though the request came before the last.
        assert model.batches == [[0], [1, 2], [10]]
        await batcher.close(1)

    asyncio.run(main())


def test_error_goes_to_those_who_asked():
    async def main():
        model = Doubler(open=False)
        batcher = Batcher(model, max_batch=4)
        first = await held_up(batcher, model)
        tasks = await queued(ask(batcher, 1), ask(batcher, -1, 5), ask(batcher, 2), ask(batcher, 3))
        model.open()
        answers = await asyncio.gather(first, *tasks, return_exceptions=True)
        assert [answers[0], answers[1], *answers[3:]] == [[0], [2], [4], [6]]
        assert isinstance(answers[2], RuntimeError)
        assert str(answers[2]) == "a poisoned row"
        # Together, then each on its own; the last was in another batch and knows nothing of it.
        assert model.batches == [[0], [1, -1, 5, 2], [1], [-1, 5], [2], [3]]
        await batcher.close(1)

    asyncio.run(main())


def test_who_is_gone_is_not_tried_alone():
    async def main():
        model = Doubler(open=False)
        batcher = Batcher(model)
        first = await held_up(batcher, model)
        asks = (ask(batcher, -1), ask(batcher, 1), ask(batcher, 2, deadline=1))
        bad, gone, late = await queued(*asks)
        model.entered.clear()
        model.gate.release()
        await first
        await asyncio.to_thread(model.entered.wait, 10)  # now all three are in the model
        gone.cancel()
        await asyncio.sleep(0)
        time.sleep(1)  # the loop cannot tell anybody that the time is up
        model.open()
        time.sleep(0.3)  # nor what became of them
        answers = await asyncio.gather(bad, gone, late, return_exceptions=True)
        kinds = [RuntimeError, asyncio.CancelledError, DeadlineError]
        assert [type(answer) for answer in answers] == kinds
        await batcher.close(5)
        assert model.batches == [[0], [-1, 1, 2], [-1]]

    asyncio.run(main())


def test_rest_of_a_request_that_failed_does_not_run():
    async def main():
        model = Doubler()
        batcher = Batcher(model, max_batch=2)
        with pytest.raises(RuntimeError, match="poisoned"):
            await ask(batcher, 1, 2, 3, -1, 5, 6)
        assert await ask(batcher, 7) == [14]
        assert model.batches == [[1, 2], [3, -1], [7]]
        assert batcher.waiting == 0
        await batcher.close(1)

    asyncio.run(main())


@pytest.mark.parametrize("error", [StopIteration("end"), MemoryError("no memory"), KeyError("x")])
def test_any_error_reaches_who_asked(error):
    def run(inputs):
        raise error

    async def main():
        batcher = Batcher(run)
        # A StopIteration cannot leave a coroutine, so Python makes a RuntimeError of it.
        with pytest.raises((type(error), RuntimeError)):
            await batcher.submit(rows(1))
        await batcher.close(1)

    asyncio.run(main())


def test_inputs_that_do_not_fit_their_neighbours():
    async def main():
        model = Doubler(open=False)
        batcher = Batcher(model)
        first = await held_up(batcher, model)
        other = batcher.submit({"x": np.zeros((1, 3))})
        good, bad = await queued(ask(batcher, 1), other)
        model.open()
        assert await good == [2]
        assert (await bad)[0]["y"].shape == (1, 3)  # on its own it is fine
        await first
        await batcher.close(1)

    asyncio.run(main())


def test_answer_with_other_rows():
    async def main():
        batcher = Batcher(lambda inputs: {"y": inputs["x"][:1]})
        with pytest.raises(ValueError, match=r"given 2 rows and answered with {'y': 1}\. Export"):
            await batcher.submit(rows(1, 2))
        await batcher.close(1)

    asyncio.run(main())


@pytest.mark.usefixtures("threads_end")
def test_close_answers_what_is_held():
    async def main():
        model = Doubler(open=False)
        batcher = Batcher(model, max_batch=1)
        first = await held_up(batcher, model)
        tasks = await queued(*(ask(batcher, number) for number in range(1, 4)))
        closing = asyncio.create_task(batcher.close(10))
        await asyncio.sleep(0.01)
        with pytest.raises(ClosedError, match=r"being closed\. Send the request again\."):
            await ask(batcher, 9)
        model.open()
        await closing
        assert await asyncio.gather(first, *tasks) == [[0], [2], [4], [6]]
        with pytest.raises(ClosedError):
            await ask(batcher, 9)
        await batcher.close(10)  # again, at no cost

    asyncio.run(main())


@pytest.mark.usefixtures("threads_end")
def test_close_has_an_end():
    model = Doubler(open=False)

    async def main():
        batcher = Batcher(model, max_batch=1)
        first = await held_up(batcher, model)
        tasks = await queued(ask(batcher, 1), ask(batcher, 2))
        start = time.monotonic()
        await batcher.close(0.1)
        assert 0.1 <= time.monotonic() - start < 2
        for task in (first, *tasks):
            with pytest.raises(ClosedError, match=r"closed before the request's turn\. Send it"):
                await task
        assert batcher.waiting == 0

    asyncio.run(main())
    model.open()  # its thread then ends, though the loop is no more
    assert model.batches == [[0]]


def test_close_before_the_first_request():
    async def main():
        batcher = Batcher(Doubler())
        await batcher.close(10)
        with pytest.raises(ClosedError):
            await ask(batcher, 1)

    asyncio.run(main())


def test_idle_costs_nothing():
    async def main():
        batcher = Batcher(Doubler(), max_wait_ms=1)
        await asyncio.gather(*(ask(batcher, number) for number in range(10)))
        start = time.process_time()
        await asyncio.sleep(0.5)
        assert time.process_time() - start < 0.1
        await batcher.close(1)

    asyncio.run(main())


def requests():
    gc.collect()
    return {thing for thing in gc.get_objects() if isinstance(thing, BatchRequest)}


def test_nothing_is_left_behind():
    before = requests()  # what pytest keeps of other tests

    async def main():
        model = Doubler()
        batcher = Batcher(model, max_batch=4, max_wait_ms=0.5, max_queue=30)
        chance = random.Random(1)
        ends = []

        async def client(index):
            await asyncio.sleep(chance.random() * 0.5)
            numbers = [chance.choice((1, 2, 3, -1)) for _ in range(chance.randrange(1, 9))]
            patience = chance.choice((0.0, 0.002, 20, 20))
            try:
                await asyncio.wait_for(
                    ask(batcher, *numbers, deadline=patience), chance.choice((0.003, 20))
                )
                ends.append("answer")
            except (DeadlineError, TimeoutError, QueueFullError, RuntimeError) as error:
                ends.append(type(error).__name__)

        await asyncio.gather(*(client(index) for index in range(600)))
        assert set(ends) >= {"answer", "DeadlineError", "RuntimeError"}
        assert await ask(batcher, 1) == [2]
        assert batcher.waiting == 0
        assert not batcher._held
        assert len(asyncio.all_tasks()) == 1
        await batcher.close(1)
        assert requests() <= before

    asyncio.run(main())
