"""The clients of export/examples, each as one function: a bundle in, whether it passed and what was said out."""

import functools
import http.server
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from vfm_runtime.cli import main

from tests import fetch_assets
from tests.assets import missing

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
ENDED = "#check[data-state=done],#check[data-state=error]"


class Quiet(http.server.SimpleHTTPRequestHandler):
    """`python -m http.server` without its log."""

    def log_message(self, *_):
        pass


def run(*words):
    return subprocess.run(words, capture_output=True, text=True, check=False, timeout=600)


@pytest.fixture(scope="session")
def placed(tmp_path_factory):
    """The examples beside their npm packages, as after `npm ci`."""
    folder = tmp_path_factory.mktemp("placed") / "examples"
    ignore = shutil.ignore_patterns("node_modules", "build", "__pycache__")
    shutil.copytree(fetch_assets.EXAMPLES, folder, ignore=ignore)
    for client in fetch_assets.CLIENTS:
        packages = fetch_assets.FOLDER / "npm" / client / "node_modules"
        if not packages.is_dir() or shutil.which("node") is None:
            missing("Node.js or its packages are")
        (folder / client / "node_modules").symlink_to(packages)
    return folder


@pytest.fixture(scope="module")
def chromium():
    """A headless browser; closed with its module, since Playwright runs only once at a time in a process."""
    playwright = pytest.importorskip("playwright.sync_api")
    if not CHROMIUM.is_file():
        missing(f"{CHROMIUM} is", "Run: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=str(CHROMIUM), args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture
def serve():
    """Serves a folder on this machine as `python -m http.server` does; gives its address."""
    servers = []

    def start(folder):
        handler = functools.partial(Quiet, directory=str(folder))
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}/"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def page_of(placed, chromium, serve, tmp_path):
    """Builds the page for a bundle and opens it; `page.asked` lists every address that was asked for."""
    pages = []

    def open_page(bundle, query=""):
        built = run("node", placed / "browser" / "build.mjs", bundle, tmp_path / "page")
        assert built.returncode == 0, built.stderr
        page = chromium.new_page()
        page.set_default_timeout(300_000)
        pages.append(page)
        page.asked, page.base = [], serve(tmp_path / "page")
        page.on("request", lambda request: page.asked.append(request.url))
        page.goto(page.base + query)
        return page

    yield open_page
    for page in pages:
        page.close()


@pytest.fixture(params=["python", "node", "browser"])
def client(request, tmp_path, capsys):
    """Asks a bundle about its golden images and has the answers judged: (whether they passed, what was said)."""

    def judge(bundle, text):
        (tmp_path / "answers.json").write_text(text)
        status = main(["check", str(bundle), "--answers", str(tmp_path / "answers.json")])
        captured = capsys.readouterr()
        return status == 0, captured.out + captured.err

    if request.param == "browser":
        page_of = request.getfixturevalue("page_of")

        def ask_page(bundle):
            page = page_of(bundle, "?check")
            page.wait_for_selector(ENDED)
            if page.get_attribute("#check", "data-state") == "error":
                return False, "\n".join(page.inner_text(part) for part in ("#status", "#outcome"))
            with page.expect_download() as download:
                page.click("#answers")
            return judge(bundle, download.value.path().read_text())

        return ask_page
    if request.param == "node":
        words = ["node", request.getfixturevalue("placed") / "node" / "golden.mjs"]
    else:
        # Alone in a folder: nothing of this project is beside it.
        words = [
            sys.executable,
            shutil.copy(fetch_assets.EXAMPLES / "python" / "golden.py", tmp_path),
        ]

    def ask(bundle):
        done = run(*words, bundle)
        assert done.returncode in (0, 1)
        return judge(bundle, done.stdout) if done.returncode == 0 else (False, done.stderr)

    return ask


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "1"))
