"""Malicious releases are refused before their code runs."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import vfm.dependencies
from vfm.dependencies import MaliciousPackageError, guard_imports, refuse_malicious

ROOT = Path(__file__).parents[1]


def write_package(folder, name, version):
    """An installed package that says so when it is imported."""
    module = folder / name.replace("-", "_")
    module.mkdir()
    (module / "__init__.py").write_text("print('stolen')\n")
    info = folder / f"{module.name}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


@pytest.mark.parametrize("name", ["lightning", "pytorch-lightning"])
def test_a_malicious_release_is_never_imported(name, tmp_path):
    write_package(tmp_path, name, "2.6.3")
    paths = [tmp_path, ROOT, ROOT / "export"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths))}
    code = "import vfm\nimport lightning"
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 1
    assert "stolen" not in run.stdout
    assert f"MaliciousPackageError: {name} 2.6.3 is installed, a malicious release" in run.stderr


def test_the_installed_release_is_none():
    refuse_malicious()


def test_one_that_was_imported_before_is_refused(monkeypatch):
    monkeypatch.setattr(vfm.dependencies, "_MALICIOUS", {"pytest": (pytest.__version__,)})
    monkeypatch.setitem(sys.modules, "lightning", sys)
    with pytest.raises(MaliciousPackageError, match=r"pytest .* is installed"):
        guard_imports()


def test_the_same_releases_are_excluded_from_installing():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for name, versions in vfm.dependencies._MALICIOUS.items():
        (line,) = [d for d in project["dependencies"] if d.startswith((f"{name}>", f"{name}!"))]
        assert all(f"!={version}" in line for version in versions)
