"""CPU quota: the cores that this process may really use, by its affinity and its control groups."""

import os
from pathlib import Path

_CGROUP2, _CGROUP1 = Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/cpu")


def count_usable_cores() -> int:
    """Count the cores that this process may run on, or that its container's quota is worth, if that is less."""
    has_affinity = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    quota = read_cgroup_quota()
    return max(1, cores if quota is None else min(cores, int(quota)))


def choose_num_threads(num_threads: int | None) -> int | None:
    """Return how many threads ONNX Runtime gets: those asked for, else None for its own choice, one a core.

    Its own choice knows all cores of the machine and no quota: threads beyond a quota stop each other.
    """
    if num_threads is not None:
        return num_threads
    usable = count_usable_cores()
    return usable if usable < (os.cpu_count() or 1) else None


def read_cgroup_quota(version2: Path = _CGROUP2, version1: Path = _CGROUP1) -> float | None:
    """Read how many cores the control group's quota is worth; None where there is none.

    A container sees its control group at the root; outside a container, the process's group and all groups above it
    count.
    """
    pairs = [_read(folder / "cpu.max").split() for folder in _list_groups(version2)]
    pairs.append([_read(version1 / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")])
    quotas = [
        int(pair[0]) / int(pair[1])
        for pair in pairs
        # "max" and "-1" are no limit.
        if len(pair) == 2 and all(text.isdecimal() for text in pair) and pair[1] != "0"
    ]
    return min(quotas, default=None)


def _list_groups(root: Path) -> list[Path]:
    lines = _read(Path("/proc/self/cgroup")).splitlines()
    path = next((line[3:].strip("/") for line in lines if line.startswith("0::")), "")
    parts = path.split("/") if path else []
    return [root.joinpath(*parts[:count]) for count in range(len(parts) + 1)]


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
