"""Meter of a run: its time, and its energy where a counter (NVML, RAPL) can be read; never a guess."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

POWERCAP = Path("/sys/class/powercap")
"""Where Linux shows the energy counters of the processor (RAPL)."""

_LIBRARY = "libnvidia-ml.so.1"
NOT_MEASURABLE = "not measurable here: no GPU whose driver counts energy (NVML), and no readable {}"

Counter = Callable[[], float]
"""Returns joules that have been used since some moment."""


class EnergyMeter:
    """Joules that this machine's GPUs in use, or else its processor, have used since the meter was made.

    Attributes:
        source: Where the figure comes from, or why there is none.
    """

    def __init__(self, powercap: Path = POWERCAP, library: str = _LIBRARY) -> None:
        """Find the counters.

        Args:
            powercap: Folder of the processor's counters.
            library: NVIDIA's management library (NVML).
        """
        counters, self.source = _find_nvml(library), "NVML, GPUs alone"
        if not counters:
            counters, self.source = _find_rapl(powercap), "RAPL, processor packages alone"
        if not counters:
            self.source = NOT_MEASURABLE.format(f"{powercap}/intel-rapl:*/energy_uj (RAPL)")
        self._counters = counters
        self._start = [counter() for counter in counters]

    def read(self) -> float | None:
        """Return the joules so far; None where nothing counts them."""
        if not self._counters:
            return None
        pairs = zip(self._counters, self._start, strict=True)
        return sum(counter() - start for counter, start in pairs)


def _find_nvml(library: str) -> list[Counter]:
    """Counters of the GPUs that torch sees, in millijoules by NVML (Volta and later)."""
    if not torch.cuda.is_available():
        return []
    try:
        nvml = ctypes.CDLL(library)
    except OSError:
        return []
    if nvml.nvmlInit_v2() != 0:
        return []
    counters: list[Counter] = []
    for index in range(torch.cuda.device_count()):
        # torch counts the GPUs that CUDA_VISIBLE_DEVICES leaves, NVML all of them.
        uuid = f"GPU-{torch.cuda.get_device_properties(index).uuid}".encode()
        handle, value = ctypes.c_void_p(), ctypes.c_ulonglong()
        if nvml.nvmlDeviceGetHandleByUUID(uuid, ctypes.byref(handle)) != 0:
            return []
        if nvml.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(value)) != 0:
            return []  # an older GPU, or a part of one

        def read(handle: Any = handle) -> float:
            value = ctypes.c_ulonglong()
            nvml.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(value))
            return value.value / 1e3

        counters.append(read)
    return counters


def _find_rapl(folder: Path) -> list[Counter]:
    """Counters of the processor's packages, in microjoules; only root may read them on most systems."""
    counters: list[Counter] = []
    for zone in sorted(folder.glob("intel-rapl:[0-9]*")):
        if zone.name.count(":") > 1:  # a part of a package, which the package counts
            continue
        try:
            span = int((zone / "max_energy_range_uj").read_text(encoding="ascii"))
            int((zone / "energy_uj").read_text(encoding="ascii"))
        except (OSError, ValueError):
            return []
        counters.append(RaplCounter(zone / "energy_uj", span))
    return counters


class RaplCounter:
    """A counter of the processor, which begins anew after a span: it is read at least once in that time."""

    def __init__(self, path: Path, span: int) -> None:
        """Start to count.

        Args:
            path: File of the counter.
            span: Microjoules after which it begins at 0 again.
        """
        self._path, self._span = path, span
        self._last, self._total = self._read(), 0

    def _read(self) -> int:
        return int(self._path.read_text(encoding="ascii"))

    def __call__(self) -> float:
        """Return the joules since the counter was made."""
        now = self._read()
        self._total += (now - self._last) % self._span
        self._last = now
        return self._total / 1e6


class RunMeter:
    """Hours and kilowatt-hours of a run, counted over resumes."""

    def __init__(self, powercap: Path = POWERCAP, library: str = _LIBRARY) -> None:
        """Start to count; arguments as for `EnergyMeter`."""
        self._energy = EnergyMeter(powercap, library)
        self._start = time.perf_counter()
        self._earlier_hours, self._earlier_kwh = 0.0, 0.0
        self._is_whole = True

    @property
    def hours(self) -> float:
        """Hours, with those of the runs that this one goes on from."""
        return self._earlier_hours + (time.perf_counter() - self._start) / 3600

    @property
    def kwh(self) -> float | None:
        """Kilowatt-hours likewise; None where a part of them was not measurable."""
        joules = self._energy.read()
        return None if joules is None or not self._is_whole else self._earlier_kwh + joules / 3.6e6

    @property
    def source(self) -> str:
        """Where the energy comes from, or why there is none."""
        return self._energy.source

    def to_dict(self) -> dict[str, Any]:
        """Return what was measured, as JSON."""
        return {"hours": self.hours, "kwh": self.kwh, "energy_source": self.source}

    def go_on(self, earlier: dict[str, Any]) -> None:
        """Add what `to_dict` said of an earlier part of the run."""
        self._earlier_hours = earlier["hours"]
        self._earlier_kwh = earlier["kwh"] or 0.0
        self._is_whole = earlier["kwh"] is not None
