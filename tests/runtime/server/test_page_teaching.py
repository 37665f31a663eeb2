"""The panel of the demo page that teaches classes, in a real browser, against the real server."""

import json

import numpy as np
import pytest
from PIL import Image

from tests.runtime import toy_embedder
from tests.runtime.server import toy_finder
from tests.runtime.server.browsing import (
    CONTRAST,
    FAULTS,
    MARKUP,
    Running,
    ask,
    color_at,
    draw_box,
    dropped,
)

pytestmark = pytest.mark.assets

TOKEN = "a-token-of-the-tests-0123456789"


def test_a_class_is_taught_by_dropping_pictures(opened, tmp_path):
    bundle = toy_embedder.build(tmp_path / "colors")
    colors = {"red": (200, 40, 40), MARKUP: (40, 40, 200)}
    with Running(bundle, state=tmp_path / "state", keep_pictures=True) as running:
        page = opened(running.url)
        page.wait_for_selector("#taught-about:has-text('Nothing was taught yet.')")
        for index, (name, color) in enumerate(colors.items()):
            (path,) = toy_embedder.write_pictures(tmp_path / str(index), color, 1)
            page.fill("#taught-label", name)
            page.dispatch_event("#taught-drop", "drop", {"dataTransfer": dropped(page, path)})
            page.wait_for_selector(f"#taught-list li:nth-child({index + 1})")
        assert MARKUP in page.inner_text("#taught-list")
        (query,) = toy_embedder.write_pictures(tmp_path / "query", colors["red"], 1, seed=1)
        ask(page, query)
        page.wait_for_selector(".card.taught .nearest img")
        assert page.inner_text(".card.taught .headline") == "red"
        assert page.evaluate(CONTRAST)[0] >= 4.5
        assert page.evaluate(FAULTS) == []
        assert page.faults == []
        # The other card is the bundle's own answer.
        assert page.inner_text(".card.embedding .headline") == "48 numbers"
        page.click("#taught-list li:first-child button")
        page.wait_for_selector("#taught-status:has-text('Forgot red.')")
        page.wait_for_selector(".card.taught", state="detached")
        assert "needs a second class" in page.inner_text("#taught-about")
        page.fill("#taught-label", " ")
        page.dispatch_event("#taught-drop", "drop", {"dataTransfer": dropped(page, query)})
        assert page.inner_text("#taught-status") == "Name the class first."


def test_a_detector_is_taught_by_drawing_boxes(opened, tmp_path):
    bundle = toy_finder.build(tmp_path / "finder", embeds=True)
    pixels = np.full((120, 160, 3), 120, np.uint8)
    for left, top, right, bottom in toy_finder.SHARES[1:]:
        rows, columns = (
            slice(round(120 * top), round(120 * bottom)),
            slice(round(160 * left), round(160 * right)),
        )
        pixels[rows, columns] = (200, 40, 40)
    path = tmp_path / "red.png"
    Image.fromarray(pixels).save(path)
    with Running(bundle, state=tmp_path / "state", keep_pictures=True) as running:
        page = opened(running.url)
        page.wait_for_selector("#taught-about:has-text('Nothing was taught yet.')")
        page.dispatch_event("#taught-drop", "drop", {"dataTransfer": dropped(page, path)})
        page.wait_for_function("document.getElementById('marked').naturalWidth === 160")
        for count, shares in enumerate(toy_finder.SHARES[1:], 1):
            draw_box(page, shares)
            page.wait_for_selector(f"#marks[aria-label^='{count} box']")
        boxes = json.loads(page.input_value("#marks-text"))
        expected_boxes = np.array(toy_finder.SHARES[1:]) * [160, 120, 160, 120]
        np.testing.assert_allclose(boxes, expected_boxes, atol=1)
        page.click("#marks-teach")
        page.wait_for_selector("#taught-status:has-text('Name the class first.')")
        page.fill("#taught-label", "red")
        # A box too many is taken away, and may be typed too.
        draw_box(page, (0.4, 0.1, 0.5, 0.3))
        page.wait_for_selector("#marks[aria-label^='3 boxes']")
        page.click("#marks-undo")
        page.wait_for_selector("#marks[aria-label^='2 boxes']")
        page.fill("#marks-text", json.dumps(boxes[:1]))
        page.dispatch_event("#marks-text", "change")
        page.wait_for_selector("#marks[aria-label^='1 box ']")
        assert page.evaluate(CONTRAST)[0] >= 4.5
        assert page.evaluate(FAULTS) == []
        page.click("#marks-teach")
        page.wait_for_selector("#taught-list li:has-text('1 example')")
        page.wait_for_selector("#marking", state="hidden")
        ask(page, path)
        page.wait_for_selector(".card.taught .nearest img")
        assert page.locator(".found .name").all_inner_texts() == ["cat", "red", "red"]
        # As the model has it, and in a color of its own.
        assert page.inner_text(".slide output") == "as the model has it"
        assert color_at(page, 0.6, 0.7)[:3] == pytest.approx([0xF5, 0x82, 0x31], abs=40)
        assert page.faults == []
        page.fill("#taught-label", "bee")
        page.dispatch_event("#taught-drop", "drop", {"dataTransfer": dropped(page, path)})
        page.wait_for_selector("#marking:not([hidden])")
        page.click("#marks-teach")
        page.wait_for_selector("#taught-status:has-text('Draw a box around every object')")
        page.fill("#marks-text", "[96, 60, 144, 108]")
        page.dispatch_event("#marks-text", "change")
        page.click("#marks-teach")
        page.wait_for_selector("#taught-status:has-text('this model was trained on')")
        assert page.is_visible("#marking")


def test_a_page_asks_for_the_token_to_teach_with(opened, tmp_path, monkeypatch):
    bundle = toy_embedder.build(tmp_path / "colors")
    monkeypatch.setenv("VFM_TEACH_TOKENS", TOKEN)
    with Running(bundle, state=tmp_path / "state") as running:
        page = opened(running.url)
        page.wait_for_selector("#taught:not([hidden])")
        (path,) = toy_embedder.write_pictures(tmp_path / "red", (200, 40, 40), 1)
        page.fill("#taught-label", "red")
        page.set_input_files("#taught-files", path)
        page.wait_for_selector("#taught-token-field:not([hidden])")
        assert "takes a token of its own" in page.inner_text("#taught-status")
        fill_token(page)
        page.set_input_files("#taught-files", path)
        page.wait_for_selector("#taught-list li")
        (other,) = toy_embedder.write_pictures(tmp_path / "blue", (40, 40, 200), 1)
        page.fill("#taught-label", "blue")
        page.set_input_files("#taught-files", other)
        page.wait_for_selector("#taught-list li:nth-child(2)")
        # Who may not teach is answered all the same, without the examples.
        page = opened(running.url)
        ask(page, path)
        page.wait_for_selector(".card.taught .headline:has-text('red')")
        assert page.query_selector(".card.taught .nearest") is None
        fill_token(page)
        page.wait_for_selector(".card.taught .nearest li")


def fill_token(page):
    page.fill("#taught-token", TOKEN)
    page.dispatch_event("#taught-token", "change")
