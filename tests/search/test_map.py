"""`vfm map`: a page of pictures in one file, on which a lasso chooses what a CSV names."""

import json
import re
import sys

import numpy as np
import pytest
from PIL import Image

from tests.runtime.server.browsing import launched
from tests.search.stores import write_store
from vfm.cli import main

pytest.importorskip("lancedb")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Two kinds of 15 images each, one of them with a name that would end a script."""
    folder = tmp_path_factory.mktemp("map")
    random = np.random.default_rng(0)
    vectors = np.repeat(np.eye(2, 8), 15, axis=0) + random.normal(size=(30, 8)) / 20
    paths = [str(folder / f"{i:02d}.png") for i in range(30)]
    for number, path in enumerate(paths):
        Image.new("RGB", (20, 9 + number), (255 * (number < 15), 90, 0)).save(path)
    paths[3] = '/gone/</script><b>,".png'
    label = ["red"] * 15 + ["green"] * 14 + [None]
    return write_store(str(folder / "store"), vectors.astype(np.float32), paths, label=label), paths


LASSO = """corners => {
    canvas.setPointerCapture = () => {};  // no pointer of the system is there
    const box = canvas.getBoundingClientRect();
    const send = (kind, [x, y]) => canvas.dispatchEvent(new PointerEvent(
        kind, { clientX: box.left + x * box.width, clientY: box.top + y * box.height }));
    send("pointerdown", corners[0]);
    corners.forEach((corner) => send("pointermove", corner));
    send("pointerup", corners[0]);
}"""
"""Draws a lasso by events of the page: of a mouse that is moved, a busy browser joins the corners."""


def test_the_page_holds_pictures_and_a_lasso_saves_their_paths(store, tmp_path, capsys):
    opened, paths = store
    page = tmp_path / "map.html"
    assert main(["map", opened.uri, "-o", str(page)]) == 0
    assert "30 images, PCA: 2 axes hold" in capsys.readouterr().out
    text = page.read_text()
    assert "http" not in re.sub(r"data:image/\S+", "", text)
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text)
    data = json.loads(data)
    assert [point["path"] for point in data["points"]] == paths
    assert (data["column"], data["values"]) == ("label", [["red", 15], ["green", 14]])
    with launched() as browser:
        from playwright.sync_api import expect  # launched says if it is missing

        window = browser.new_page(viewport={"width": 900, "height": 600})
        faults = []
        window.on("pageerror", lambda error: faults.append(str(error)))
        window.goto(page.as_uri())
        assert window.evaluate("sprite.complete && sprite.naturalWidth") == 6 * 48
        # A lasso around the left half of the map, which one kind fills.
        window.evaluate(LASSO, [[0.002, 0.01], [0.002, 0.99], [0.5, 0.99], [0.5, 0.01]])
        expect(window.locator("#count")).to_have_text("15 images chosen")
        with window.expect_download() as download:
            window.get_by_text("Save CSV").click()
        lines = download.value.path().read_text().splitlines()
        window.get_by_text("Clear").click()
        expect(window.locator("#count")).to_have_text("0 images chosen")
        assert faults == []
    assert lines[0] == "path,label"
    kinds = {line.rpartition(",")[2] for line in lines[1:]}
    assert kinds in ({"red"}, {"green", ""})
    if kinds == {"red"}:
        assert '"/gone/</script><b>,"".png",red' in lines


def test_fewer_points_are_drawn_at_random(store, tmp_path, capsys):
    words = ["map", store[0].uri, "-o", str(tmp_path / "m.html"), "--where", "label = 'red'"]
    assert main([*words, "--points", "5", "--color", "label"]) == 0
    assert "5 of 15 images, PCA" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "cause"),
    [
        (["--color", "lable"], "no column of .* Did you mean 'label'. Columns: label."),
        (["--points", "1"], "--points is 1. Give a number from 2 to 10,000"),
        (["--where", "path = 'x'"], "has no rows that the filter holds for"),
        (["--method", "umap"], r"umap-learn, which is not installed: pip install 'vfm\[map\]'"),
    ],
)
def test_what_cannot_be_drawn_is_refused(store, tmp_path, capsys, monkeypatch, more, cause):
    monkeypatch.setitem(sys.modules, "umap", None)
    assert main(["map", store[0].uri, "-o", str(tmp_path / "m.html"), *more]) == 1
    assert re.search(cause, capsys.readouterr().err)
