"""Clock: a training that would overrun ends as soon as its steps show it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

import vfm.tune.clock as clock_module
from vfm.tune.clock import Clock, OutOfTimeError, StopOverrun


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    time = [0.0]
    monkeypatch.setattr(clock_module.time, "perf_counter", lambda: time[0])
    return time


def run_steps(stop: StopOverrun, now: list[float], times: list[float], total: int) -> None:
    for seconds in times:
        now[0] += seconds
        stop.on_train_batch_end(SimpleNamespace(max_steps=total), None, None, None, 0)  # type: ignore[arg-type]


def test_the_clock_counts(now: list[float]) -> None:
    clock = Clock(2)
    now[0] = 50
    assert (clock.elapsed, clock.left) == (50, 70)


def test_a_training_that_fits_goes_on(now: list[float]) -> None:
    stop = StopOverrun(allowed=30)
    # The first step holds the start of the loader, and says nothing of the others.
    run_steps(stop, now, [8, *[0.2] * 20], total=100)
    assert stop.seconds_per_step == pytest.approx(0.2)


def test_a_training_that_does_not_fit_ends_at_once(now: list[float]) -> None:
    stop = StopOverrun(allowed=30)
    with pytest.raises(OutOfTimeError, match=r"would take 109 s, and may take 30 s") as caught:
        run_steps(stop, now, [10, *[1] * 20], total=100)
    assert now[0] == 19
    assert caught.value.seconds == pytest.approx(109)
