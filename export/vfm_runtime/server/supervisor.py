"""Supervisor of the worker processes: replaces those that die, and goes on where a replacement cannot start."""

import logging
import os
import signal
import threading
import time
from typing import Any

from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors.multiprocess import Multiprocess, Process

PAUSE_S = 5.0
"""Time between two tries to replace a worker that cannot start."""

_PATIENCE_S = 0.2
_log = logging.getLogger(__name__)


class Supervisor(Multiprocess):
    """The supervisor of uvicorn, but for three things.

    uvicorn ends the server when a worker cannot start; here that is so only where none has ever served, since a bundle
    that is broken for a while must not stop the workers that still answer. While uvicorn waits for a worker to answer,
    it is deaf to signals. And it does not tell that the server ended because it could not start.

    Attributes:
        failed: Whether the server ended because it could not start.
    """

    failed = False
    _has_served = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._pauses: dict[int, float] = {}
        """When a worker that could not start is tried again, by its index; the others are looked after meanwhile."""

    def keep_subprocess_alive(self) -> None:
        """Look at every worker, and replace it if it is dead or does not answer."""
        for index, process in enumerate(self.processes):
            pause_end = self._pauses.pop(index, None)
            if pause_end is None:
                if self.should_exit.is_set() or self._is_answering(process):
                    continue
                if process.process.is_alive():
                    _log.error("Worker %s does not answer and is killed.", process.pid)
                process.kill()
                process.join()
                if process.exitcode != STARTUP_FAILURE:
                    _log.warning(
                        "Worker %s ended (exit code %s) and is replaced.",
                        *(process.pid, process.exitcode),
                    )
                elif self._has_served:
                    _log.error("Worker %s could not start; again in %g s.", process.pid, PAUSE_S)
                    pause_end = time.monotonic() + PAUSE_S
                else:
                    self.failed = True
                    self.should_exit.set()
            if pause_end is not None and time.monotonic() < pause_end:
                self._pauses[index] = pause_end
            elif not self.should_exit.is_set():
                self.processes[index] = Process(self.config, self.sockets)
                self.processes[index].start()

    def _is_answering(self, process: Process) -> bool:
        """Ask a worker whether it lives; one that dies meanwhile is not waited for, nor is the end of the server."""
        deadline = time.monotonic() + self.config.timeout_worker_healthcheck
        while process.process.is_alive() and time.monotonic() < deadline:
            is_ready = process.is_ready(timeout=_PATIENCE_S)
            self._has_served |= is_ready
            if is_ready or process.ping(timeout=_PATIENCE_S):
                return True
            self.handle_signals()
            if self.should_exit.is_set():
                return True
        return False


def end_with_parent(parent: int) -> None:
    """Stop this worker when the process `parent` that watches over it is gone."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="parent", daemon=True).start()
