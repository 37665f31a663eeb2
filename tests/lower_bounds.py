"""Lower bounds of all dependencies: install exactly these into a fresh environment, and run the default tests there.

    python tests/lower_bounds.py ENVIRONMENT [words for pytest]

`python tests/lower_bounds.py --list` prints them, for `pip install --dry-run` and the like.
"""

from __future__ import annotations

import subprocess
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
# An environment holds one of the two wheels of ONNX Runtime; the plugin of OpenVINO needs a newer one than the oldest.
LEFT_OUT = {"gpu", "openvino"}


def read_requirements() -> list[Requirement]:
    """Read the dependencies of both packages with their extras, but not those on each other."""
    texts: list[str] = []
    for folder in (ROOT, ROOT / "export"):
        project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        texts += project["dependencies"]
        for extra, lines in project["optional-dependencies"].items():
            texts += lines if extra not in LEFT_OUT else []
    requirements = map(Requirement, texts)
    return [one for one in requirements if one.name not in ("vfm", "vfm-runtime")]


def list_lower_bounds(requirements: Iterable[Requirement]) -> list[str]:
    """Return a pin for each package: the series of its lower bound, the highest where it stands in several places."""
    bounds: dict[str, Version] = {}
    extras: dict[str, set[str]] = {}
    for one in requirements:
        if one.marker is not None and not one.marker.evaluate():
            continue
        lowest = [Version(s.version) for s in one.specifier if s.operator in (">=", "==")]
        extras.setdefault(one.name, set()).update(one.extras)
        if lowest:
            bounds[one.name] = max(*lowest, bounds.get(one.name, Version("0")))
    return [
        f"{name}[{','.join(sorted(extras[name]))}]=={version}.*"
        if extras[name]
        else f"{name}=={version}.*"
        for name, version in sorted(bounds.items())
    ]


def main(words: list[str]) -> int:
    """Make the environment and run the tests in it; return the exit status of pytest."""
    pins = list_lower_bounds(read_requirements())
    if words == ["--list"]:
        print("\n".join(pins))
        return 0
    if not words:
        print(__doc__)
        return 2
    python = Path(words[0]) / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", words[0]], check=True)
    install = [str(python), "-m", "pip", "install", "--quiet"]
    # Wheels alone: nothing is built here.
    subprocess.run([*install, "--only-binary", ":all:", *pins], check=True)
    subprocess.run([*install, "--no-deps", "-e", str(ROOT / "export"), "-e", str(ROOT)], check=True)
    return subprocess.run(
        [str(python), "-m", "pytest", *words[1:]], cwd=ROOT, check=False
    ).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
