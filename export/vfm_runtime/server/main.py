"""The command `serve`: its options, what is checked before it starts, and its processes."""

import argparse
import logging
import logging.config
import math
import os
import shutil
import signal
import socket
import ssl
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from vfm_runtime.errors import AddressError, OptionError
from vfm_runtime.server.budget import usable_cores
from vfm_runtime.server.logs import log_config, take_warnings
from vfm_runtime.server.settings import LOG_FORMATS, PARENT_VARIABLE, SETTINGS_VARIABLE, Settings

OK, FAILED = 0, 1
"""Exit codes: stopped when told to; could not start."""

_METRICS_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
_FACTORY = "vfm_runtime.server.app:from_environment"

# Longer than load balancers keep an idle connection (60 s is common), so that they close first.
_KEEP_ALIVE_S = 75

_log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `serve`.

    Args:
        parser: Of the command.
    """
    default = {field.name: field.default for field in fields(Settings)}
    parser.add_argument(
        "bundles",
        metavar="BUNDLE",
        nargs="+",
        help="a bundle's folder, or NAME=FOLDER; a folder of numbered bundles holds versions",
    )

    def add(name: str, help_text: str, **options: Any) -> None:
        value = default[name]
        shown = "" if value in (None, ()) else f" (default: {value})"
        options = {"default": value, "help": help_text + shown, **options}
        parser.add_argument(f"--{name.replace('_', '-')}", **options)

    add("host", "address to listen on; any but a loopback one needs tokens")
    add("port", "0 for any that is free", type=int)
    add("workers", "processes that answer", type=int)
    add("device", "where the models run: auto, cpu, cuda, tensorrt, openvino")
    add("precision", "auto, fp32, fp16, int8, bf16")
    add("num_threads", "of one worker (default: the usable cores, divided)", type=int)
    add("max_batch", "images that go through a model at once", type=int)
    add("max_wait_ms", "longest wait for a fuller batch", type=float)
    add("max_queue", "images that wait for a model; more are refused", type=int)
    add("timeout", "seconds of a whole request", type=float)
    add("body_timeout", "seconds in which a body has to arrive", type=float)
    add("max_body_mb", "largest body in MiB", type=float)
    add("max_pixels", "of the largest image, and of a video's frames", type=int)
    add("max_frames", "of the longest video", type=int)
    add("max_seconds", "of the longest video", type=float)
    add("token_file", "bearer tokens, one a line; others in VFM_TOKENS", type=Path, metavar="FILE")
    add(
        "allow_origin",
        "web origin whose pages may read the answers, or *; may be repeated",
        action="append",
        default=[],
        metavar="ORIGIN",
    )
    add("certfile", "TLS certificate, PEM", type=Path, metavar="FILE")
    add("keyfile", "key of the certificate, PEM", type=Path, metavar="FILE")
    add("reload_every", "seconds between looks at the bundles; 0: never", type=float)
    add("drain", "seconds that running requests get at the end", type=float)
    add("log_format", "of the log", choices=LOG_FORMATS)
    parser.add_argument(
        "--no-page", dest="page", action="store_false", help="leave the demonstration page out"
    )


def settings_of(options: argparse.Namespace) -> Settings:
    """Return the settings that a command line gives.

    Args:
        options: Parsed by a parser that has the arguments of `add_arguments`.

    Raises:
        ValueError: A value makes no sense.
    """
    return Settings.from_mapping(vars(options))


def serve(settings: Settings) -> int:
    """Serve until told to stop (SIGTERM, SIGINT), and return the exit code.

    Args:
        settings: How to.

    Raises:
        SecurityError: The server would be open to strangers, or a token cannot be used.
        ValueError: The TLS files cannot be used.
        OSError: The address cannot be listened on.
    """
    from vfm_runtime.server.security import check_exposure, read_tokens

    tokens = read_tokens(settings)
    check_exposure(settings, tokens)
    check_tls(settings)
    settings = with_threads(settings, usable_cores())
    logging.config.dictConfig(log_config(settings.log_format))
    take_warnings()
    with _listening(settings) as listener:
        _announce(settings, listener, len(tokens))
        return (
            _run_one(settings, listener) if settings.workers == 1 else _run_many(settings, listener)
        )


def with_threads(settings: Settings, cores: int) -> Settings:
    """Return the settings with the threads of a worker, unless they say how many.

    Args:
        settings: As given.
        cores: That all workers share.
    """
    if settings.num_threads is not None:
        return settings
    return replace(settings, num_threads=max(1, cores // settings.workers))


def check_tls(settings: Settings) -> None:
    """Refuse a certificate that cannot be used, before anything starts.

    Args:
        settings: Name its files.

    Raises:
        ValueError: They cannot be read, or do not belong together.
    """
    if settings.certfile is None or settings.keyfile is None:
        return
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        # A password is never asked for: nobody may sit at a server.
        context.load_cert_chain(settings.certfile, settings.keyfile, password=lambda: "")
    except (OSError, ssl.SSLError) as error:
        raise OptionError(
            f"TLS cannot be set up with {settings.certfile} and {settings.keyfile} ({error}). Give "
            "a certificate and its own key, both PEM, the key without a password."
        ) from error


@contextmanager
def _listening(settings: Settings) -> Iterator[socket.socket]:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise AddressError(
            f"Cannot listen on {settings.host}, port {settings.port} ({error.strerror}). Stop what "
            "listens there, or choose another --port."
        ) from error
    listener.set_inheritable(True)
    with listener:
        yield listener


def _announce(settings: Settings, listener: socket.socket, num_tokens: int) -> None:
    host, port = listener.getsockname()[:2]
    scheme = "http" if settings.certfile is None else "https"
    shown = f"[{host}]" if ":" in host else host
    _log.info(
        "Starting at %s://%s:%d. Workers: %d; threads of each: %d; usable cores: %d; %s.",
        *(scheme, shown, port, settings.workers, settings.num_threads, usable_cores()),
        f"tokens: {num_tokens}" if num_tokens else "no token, so for this machine alone",
    )


def _config(settings: Settings, app: Any, *, factory: bool) -> Any:
    import uvicorn

    return uvicorn.Config(
        app,
        factory=factory,
        workers=settings.workers,
        lifespan="on",
        ws="none",
        log_config=log_config(settings.log_format),
        access_log=False,
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=math.ceil(settings.drain),
        # A worker answers from when it runs Python, long before its models are loaded; but on a busy
        # machine starting Python takes its time, and one that is killed over it never gets there.
        timeout_worker_healthcheck=60,
        ssl_certfile=settings.certfile,
        ssl_keyfile=settings.keyfile,
    )


def _run_one(settings: Settings, listener: socket.socket) -> int:
    import uvicorn

    from vfm_runtime.server.app import create_app

    server = uvicorn.Server(_config(settings, create_app(settings), factory=False))
    with _gentle_signals(server):
        try:
            server.run(sockets=[listener])
        except SystemExit:
            return FAILED  # the log says why
    return OK


@contextmanager
def _gentle_signals(server: Any) -> Iterator[None]:
    """Stop the server for a signal that comes before it listens for them itself.

    One that it was stopped by it raises once more at its end, which then does nothing.
    """

    def stop(number: int, frame: Any) -> None:
        server.should_exit = True

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _run_many(settings: Settings, listener: socket.socket) -> int:
    from vfm_runtime.server.supervisor import Supervisor

    with _shared_by_workers(settings):
        supervisor = Supervisor(_config(settings, _FACTORY, factory=True), [listener])
        supervisor.run()
    return FAILED if supervisor.failed else OK


@contextmanager
def _shared_by_workers(settings: Settings) -> Iterator[None]:
    """Set what the workers inherit; tokens in the environment reach them as they are."""
    folder = tempfile.mkdtemp(prefix="vfm-metrics-")
    values = {
        SETTINGS_VARIABLE: settings.to_json(),
        PARENT_VARIABLE: str(os.getpid()),
        _METRICS_VARIABLE: folder,
    }
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
