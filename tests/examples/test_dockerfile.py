"""The image of the server, as far as it can be checked without building it."""

import fnmatch
import http.server
import json
import re
import subprocess
import sys
import threading
import tomllib
from argparse import ArgumentParser
from pathlib import Path

import pytest
from vfm_runtime.server.main import add_arguments
from vfm_runtime.server.settings import Settings

CONTEXT = Path(__file__).parents[2] / "export"
PROJECT = tomllib.loads((CONTEXT / "pyproject.toml").read_text())["project"]
EXTRAS = set(PROJECT["optional-dependencies"])


def instructions():
    text = (CONTEXT / "Dockerfile").read_text()
    lines = (line for line in text.splitlines() if not line.startswith("#"))
    whole = "\n".join(lines).replace("\\\n", " ")
    return [tuple(line.split(None, 1)) for line in whole.splitlines() if line.strip()]


def values(name):
    return [value for word, value in instructions() if word == name]


def as_list(value):
    """Of an instruction in exec form: a JSON list."""
    words = json.loads(value)
    assert all(isinstance(word, str) for word in words)
    return words


@pytest.fixture
def settings():
    (entry,), (bundles,) = values("ENTRYPOINT"), values("CMD")
    command, name, *words = as_list(entry) + as_list(bundles)
    assert command in PROJECT["scripts"]
    assert name == "serve"
    parser = ArgumentParser()
    add_arguments(parser)
    return Settings.from_mapping(vars(parser.parse_args(words)))


def test_the_base_has_a_version():
    bases = [value.split()[0] for value in values("FROM")]
    assert set(bases) == {"python:3.12-slim"}
    assert "Programming Language :: Python :: 3.12" in PROJECT["classifiers"]


def test_sources_are_there_and_not_ignored():
    lines = (CONTEXT / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    sources = [
        word for value in values("COPY") if "--from" not in value for word in value.split()[:-1]
    ]
    assert {PROJECT["readme"], *PROJECT["license-files"], "pyproject.toml"} < set(sources)
    for source in sources:
        assert (CONTEXT / source).exists()
        last = [rule for rule in rules if fnmatch.fnmatch(source, rule.removeprefix("!"))][-1]
        assert last.startswith("!")


def test_it_is_installed_with_what_a_server_needs():
    (extras,) = values("ARG")
    name, _, chosen = extras.partition("=")
    assert set(chosen.split(",")) == {"cpu", "server"} <= EXTRAS
    (run,) = values("RUN")
    assert f'pip install --no-cache-dir ".[${{{name}}}]"' in run
    (place,) = re.findall(r"venv (\S+)", run)
    assert any(value.startswith(f"--from=build {place} ") for value in values("COPY"))
    assert f"PATH={place}/bin:" in values("ENV")[0]


def test_it_does_not_run_as_root():
    (user,) = values("USER")
    assert re.fullmatch(r"[1-9]\d{3,}:[1-9]\d{3,}", user)
    words = [word for word, _ in instructions()]
    assert words.index("USER") > max(i for i, word in enumerate(words) if word in ("RUN", "COPY"))


def test_the_command_is_one_of_the_server(settings):
    assert settings.host == "0.0.0.0"
    assert settings.bundles == ("/bundle",)
    assert settings.token_file == Path("/run/secrets/vfm_tokens")
    assert values("EXPOSE") == [str(settings.port)]


def test_running_requests_may_end(settings):
    (timeout,) = re.findall(r"--stop-timeout (\d+)", (CONTEXT / "Dockerfile").read_text())
    assert int(timeout) > settings.drain


class Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path)
        self.send_response(self.server.status)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.mark.parametrize(("status", "healthy"), [(200, True), (503, False)])
def test_health_is_readiness(settings, status, healthy):
    (value,) = values("HEALTHCHECK")
    command, option, code = as_list(value.split("CMD", 1)[1])
    assert (command, option) == ("python", "-c")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Health)
    server.status, server.asked = status, []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    here = code.replace(f"127.0.0.1:{settings.port}/", f"127.0.0.1:{server.server_port}/")
    assert here != code
    proxies = {"http_proxy": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9"}
    done = subprocess.run(
        [sys.executable, "-c", here], env=proxies, check=False, capture_output=True, timeout=30
    )
    server.shutdown()
    server.server_close()
    assert (done.returncode == 0) == healthy
    assert server.asked == ["/v2/health/ready"]
