"""What the clients need: pinned, by hash, from nowhere in particular; and how it is fetched."""

import ast
import json
import re
import shutil
import sys

import pytest

from tests import fetch_assets

CLIENTS = fetch_assets.CLIENTS


def read(client, name):
    return json.loads((fetch_assets.EXAMPLES / client / name).read_text())


@pytest.mark.parametrize("client", CLIENTS)
def test_versions_are_pinned_and_locked(client):
    wanted = read(client, "package.json")["dependencies"]
    assert all(re.fullmatch(r"\d+\.\d+\.\d+", version) for version in wanted.values())
    lock = read(client, "package-lock.json")["packages"]
    assert lock[""]["dependencies"] == wanted
    del lock[""]
    assert {name: lock[f"node_modules/{name}"]["version"] for name in wanted} == wanted
    for package in lock.values():
        assert package["integrity"].startswith("sha512-")
        assert "resolved" not in package  # each machine has its own registry


def test_both_clients_run_one_version():
    (node,) = (v for n, v in read("node", "package.json")["dependencies"].items() if "onnx" in n)
    (web,) = (v for n, v in read("browser", "package.json")["dependencies"].items() if "onnx" in n)
    assert node == web


@pytest.mark.parametrize(
    ("script", "allowed"), [("golden", {"numpy", "onnxruntime", "PIL"}), ("ask_server", set())]
)
def test_python_examples_need_little(script, allowed):
    source = (fetch_assets.EXAMPLES / "python" / f"{script}.py").read_text()
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module
            assert node.level == 0
            found.add(node.module.partition(".")[0])
    assert found - set(sys.stdlib_module_names) == allowed


@pytest.fixture
def npm(tmp_path, monkeypatch):
    """An npm that does what the test says, and counts how often it is called."""

    def make(script):
        path = tmp_path / "bin" / "npm"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\n{script}\n')
        path.chmod(0o755)
        monkeypatch.setenv("PATH", f"{path.parent}:/usr/bin:/bin")
        return tmp_path / "calls"

    return make


def test_packages_are_installed_once(npm, tmp_path):
    calls = npm("mkdir node_modules")
    first = fetch_assets.fetch_npm("node", tmp_path / "assets")
    assert first == tmp_path / "assets" / "npm" / "node"
    assert (first / "node_modules").is_dir()
    assert fetch_assets.fetch_npm("node", tmp_path / "assets") == first
    assert calls.read_text().splitlines() == ["ci --ignore-scripts --no-audit --no-fund"]


def test_another_lock_file_is_installed_anew(npm, tmp_path, monkeypatch):
    calls = npm("mkdir node_modules")
    monkeypatch.setattr(fetch_assets, "EXAMPLES", shutil.copytree(
        fetch_assets.EXAMPLES, tmp_path / "examples", ignore=shutil.ignore_patterns("node_modules")
    ))  # fmt: skip
    fetch_assets.fetch_npm("browser", tmp_path / "assets")
    lock = tmp_path / "examples" / "browser" / "package-lock.json"
    lock.write_text(lock.read_text() + "\n")
    fetch_assets.fetch_npm("browser", tmp_path / "assets")
    assert len(calls.read_text().splitlines()) == 2


def test_a_failed_install_leaves_nothing(npm, tmp_path):
    npm("mkdir node_modules; echo 'no such registry' >&2; exit 1")
    with pytest.raises(
        fetch_assets.FetchError, match="npm cannot install the packages of"
    ) as failed:
        fetch_assets.fetch_npm("node", tmp_path / "assets")
    assert "no such registry" in str(failed.value)
    assert "npm config get registry" in str(failed.value)
    assert list((tmp_path / "assets" / "npm").iterdir()) == []


def test_without_npm_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        fetch_assets.FetchError, match=r"npm is missing.*Install Node\.js 20 or later"
    ):
        fetch_assets.fetch_npm("node", tmp_path / "assets")
