"""What is installed from the built packages is what was tested."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from email.parser import Parser
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.conftest import LABELS, make_task
from vfm import __version__

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
LEFT_OUT = shutil.ignore_patterns(".*", "*.egg-info", "build", "dist", "__pycache__", "runs")
PREDICT = """
import importlib.util, json, sys
import vfm_runtime
assert importlib.util.find_spec("torch") is None
model = vfm_runtime.load(sys.argv[1])
answers = model.predict(sys.argv[2:])
assert "torch" not in sys.modules
print(json.dumps([[float(score) for score in answer.scores] for answer in answers]))
"""


def run(*command, cwd, status=0):
    # The packages under test must come from the environment, not from here.
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=clean,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done


class Environment:
    """A fresh virtual environment."""

    def __init__(self, folder):
        venv.create(folder / "env", with_pip=True)
        self.folder = folder
        self.bin = folder / "env" / ("Scripts" if sys.platform == "win32" else "bin")

    def install(self, *packages):
        self("python", "-m", "pip", "install", "-q", *packages)
        return self

    def __call__(self, program, *words, status=0):
        return run(self.bin / program, *words, cwd=self.folder, status=status)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Wheels and sdists of both packages, built from a copy."""
    folder = tmp_path_factory.mktemp("built")
    copy = shutil.copytree(ROOT, folder / "copy", ignore=LEFT_OUT)
    for source in (copy, copy / "export"):
        run(sys.executable, "-m", "build", "--outdir", folder / "dist", source, cwd=folder)
    return folder / "dist"


@pytest.fixture(scope="module")
def bundle(paths, tmp_path_factory):
    """A small bundle, and torch's answers by file."""
    import torch
    from vfm_runtime.media.image import open_image

    from tests.bundle.in_memory import export_task

    task = make_task("test_vit", paths, image_size=48)
    folder = tmp_path_factory.mktemp("packaging") / "bundle"
    origin = {"versions": {}, "seed": 0, "data": None, "weights": None}
    export_task(task, paths, folder, origin=origin, results={})
    pixels = np.stack([task.preprocess.resize(open_image(path))[0] for path in paths])
    with torch.inference_mode():
        return folder, task.answer(torch.from_numpy(pixels))["scores"].numpy()


@pytest.fixture(scope="module")
def with_cpu(built, tmp_path_factory):
    wheel = built / f"vfm_runtime-{__version__}-py3-none-any.whl"
    return Environment(tmp_path_factory.mktemp("cpu")).install(f"{wheel}[cpu]")


@pytest.fixture(scope="module")
def from_sdists(built, tmp_path_factory):
    """Both sdists; the runtime with its dependencies but no extra, vfm without its own."""
    bare = Environment(tmp_path_factory.mktemp("bare"))
    bare.install(built / f"vfm_runtime-{__version__}.tar.gz")
    return bare.install("--no-deps", built / f"vfm-{__version__}.tar.gz")


def test_four_files_are_built(built):
    assert sorted(path.name for path in built.iterdir()) == [
        f"vfm-{__version__}-py3-none-any.whl",
        f"vfm-{__version__}.tar.gz",
        f"vfm_runtime-{__version__}-py3-none-any.whl",
        f"vfm_runtime-{__version__}.tar.gz",
    ]


@pytest.mark.parametrize("package", ["vfm", "vfm_runtime"])
def test_contents(built, package):
    info = f"{package}-{__version__}.dist-info"
    with zipfile.ZipFile(built / f"{package}-{__version__}-py3-none-any.whl") as wheel:
        names = set(wheel.namelist())
    assert {name.partition("/")[0] for name in names} == {package, info}
    assert {f"{package}/py.typed", f"{info}/licenses/LICENSE", f"{info}/entry_points.txt"} <= names
    source = ROOT / ("vfm" if package == "vfm" else "export/vfm_runtime")
    files = {p for p in source.rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    assert {f"{package}/{p.relative_to(source).as_posix()}" for p in files} == {
        name for name in names if name.startswith(f"{package}/")
    }
    with tarfile.open(built / f"{package}-{__version__}.tar.gz") as sdist:
        inside = {name.partition("/")[2] for name in sdist.getnames()}
    assert {"LICENSE", "README.md", "pyproject.toml", f"{package}/py.typed"} <= inside
    if package == "vfm":
        assert "vfm/report/page.html" in names & inside


def requirements(built, package):
    with zipfile.ZipFile(built / f"{package}-{__version__}-py3-none-any.whl") as wheel:
        text = wheel.read(f"{package}-{__version__}.dist-info/METADATA").decode()
    metadata = Parser().parsestr(text)
    assert metadata["License-Expression"] == "Apache-2.0"
    return [Requirement(line) for line in metadata.get_all("Requires-Dist")]


@pytest.mark.parametrize(
    ("system", "machine", "extra"),
    [
        ("linux", "x86_64", "gpu"),
        ("win32", "AMD64", "gpu"),
        ("linux", "aarch64", "cpu"),
        ("darwin", "arm64", "cpu"),
        ("darwin", "x86_64", "cpu"),
        ("win32", "ARM64", "cpu"),
    ],
)
def test_one_onnx_runtime_by_platform(built, system, machine, extra):
    place = {"sys_platform": system, "platform_machine": machine, "extra": ""}
    wanted = [
        requirement
        for requirement in requirements(built, "vfm")
        if canonicalize_name(requirement.name) == "vfm-runtime"
        and requirement.marker.evaluate(place)
    ]
    assert [(set(r.extras), str(r.specifier)) for r in wanted] == [({extra}, f"=={__version__}")]


def test_runtime_requires_little(built):
    always = {r.name for r in requirements(built, "vfm_runtime") if r.marker is None}
    assert always == {"numpy", "pillow"}


def test_predict_without_torch(with_cpu, bundle, paths):
    folder, expected = bundle
    done = with_cpu("python", "-c", PREDICT, folder, *paths)
    np.testing.assert_allclose(json.loads(done.stdout), expected, atol=1e-4)


def test_runtime_on_the_shell(with_cpu, bundle, paths):
    folder, expected = bundle
    assert "labels     4: ant, bee, cat, dog" in with_cpu("vfm-runtime", "info", folder).stdout
    assert "OK: 3 golden answers, fp32 on cpu" in with_cpu("vfm-runtime", "check", folder).stdout
    done = with_cpu("vfm-runtime", "predict", folder, *paths, "--json")
    answers = [json.loads(line)["label"] for line in done.stdout.splitlines()]
    assert answers == [LABELS[k] for k in expected.argmax(1)]


def test_runtime_is_small(with_cpu):
    files = (path for path in (with_cpu.folder / "env" / "lib").rglob("*") if path.is_file())
    # What `venv` itself brings is not ours.
    size = sum(path.stat().st_size for path in files if "site-packages/pip" not in path.as_posix())
    assert size < 250e6


def test_without_extra_the_error_names_both(from_sdists, bundle):
    done = from_sdists("vfm-runtime", "info", bundle[0], status=1)
    assert "pip install 'vfm-runtime[cpu]'" in done.stderr
    assert "pip install 'vfm-runtime[gpu]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_sdists_install(from_sdists):
    assert from_sdists("vfm", "--version").stdout == f"vfm {__version__}\n"
    assert "fit" in from_sdists("vfm", "--help").stdout
    assert from_sdists("vfm-runtime", "--version").stdout == f"vfm-runtime {__version__}\n"
