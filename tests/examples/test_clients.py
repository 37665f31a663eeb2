"""Clients in Python, Node and the browser give the answers of the export, and find answers that are not."""

import base64
import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from skimage import data
from vfm_runtime.media.image import open_image

from tests.examples import bundles
from tests.examples.conftest import run
from tests.runtime import toy

pytestmark = pytest.mark.assets


@pytest.fixture(scope="session")
def written(paths, tmp_path_factory):
    """The bundle of a kind, made when it is first asked for; tests must not change it."""
    made = {}

    def get(kind):
        if kind not in made:
            made[kind] = bundles.write(kind, paths, tmp_path_factory.mktemp(kind))
        return made[kind]

    return get


@pytest.fixture
def toy_bundle(tmp_path):
    return toy.build(tmp_path / "toy", onefile=False)


def _relabel(row):
    row["label"] = "dog" if row["label"] != "dog" else "ant"


def _rescore(row):
    row["scores"][1] += 0.01


def _move(row):
    row["boxes"][0] = [side + 9 for side in row["boxes"][0]]


def _heat(row):
    row["heatmaps"][0][0] += 0.01


def _reason(row):
    row["label"], row["reason"] = "undecided", "unlike_training"


ALTERED = {
    "classification": (_relabel, "not "),
    "multilabel": (_rescore, "largest difference 0.01"),
    "detection": (_move, "without a partner"),
    "deepfake": (_heat, "largest difference 0.01"),
}


@pytest.mark.parametrize("kind", bundles.KINDS)
def test_golden_answers(client, written, kind):
    passed, said = client(written(kind))
    assert passed, said
    assert said.count(": OK (") == 3


@pytest.mark.parametrize("kind", bundles.KINDS)
def test_altered_answers_are_found(client, written, tmp_path, kind):
    change, word = ALTERED[kind]
    copy = shutil.copytree(written(kind), tmp_path / "altered")
    bundles.alter(copy, change)
    passed, said = client(copy)
    assert not passed
    assert "golden/000.png: DIFFERS" in said
    assert word in said
    assert said.count(": OK (") == 2


def test_another_verdict_is_found(client, written, tmp_path):
    copy = shutil.copytree(written("deepfake"), tmp_path / "altered")
    bundles.alter(copy, _reason)
    passed, said = client(copy)
    assert not passed
    assert ", not undecided (unlike_training);" in said


def test_several_heads(client, tmp_path):
    bundle = bundles.several(tmp_path / "several")
    passed, said = client(bundle)
    assert passed, said
    bundles.alter(bundle, lambda row: _rescore(row["heads"]["others"]))
    passed, said = client(bundle)
    assert not passed
    assert "golden/000.png: DIFFERS (others: " in said


def test_weights_beside_the_graph(client, tmp_path):
    bundle = toy.build(tmp_path / "toy", onefile=False, external=True)
    passed, said = client(bundle)
    assert passed, said
    path = bundle / "model.onnx.data"
    path.write_bytes(b"\1" + path.read_bytes()[1:])
    passed, said = client(bundle)
    assert not passed
    assert "model.onnx.data is damaged: its sha256 is not that of vfm.json." in said


@pytest.mark.parametrize("name", ["golden/golden.json", "golden/001.png", "preprocess.onnx"])
def test_damage_is_found(client, toy_bundle, name):
    path = toy_bundle / name
    path.write_bytes(path.read_bytes() + b" ")
    passed, said = client(toy_bundle)
    assert not passed
    assert f"{name} is damaged: its sha256 is not that of vfm.json." in said


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"format": 99}, "99; known: "), ({"task": "poetry"}, "known: classification, multilabel,")],
)
def test_unknown_bundles_are_refused(client, toy_bundle, changes, message):
    toy.write_vfm_json(toy_bundle, {**toy.CONTRACT, **changes})
    passed, said = client(toy_bundle)
    assert not passed
    assert message in said


def test_no_golden_image_proves_nothing(client, toy_bundle):
    path = toy_bundle / "golden" / "golden.json"
    path.write_text(json.dumps({"tolerance": 1e-3, "images": []}))
    toy.write_vfm_json(toy_bundle)
    assert not client(toy_bundle)[0]


def png(image, **options):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG", **options)
    return file.getvalue()


def gamma():
    """A chunk that makes viewers show other pixels than the file has."""
    chunks = PngImagePlugin.PngInfo()
    chunks.add(b"gAMA", (100_000).to_bytes(4, "big"))
    return chunks


def veiled():
    """A photo whose alpha goes from clear to full."""
    photo = data.astronaut()[:64, :256]
    alpha = np.tile(np.arange(256, dtype=np.uint8), (64, 1))
    return np.dstack([photo, alpha])


