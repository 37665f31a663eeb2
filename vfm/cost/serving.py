"""Cost of serving: latency and throughput of a bundle here, replicas for a rate, money for a million images."""

from __future__ import annotations

import heapq
import itertools
import os
import platform
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from vfm_runtime.bundle.predictor import Predictor
from vfm_runtime.cpu_quota import count_usable_cores
from vfm_runtime.errors import VfmError

MAX_REPLICAS = 10_000
HOURS_A_MONTH = 730

_WARM, _LEAST, _MOST = 3, 50, 500
"""Requests that are not timed, and the least and the most that are."""
_SECONDS = 20.0
_ARRIVALS = 20_000
"""Requests of a simulation."""


class ServingError(VfmError, ValueError):
    """A service cannot be as asked for."""


@dataclass(frozen=True)
class ServingTimes:
    """Seconds from file to answer, one request at a time, on this machine."""

    seconds: list[float]

    @property
    def rate(self) -> float:
        """Images that one replica answers in a second when it never waits."""
        return 1 / statistics.fmean(self.seconds)

    def compute_quantile(self, fraction: float) -> float:
        """Return a quantile of the seconds."""
        return float(np.quantile(self.seconds, fraction))


def measure_serving(model: Predictor, images: Sequence[Path]) -> ServingTimes:
    """Time answers for images, one after the other, at least 50 of them and for at most 20 seconds otherwise.

    Args:
        model: Model of a bundle.
        images: Files, which are repeated.
    """
    timed: list[float] = []
    start = time.perf_counter()
    for number, image in enumerate(itertools.cycle(images)):
        began = time.perf_counter()
        model.predict(image)
        now = time.perf_counter()
        if number >= _WARM:
            timed.append(now - began)
        if len(timed) >= _MOST or (len(timed) >= _LEAST and now - start > _SECONDS):
            return ServingTimes(timed)
    raise ServingError("There are no images to time. Name some with --images.")


def simulate_latency(times: ServingTimes, rate: float, replicas: int) -> float:
    """Return the 99th percentile of the seconds from arrival to answer, of random requests.

    Arrivals are a Poisson process into one queue; the first free replica takes the next one, and takes as long as
    one of those that were measured.

    Args:
        times: Seconds of requests that were measured one at a time.
        rate: Requests in a second.
        replicas: Number of replicas that share the queue.
    """
    random = np.random.default_rng(0)
    arrivals = np.cumsum(random.exponential(1 / rate, _ARRIVALS))
    service = random.choice(times.seconds, _ARRIVALS)
    free = [0.0] * replicas
    latencies = []
    for arrival, seconds in zip(arrivals.tolist(), service.tolist(), strict=True):
        end = max(arrival, heapq.heappop(free)) + seconds
        heapq.heappush(free, end)
        latencies.append(end - arrival)
    return float(np.quantile(latencies, 0.99))


def count_replicas(times: ServingTimes, rate: float, p99: float, utilization: float) -> int:
    """Return the fewest replicas whose 99th percentile keeps to a limit, none of them busier than a fraction of time.

    Args:
        times: Seconds of requests that were measured one at a time.
        rate: Requests in a second.
        p99: Most seconds of the 99th percentile.
        utilization: Most of its time that a replica works.

    Raises:
        ServingError: A request alone takes longer, or it would take too many replicas.
    """
    alone = times.compute_quantile(0.99)
    if alone > p99:
        raise ServingError(
            f"99 of 100 images take up to {1000 * alone:.1f} ms here with nothing else to do, more than --p99 "
            f"{1000 * p99:g}. Allow more, or take fewer bits (vfm export --int8), a smaller model, or a faster machine."
        )
    replicas = max(1, int(np.ceil(rate / times.rate / utilization)))
    if replicas > MAX_REPLICAS:
        raise ServingError(
            f"--rps {rate:g} takes {replicas:,} replicas of {times.rate:.3g} images/s, more than {MAX_REPLICAS:,}. "
            "Give a lower rate."
        )
    while simulate_latency(times, rate, replicas) > p99:
        replicas += 1
    return replicas


def compute_own_cost(
    images_a_month: float, rate: float, usd_per_hour: float, utilization: float
) -> float:
    """Return the dollars a month of as many replicas as a number of images keeps busy for a fraction of the time.

    A replica is paid for all month, whatever it does: at least one.
    """
    most = rate * utilization * HOURS_A_MONTH * 3600
    return float(max(1, np.ceil(images_a_month / most)) * usd_per_hour * HOURS_A_MONTH)


def find_break_even(
    rate: float, usd_per_hour: float, utilization: float, usd_per_1000: float
) -> float | None:
    """Return the images a month from which own replicas cost less than an API; None where they never do."""
    most = rate * utilization * HOURS_A_MONTH * 3600
    replica = usd_per_hour * HOURS_A_MONTH
    crossing = replica / usd_per_1000 * 1000
    # Where one replica is full before it pays, others cost as much an image.
    return crossing if crossing <= most else None


def describe_load() -> str | None:
    """Return a warning where other work keeps the processor busy, so that latencies are longer than they need be."""
    if not hasattr(os, "getloadavg"):
        return None
    load, cores = os.getloadavg()[0], count_usable_cores()
    # A model that is measured keeps its cores busy by itself.
    if load <= 1.5 * cores:
        return None
    return (
        f"{load:.0f} processes wait for {cores} cores: other work makes these latencies longer. Measure again when the "
        "machine is idle."
    )


def describe_machine() -> dict[str, Any]:
    """Return what figures depend on: processor, cores that may be used, GPUs, system."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = info.read_text(encoding="utf-8").splitlines()
        cpu = next((x.partition(":")[2].strip() for x in lines if x.startswith("model name")), cpu)
    return {"cpu": cpu, "cores": count_usable_cores(), "system": platform.system()}
