"""The demo page in a real browser, against the real server."""

import re
import shutil
from pathlib import Path

import pytest
import vfm_runtime
from skimage import data

from tests.runtime.server.browsing import (
    CONTRAST,
    FAULTS,
    MARKUP,
    SHIFTS,
    Running,
    ask,
    color_at,
    dropped,
    make_bundles,
    make_files,
    painted,
)

pytestmark = pytest.mark.assets

TOKEN = "a-token-of-the-tests-0123456789"


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    return make_bundles(tmp_path_factory.mktemp("bundles"))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return make_files(tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="module")
def served(bundles):
    """All models at one address."""
    with Running(bundles.animals, bundles.finder, bundles.deepfake, bundles.portal) as running:
        yield running


def headline(page):
    return page.inner_text(".card .headline").lower()


def expected(bundle, path):
    return vfm_runtime.load(bundle, device="cpu").predict(path)


def test_upload_gives_the_label(served, bundles, opened, files):
    page = opened(served.url)
    ask(page, files.cat, "animals")
    answer = expected(bundles.animals, files.cat)
    assert headline(page) == answer.label.lower()
    assert page.locator(".bars li").count() == 3
    shown = page.inner_text(".bars li:first-child .number")
    assert shown == f"{100 * answer.score:.1f}\N{NO-BREAK SPACE}%"
    assert page.inner_text("#file-name").startswith("cat.png · ")
    assert page.inner_text("#status").startswith(f"Answer: {answer.label}")
    times = page.locator("#times dd").all_inner_texts()
    assert len(times) == 5
    assert all(time.endswith("\N{NO-BREAK SPACE}ms") for time in times)
    assert page.inner_text("#request-id")
    assert page.faults == []
    assert all(url.startswith((served.url, "data:", "blob:")) for url in page.asked)


def test_command_line_asks_the_same(served, opened, files):
    page = opened(served.url)
    ask(page, files.coffee, "animals")
    name = r'"coffee, ' "'\\''black'\\''" r'; \"hot\".jpg"'
    line = f"curl -F 'file=@{name}' '{served.url}/predict?model=animals'"
    assert page.inner_text("#curl") == line


def test_labels_are_text_and_never_markup(served, opened, files):
    page = opened(served.url)
    ask(page, files.cat, "animals")
    assert MARKUP in page.locator(".bars .name").all_inner_texts()
    assert page.title() != "broken"
    assert page.locator(".card img").count() == 0
    page.click("summary")
    assert MARKUP in page.inner_text("#about")
    assert page.faults == []


@pytest.mark.parametrize("event", ["drop", "paste"])
def test_picture_dropped_or_pasted(served, bundles, opened, files, event):
    page = opened(served.url)
    page.wait_for_selector("#model option", state="attached")
    page.select_option("#model", "animals")
    carried = dropped(page, files.cat)
    if event == "drop":
        page.dispatch_event("#stage", "drop", {"dataTransfer": carried})
    else:
        script = """(clipboardData) =>
          document.dispatchEvent(new ClipboardEvent("paste", { clipboardData, bubbles: true }))"""
        page.evaluate(script, carried)
    page.wait_for_selector("#request:not([hidden])")
    assert headline(page) == expected(bundles.animals, files.cat).label.lower()


@pytest.mark.parametrize("key", ["Enter", "Space"])
def test_keyboard_alone(served, opened, files, key):
    page = opened(served.url)
    # Long before the key, which may be faster than that.
    page.on("filechooser", lambda chooser: chooser.set_files(files.cat))
    page.wait_for_selector("#model option", state="attached")
    for _ in range(12):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "file":
            break
    outline = "getComputedStyle(document.querySelector('label[for=file]')).outlineStyle"
    assert page.evaluate(outline) == "solid"
    page.keyboard.press(key)
    page.wait_for_selector("#request:not([hidden])")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement !== document.body")


def slide(page, score):
    script = "(slider, to) => { slider.value = to; slider.dispatchEvent(new Event('input')); }"
    page.locator("input[type=range]").evaluate(script, str(score))


def test_boxes_are_drawn_and_the_slider_filters(served, opened, files):
    page = opened(served.url)
    ask(page, files.cat, "finder")
    assert headline(page) == "2 objects"
    assert page.inner_text(".card .soft") == "1 cat, 1 ant"
    # The left edge of the first box, half way down: the third color, of the third class.
    assert color_at(page, 0.1, 0.5) == [0x43, 0x63, 0xD8, 255]
    assert color_at(page, 0.3, 0.5)[3] == 0
    two = painted(page)
    slide(page, 0.7)
    assert headline(page) == "1 object"
    assert 0 < painted(page) < two
    slide(page, 0.05)
    assert headline(page) == "3 objects"
    assert painted(page) > two
    slide(page, 0.95)
    assert headline(page) == "no objects"
    assert painted(page) == 0
    assert page.faults == []