PICTURES = {
    "photo": (png(data.astronaut()[:101, :203]), 0),
    "gamma": (png(data.coffee()[:64, :64], pnginfo=gamma()), 0),
    "grey": (png(data.camera()[:33, :77]), 0),
    "alpha": (png(veiled()), 1),
}
DECODE = """async (text) => {
  const { decode } = await import("./bundle.js");
  const bytes = Uint8Array.from(atob(text), (char) => char.charCodeAt(0));
  const { data, width, height } = await decode(new Blob([bytes]));
  return { data: Array.from(data), width, height };
}"""
DECODE_IN_NODE = """
import { readFileSync, writeFileSync } from "node:fs";
import { openPng } from %s;
const { data, width, height } = openPng(readFileSync(process.argv[1]), "it");
writeFileSync(process.argv[2], data);
console.log(JSON.stringify({ width, height }));
"""


def require_near(found, expected, levels):
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).max() <= levels


def test_the_browser_reads_the_bytes_of_a_png(page_of, toy_bundle):
    page = page_of(toy_bundle)
    for file, levels in PICTURES.values():
        found = page.evaluate(DECODE, base64.b64encode(file).decode())
        pixels = np.array(found["data"], np.uint8).reshape(found["height"], found["width"], 3)
        require_near(pixels, open_image(file), levels)


def test_the_browser_turns_a_photo_upright(page_of, toy_bundle):
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.fromarray(data.astronaut()[:64, :128]).save(file, "JPEG", exif=exif, quality=95)
    found = page_of(toy_bundle).evaluate(DECODE, base64.b64encode(file.getvalue()).decode())
    assert (found["width"], found["height"]) == (64, 128)
    pixels = np.array(found["data"], np.uint8).reshape(128, 64, 3)
    require_near(pixels, open_image(file.getvalue()), 8)


@pytest.mark.parametrize("name", PICTURES)
def test_node_reads_the_bytes_of_a_png(placed, tmp_path, name):
    file, levels = PICTURES[name]
    (tmp_path / "it.png").write_bytes(file)
    script = DECODE_IN_NODE % json.dumps((placed / "node" / "golden.mjs").as_uri())
    words = ["--input-type=module", "-e", script, tmp_path / "it.png", tmp_path / "rgb"]
    done = run("node", *words)
    assert done.returncode == 0, done.stderr
    size = json.loads(done.stdout)
    found = np.fromfile(tmp_path / "rgb", np.uint8).reshape(size["height"], size["width"], 3)
    require_near(found, open_image(file), levels)


def test_the_page_answers_and_asks_nobody_else(page_of, toy_bundle):
    page = page_of(toy_bundle)
    page.wait_for_selector("#file:enabled")
    golden = json.loads((toy_bundle / "golden" / "golden.json").read_text())["images"][1]
    page.set_input_files("#file", toy_bundle / "golden" / golden["file"])
    page.wait_for_selector("#answer:not([hidden])")
    assert page.inner_text("#answer h2") == golden["label"]
    rows = page.inner_text("#answer ul").split()
    assert f"{100 * max(golden['scores']):.1f}" in rows
    assert not page.evaluate("crossOriginIsolated")
    assert page.asked
    assert all(url.startswith((page.base, "data:", "blob:")) for url in page.asked)


def test_the_page_refuses_what_is_no_image(page_of, toy_bundle):
    page = page_of(toy_bundle)
    page.wait_for_selector("#file:enabled")
    page.set_input_files("#file", toy_bundle / "vfm.json")
    page.wait_for_selector("#status.error")
    assert page.inner_text("#status").startswith("vfm.json cannot be judged: ")


def test_the_page_takes_bundles_of_its_own_site_alone(page_of, toy_bundle):
    page = page_of(toy_bundle, "?bundle=https://elsewhere.invalid/bundle")
    page.wait_for_selector("#status.error")
    assert page.inner_text("#status") == "error: A bundle comes from this page's own site."
    assert not any("elsewhere" in url.split("?")[0] for url in page.asked)


def test_the_build_replaces_nothing_but_a_page(placed, toy_bundle, tmp_path):
    (tmp_path / "mine").mkdir()
    done = run("node", placed / "browser" / "build.mjs", toy_bundle, tmp_path / "mine")
    assert done.returncode == 1
    assert "mine is there and is no such page. Remove it, or name another folder." in done.stderr
    done = run("node", placed / "browser" / "build.mjs", tmp_path / "mine", tmp_path / "page")
    assert done.returncode == 1
    assert "vfm.json is not there. Give a bundle." in done.stderr
    assert not (tmp_path / "page").exists()


@pytest.mark.parametrize("script", ["node/golden.mjs", "browser/build.mjs"])
def test_without_a_bundle_there_is_a_line_of_usage(placed, script):
    done = run("node", placed / script)
    assert done.returncode == 2
    assert done.stderr.startswith(f"usage: node {script.split('/')[1]} BUNDLE")
