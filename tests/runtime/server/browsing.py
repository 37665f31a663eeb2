"""What the tests of the page share: the server in a thread, and looks at what a browser shows."""

import base64
import shutil
import socket
import threading
import time
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from PIL import Image
from skimage import data

from tests.assets import missing
from tests.runtime import toy, toy_deepfake, videos
from tests.runtime.server import toy_finder

FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
)
MARKUP = "<img src=x onerror=document.title='broken'>"

# Sum of the shifts of what lay on the screen already.
SHIFTS = """() => new Promise((done) => new PerformanceObserver((list) =>
    done(list.getEntries().reduce((sum, entry) => sum + entry.value, 0))
  ).observe({ type: "layout-shift", buffered: true }) ?? setTimeout(() => done(0), 200))"""
# Lowest contrast of any text that is shown, with the text.
CONTRAST = """() => {
  const context = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (color) => {
    context.clearRect(0, 0, 1, 1);
    context.fillStyle = color;
    context.fillRect(0, 0, 1, 1);
    return [...context.getImageData(0, 0, 1, 1).data];
  };
  const light = (rgb) => rgb.slice(0, 3).map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const color = rgba(getComputedStyle(at).backgroundColor);
      if (color[3] === 255) return color;
    }
    return [255, 255, 255, 255];
  };
  let worst = [21, ""];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !element.checkVisibility()) continue;
    const pair = [light(rgba(getComputedStyle(element).color)), light(ground(element))].sort();
    const ratio = (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
    if (ratio < worst[0]) worst = [ratio, walker.currentNode.data.trim()];
  }
  return worst;
}"""
# What no page of ours may have; empty where all is well.
FAULTS = """() => {
  const faults = [];
  const all = (selector) => [...document.querySelectorAll(selector)];
  if (!document.documentElement.lang) faults.push("no language");
  if (all("h1").length !== 1) faults.push(`${all("h1").length} h1`);
  if (!document.title) faults.push("no title");
  for (const field of all("input, select, textarea, progress"))
    if (!field.labels?.length) faults.push(`no label: ${field.outerHTML}`);
  for (const image of all("img")) if (!image.hasAttribute("alt")) faults.push(`no alt: ${image.id}`);
  for (const part of all("button, a, summary, legend, h1, h2, h3"))
    if (!part.textContent.trim()) faults.push(`empty: ${part.outerHTML}`);
  const ids = all("[id]").map(({ id }) => id);
  for (const id of ids) if (ids.filter((other) => other === id).length > 1) faults.push(`twice: ${id}`);
  return faults;
}"""


class Running:
    """The server in a thread; it can be stopped and started again at the same address."""

    def __init__(self, *bundles, **settings):
        from vfm_runtime.server.settings import Settings

        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        words = tuple(map(str, bundles))
        self.settings = Settings(bundles=words, port=self.port, device="cpu", **settings)
        self.url = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self):
        import uvicorn
        from vfm_runtime.server.app import create_app

        config = uvicorn.Config(create_app(self.settings), port=self.port, log_level="warning")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        until = time.monotonic() + 300
        while not self._server.started:
            assert self._thread.is_alive(), "the server did not start"
            assert time.monotonic() < until
            time.sleep(0.02)

    def __enter__(self):
        return self

    def __exit__(self, *failure):
        self.stop()

    def stop(self):
        self._server.should_exit = True
        self._thread.join(30)


class Windows:
    """Windows of a browser, each with cookies and storage of its own; all are closed in the end."""

    def __init__(self, browser):
        self._browser = browser
        self._contexts = []

    def __enter__(self):
        return self

    def __exit__(self, *failure):
        for context in self._contexts:
            context.close()

    def open(self, url, **options):
        """Open an address; the page keeps what it asked for and what its console complained of."""
        options = {"viewport": {"width": 1280, "height": 860}, **options}
        context = self._browser.new_context(**options)
        self._contexts.append(context)
        page = context.new_page()
        page.asked, page.faults = [], []

        def hear(said):
            if said.type == "error":
                page.faults.append(said.text)

        page.on("request", lambda request: page.asked.append(request.url))
        page.on("console", hear)
        page.on("pageerror", lambda error: page.faults.append(str(error)))
        page.set_default_timeout(120_000)
        page.goto(url)
        return page


