"""How many cores this process may really use."""

import os
from pathlib import Path

_CGROUP2, _CGROUP1 = Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/cpu")


def usable_cores() -> int:
    """Cores that this process may run on, or that its container's quota is worth, if that is less."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    quota = cgroup_quota()
    return max(1, min(cores or 1, int(quota) if quota is not None else cores or 1))


def cgroup_quota(version2: Path = _CGROUP2, version1: Path = _CGROUP1) -> float | None:
    """Cores that the control group's quota is worth; None where there is none.

    A container sees its own group at the root; outside one, the groups from the process's own up to
    the root all count.

    Args:
        version2: Where the control groups of version 2 are.
        version1: Where those of version 1 are.
    """
    found = [_quota2(folder / "cpu.max") for folder in _groups(version2)]
    found.append(_quota1(version1))
    return min((quota for quota in found if quota is not None), default=None)


def _groups(root: Path) -> list[Path]:
    lines = _read(Path("/proc/self/cgroup")).splitlines()
    own = next((line[3:].strip("/") for line in lines if line.startswith("0::")), "")
    parts = own.split("/") if own else []
    return [root.joinpath(*parts[:count]) for count in range(len(parts) + 1)]


def _quota2(path: Path) -> float | None:
    quota, _, period = _read(path).strip().partition(" ")
    if not quota.isdecimal() or not period.isdecimal() or period == "0":
        return None  # "max", or no such file
    return int(quota) / int(period)


def _quota1(folder: Path) -> float | None:
    quota = _read(folder / "cpu.cfs_quota_us").strip()
    period = _read(folder / "cpu.cfs_period_us").strip()
    if not quota.isdecimal() or not period.isdecimal() or period == "0":
        return None  # "-1" for no limit, or no such file
    return int(quota) / int(period)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