def test_boxes_have_words_for_them(served, opened, files):
    page = opened(served.url)
    ask(page, files.cat, "finder")
    words = "2 boxes drawn over the picture: 1 cat, 1 ant. They are listed under Answer."
    assert page.get_attribute("#canvas", "aria-label") == words
    assert page.inner_text("#status") == words
    height, width = data.chelsea().shape[:2]
    size = f"{round(0.4 * width)} \N{MULTIPLICATION SIGN} {round(0.4 * height)} px"
    place = f"{size} at {round(0.1 * width)}, {round(0.2 * height)}"
    assert page.locator(".found .place").first.inner_text() == place


def test_chosen_box_stands_out(served, opened, files):
    page = opened(served.url)
    ask(page, files.cat, "finder")
    page.locator(".found button").nth(1).focus()
    assert color_at(page, 0.1, 0.5)[3] < 200
    assert color_at(page, 0.6, 0.7)[3] == 255


def test_verdict_with_heatmap(served, bundles, opened, files):
    page = opened(served.url)
    ask(page, files.face, "deepfake")
    answer = expected(bundles.deepfake, files.face)
    assert headline(page) == answer.label == "fake"
    assert answer.explanation in page.inner_text(".card")
    assert page.get_attribute("#drawn", "src").startswith("data:image/")
    assert page.is_visible("#drawing")
    page.click("label[for=view-source]")
    assert page.is_hidden("#drawing")
    assert page.faults == []


def test_heatmap_does_not_outlive_its_answer(served, opened, files):
    page = opened(served.url)
    ask(page, files.face, "deepfake")
    page.select_option("#model", "animals")
    page.wait_for_selector(".card.classification")
    assert page.is_hidden("#drawing")
    assert page.locator("#picture").evaluate("(it) => getComputedStyle(it).visibility") == "visible"


def test_verdict_of_a_video(served, bundles, opened, files):
    page = opened(served.url)
    ask(page, files.clip, "deepfake")
    answer = expected(bundles.deepfake, files.clip)
    assert headline(page) == answer.label
    assert answer.explanation in page.inner_text(".card")
    assert page.locator(".frames li").count() == len(answer.frames)


def test_card_for_each_of_several_heads(served, opened, files):
    page = opened(served.url)
    ask(page, files.cat, "portal")
    assert page.locator(".card .kind").all_inner_texts() == ["scene · label", "things · found"]
    assert page.locator(".card .headline").all_inner_texts() == ["outdoor", "2 objects"]
    assert painted(page) > 0
    assert page.faults == []


def test_versions_are_chosen(bundles, opened, files, tmp_path):
    for version in ("1", "2"):
        shutil.copytree(bundles.animals, tmp_path / "grown" / version)
    with Running(tmp_path / "grown") as running:
        page = opened(running.url)
        ask(page, files.cat)
        assert page.input_value("#version") == "2"
        with page.expect_response("**/predict**") as asked:
            page.select_option("#version", "1")
        assert asked.value.json()["version"] == "1"
        page.wait_for_selector("#request:not(.stale)")
        assert page.inner_text("#curl").endswith("model=grown&version=1'")


def test_damaged_file_shows_what_the_server_says(served, opened, files):
    page = opened(served.url)
    ask(page, files.cat, "animals")
    page.set_input_files("#file", files.damaged)
    page.wait_for_selector("#trouble:not([hidden])")
    text = page.inner_text("#trouble")
    assert text.startswith("This file could not be read.")
    assert "Request id: " in text
    assert len(page.locator("#trouble p").first.inner_text()) > 20
    # Nothing of the last answer stays beside it.
    assert page.locator(".card").count() == 0
    assert page.is_hidden("#request")
    ask(page, files.cat)
    assert page.is_hidden("#trouble")


def test_file_that_is_too_large(bundles, opened, files):
    with Running(bundles.animals, max_body_mb=0.05) as running:
        page = opened(running.url)
        page.set_input_files("#file", files.cat)
        page.wait_for_selector("#trouble:not([hidden])")
        assert page.inner_text("#trouble h3") == "The file is too large for this server."