@contextmanager
def launched():
    """A browser without a screen."""
    path = shutil.which("chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        path = None
    if path is None:
        missing("Chromium and Playwright are")
    with sync_playwright() as player:
        browser = player.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


def make_bundles(folder):
    """A tiny bundle of each kind; a label of the first is markup."""
    labels = (MARKUP, "bee", "cat")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(toy, "LABELS", labels)
        patch.setattr(toy, "CONTRACT", {**toy.CONTRACT, "labels": list(labels)})
        toy.build(folder / "animals", onefile=False)
        toy.write_vfm_json(folder / "animals", toy.CONTRACT)
    return SimpleNamespace(
        animals=folder / "animals",
        finder=toy_finder.build(folder / "finder"),
        portal=toy_finder.build(folder / "portal", heads=True),
        deepfake=toy_deepfake.build(folder / "deepfake"),
    )


def make_files(folder):
    """Pictures, a video and a file that is none."""
    Image.fromarray(data.chelsea()).save(folder / "cat.png")
    Image.fromarray(data.coffee()).save(folder / "coffee, 'black'; \"hot\".jpg")
    face = toy_deepfake.reddened(toy_deepfake.face_photo(), 0.9)
    Image.fromarray(face).save(folder / "face.png")
    (folder / "damaged.jpg").write_bytes(b"\xff\xd8\xff\xe0 and no more")
    (folder / "clip.mp4").write_bytes(videos.write(videos.PICTURES))
    found = {path.stem.partition(",")[0]: path for path in folder.iterdir()}
    return SimpleNamespace(**found)


def ask(page, path, model=None):
    """Choose a model and a file, and wait for the answer."""
    if model is not None:
        page.select_option("#model", model)
    page.set_input_files("#file", path)
    page.wait_for_selector("#request:not([hidden]):not(.stale)")


def dropped(page, path, kind="image/png"):
    """What a drag, or the clipboard, carries."""
    script = """([text, name, type]) => {
      const carried = new DataTransfer();
      const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
      carried.items.add(new File([bytes], name, { type }));
      return carried;
    }"""
    text = base64.b64encode(path.read_bytes()).decode()
    return page.evaluate_handle(script, [text, path.name, kind])


def painted(page):
    """Pixels of the canvas that a box or a caption covers."""
    script = """() => {
      const canvas = document.getElementById("canvas");
      const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
      return pixels.filter((_, index) => index % 4 === 3).reduce((sum, alpha) => sum + (alpha > 0), 0);
    }"""
    return page.evaluate(script)


def color_at(page, share_x, share_y):
    """Colour of the canvas at a place of the picture."""
    script = """([x, y]) => {
      const canvas = document.getElementById("canvas");
      const picture = document.getElementById("picture");
      const [width, height] = [picture.naturalWidth, picture.naturalHeight];
      const scale = Math.min(canvas.width / width, canvas.height / height);
      const left = (canvas.width - width * scale) / 2 + x * width * scale;
      const top = (canvas.height - height * scale) / 2 + y * height * scale;
      return [...canvas.getContext("2d").getImageData(Math.round(left), Math.round(top), 1, 1).data];
    }"""
    return page.evaluate(script, [share_x, share_y])


def draw_box(page, shares):
    """Draw a box, given in shares of the picture, by the mouse."""
    script = """() => {
      const picture = document.getElementById("marked");
      const bounds = document.getElementById("marks").getBoundingClientRect();
      const [width, height] = [picture.naturalWidth, picture.naturalHeight];
      const scale = Math.min(bounds.width / width, bounds.height / height);
      const left = bounds.left + (bounds.width - width * scale) / 2;
      const top = bounds.top + (bounds.height - height * scale) / 2;
      return [left, top, width * scale, height * scale];
    }"""
    page.locator("#marks").scroll_into_view_if_needed()
    left, top, width, height = page.evaluate(script)
    corners = [(left + x * width, top + y * height) for x, y in (shares[2:], shares[:2])]
    page.mouse.move(*corners[0])
    page.mouse.down()
    page.mouse.move(*corners[1], steps=3)
    page.mouse.up()
