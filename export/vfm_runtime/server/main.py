"""Command `serve`: its options, the checks before it starts, and its processes."""

import argparse
import logging
import logging.config
import math
import os
import signal
import socket
import ssl
import tempfile
from dataclasses import fields, replace
from functools import partial
from typing import Any

from vfm_runtime.cpu_quota import count_usable_cores
from vfm_runtime.errors import AddressError, OptionError
from vfm_runtime.server.logs import capture_warnings, configure_logs
from vfm_runtime.server.memory import return_freed_blocks
from vfm_runtime.server.settings import Settings

OK, FAILED = 0, 1
"""Exit codes: stopped when told to; could not start."""

_METRICS_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"

# Longer than load balancers keep an idle connection (60 s is common), so that they close first.
_KEEP_ALIVE_S = 75

_log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `serve`, those of `Settings`."""
    parser.add_argument(
        "bundles",
        metavar="BUNDLE",
        nargs="+",
        help="a bundle's folder, or NAME=FOLDER; a folder of numbered bundles holds versions",
    )
    for field in fields(Settings):
        if not field.metadata:
            continue
        options, default = dict(field.metadata), field.default
        if default not in (None, (), False):
            options["help"] += f" (default: {default})"
        if options.get("action") == "append":
            default = []
        parser.add_argument(f"--{field.name.replace('_', '-')}", default=default, **options)
    parser.add_argument(
        "--no-page", dest="page", action="store_false", help="leave the demonstration page out"
    )


def serve(settings: Settings) -> int:
    """Serve until told to stop (SIGTERM, SIGINT), and return the exit code.

    Raises:
        SecurityError: The server would be open to strangers, or a token cannot be used.
        ValueError: The TLS files cannot be used.
        OSError: The address cannot be listened on.
    """
    from vfm_runtime.server.security import check_exposure, read_teach_tokens, read_tokens

    tokens = read_tokens(settings)
    check_exposure(settings, tokens, read_teach_tokens(settings))
    check_tls(settings)
    settings = divide_cores(settings, count_usable_cores())
    logging.config.dictConfig(configure_logs(settings.log_format))
    capture_warnings()
    with _bind(settings) as listener:
        host, port = listener.getsockname()[:2]
        _log.info(
            "Starting at %s://%s:%d. Workers: %d; threads of each: %d; usable cores: %d; %s.",
            "http" if settings.certfile is None else "https",
            f"[{host}]" if ":" in host else host,
            *(port, settings.workers, settings.num_threads, count_usable_cores()),
            f"tokens: {len(tokens)}" if tokens else "no token, so for this machine alone",
        )
        run = _run_one if settings.workers == 1 else _run_many
        return run(settings, listener)


def divide_cores(settings: Settings, cores: int) -> Settings:
    """Return the settings with the threads of a worker, unless they say how many: all workers share the cores."""
    if settings.num_threads is not None:
        return settings
    return replace(settings, num_threads=max(1, cores // settings.workers))


def check_tls(settings: Settings) -> None:
    """Refuse a certificate that cannot be used, before anything starts.

    Raises:
        ValueError: The files cannot be read, or do not belong together.
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


def _bind(settings: Settings) -> socket.socket:
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
    return listener


def _configure_uvicorn(settings: Settings, app: Any, *, factory: bool) -> Any:
    import uvicorn

    return uvicorn.Config(
        app,
        factory=factory,
        workers=settings.workers,
        lifespan="on",
        ws="none",
        log_config=configure_logs(settings.log_format),
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

    return_freed_blocks()
    config = _configure_uvicorn(settings, create_app(settings), factory=False)
    server = uvicorn.Server(config)
    _stop_on_signals(server)
    try:
        server.run(sockets=[listener])
    except SystemExit:
        return FAILED  # the log says why
    return OK


def _stop_on_signals(server: Any) -> None:
    """Stop the server for a signal that comes before it listens for them, and ignore the one that it raises at its end.

    uvicorn raises the signal that it was stopped by once more, which would end the process with another exit code.
    """

    def stop(number: int, frame: Any) -> None:
        server.should_exit = True

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)


def _run_many(settings: Settings, listener: socket.socket) -> int:
    from vfm_runtime.server.supervisor import Supervisor

    with tempfile.TemporaryDirectory(prefix="vfm-metrics-", ignore_cleanup_errors=True) as folder:
        # The workers inherit it, and tokens in the environment too.
        os.environ[_METRICS_VARIABLE] = folder
        factory = partial(create_worker_app, settings, os.getpid())
        supervisor = Supervisor(_configure_uvicorn(settings, factory, factory=True), [listener])
        supervisor.run()
    return FAILED if supervisor.failed else OK


def create_worker_app(settings: Settings, parent: int) -> Any:
    """Create the application of a worker process, which ends with the process of number `parent`."""
    from vfm_runtime.server.app import create_app
    from vfm_runtime.server.supervisor import end_with_parent

    capture_warnings()
    return_freed_blocks()
    end_with_parent(parent)
    return create_app(settings)