def test_token_is_asked_for_and_kept_in_memory_only(bundles, opened, files, tmp_path):
    (tmp_path / "tokens").write_text(TOKEN)
    with Running(bundles.animals, token_file=tmp_path / "tokens") as running:
        page = opened(running.url)
        page.wait_for_selector("#token-form:not([hidden])")
        assert page.evaluate("document.activeElement.id") == "token"
        page.fill("#token", "not-the-one-0123456789")
        page.keyboard.press("Enter")
        page.wait_for_selector("#token-hint:has-text('did not take')")
        page.fill("#token", TOKEN)
        page.keyboard.press("Enter")
        page.wait_for_selector("#token-form", state="hidden")
        ask(page, files.cat)
        assert '-H "Authorization: Bearer $VFM_TOKEN"' in page.inner_text("#curl")
        assert TOKEN not in page.content()
        kept = "JSON.stringify([{ ...localStorage }, { ...sessionStorage }, document.cookie])"
        assert page.evaluate(kept) == '[{},{},""]'
        assert all(TOKEN not in url for url in page.asked)
        page.reload()
        page.wait_for_selector("#token-form:not([hidden])")


def test_busy_server_is_asked_again(served, opened, files):
    page = opened(served.url)
    page.wait_for_selector("#model option", state="attached")
    answers = []

    def answer(route):
        answers.append(route)
        if len(answers) > 1:
            route.continue_()
            return
        body = {"error": "64 requests wait already.", "code": "queue_full", "request_id": "x"}
        headers = {"Retry-After": "2"}
        route.fulfill(status=429, json=body, headers=headers)

    page.route("**/predict**", answer)
    page.set_input_files("#file", files.cat)
    page.wait_for_selector("#trouble:not([hidden])")
    text = page.inner_text("#trouble")
    assert text.startswith("The server is busy.")
    assert "64 requests wait already." in text
    assert "Trying again in" in text
    page.wait_for_selector(".card")
    assert len(answers) == 2
    assert page.is_hidden("#trouble")


def test_question_is_cancelled(served, opened, files):
    page = opened(served.url)
    page.wait_for_selector("#model option", state="attached")
    page.route("**/predict**", lambda route: None)
    page.set_input_files("#file", files.cat)
    page.wait_for_selector("#working:not([hidden])")
    page.click("#cancel")
    assert page.is_hidden("#working")
    assert page.inner_text("#status") == "Cancelled."
    assert page.is_hidden("#trouble")
    assert page.evaluate("document.activeElement.id") == "file"


def test_server_that_is_gone_and_comes_back(bundles, opened, files):
    with Running(bundles.animals) as running:
        page = opened(running.url)
        ask(page, files.cat)
    page.set_input_files("#file", files.cat)
    page.wait_for_selector("#trouble:not([hidden])")
    assert page.inner_text("#trouble h3") == "The server does not answer."
    running.start()
    page.click("#trouble button")
    page.wait_for_selector(".card")
    assert page.is_hidden("#trouble")
    running.stop()


def test_one_model_needs_no_chooser(bundles, opened):
    with Running(bundles.animals) as running:
        page = opened(running.url)
        page.wait_for_selector("#about strong")
        assert page.is_hidden("#model")
        assert page.inner_text("#about strong") == "animals"


@pytest.mark.parametrize("model", ["animals", "finder", "deepfake", "portal"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_phone_and_schemes(served, opened, files, model, scheme):
    page = opened(served.url, viewport={"width": 360, "height": 740}, color_scheme=scheme)
    ask(page, files.face, model)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.evaluate(FAULTS) == []
    ratio, text = page.evaluate(CONTRAST)
    assert ratio >= 4.5, text


@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_jumps(served, opened, files, width):
    page = opened(served.url, viewport={"width": width, "height": 860})
    ask(page, files.cat, "animals")
    ask(page, files.face, "deepfake")
    assert page.evaluate(SHIFTS) < 0.03


def test_less_motion(served, opened):
    page = opened(served.url, reduced_motion="reduce")
    moving = "getComputedStyle(document.getElementById('cards')).transitionProperty"
    assert page.evaluate(moving) == "none"


def test_files_of_the_page_are_small():
    folder = Path(vfm_runtime.__file__).parent / "server" / "page"
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    assert {"index.html", "page.css", "page.js"} <= set(sizes)
    assert sum(sizes.values()) < 80_000
    text = (folder / "index.html").read_text("utf-8")
    # The policy of the page refuses them.
    assert not re.search(r"<style|style=|\son\w+=|<script(?![^>]*\ssrc=)|javascript:", text)
    assert all(len(path.read_text("utf-8").splitlines()) <= 400 for path in folder.iterdir())
