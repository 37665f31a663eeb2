"""Watches over the worker processes."""

import logging
import os
import pickle
import signal
import threading
import time
from socket import socket
from typing import Any

from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors.multiprocess import Multiprocess, Process

PAUSE_S = 5.0
"""Between two tries to replace a worker that cannot start."""

_LOOK_S, _PATIENCE_S = 1.0, 0.2
_log = logging.getLogger(__name__)


class Supervisor(Multiprocess):
    """Starts the workers, and replaces those that die.

    One that cannot start ends the server only where none has ever served: later on, a bundle that is
    broken for a while must not stop the workers that still answer.

    Attributes:
        failed: Whether the server ended because it could not start.
    """

    failed: bool

    def __init__(self, config: Any, sockets: list[socket]) -> None:
        super().__init__(config, sockets)
        self.failed = False
        self._has_served = False
        self._not_before: dict[int, float] = {}

    def keep_subprocess_alive(self) -> None:
        """Look at every worker, and replace it if it is dead or does not answer."""
        for index, process in enumerate(self.processes):
            if self.should_exit.is_set():
                return
            if index in self._not_before:
                self._try_again(index)
            elif not self._answers(process):
                self._replace(index, process)

    def _answers(self, process: Process) -> bool:
        """Ask a worker whether it is there; one that dies meanwhile is not waited for, nor is the end."""
        deadline = time.monotonic() + self.config.timeout_worker_healthcheck
        pipe = process.parent_conn
        try:
            pipe.send(b"ping")
            while process.process.is_alive() and time.monotonic() < deadline:
                if pipe.poll(_PATIENCE_S):
                    self._has_served |= pipe.recv() is True
                    return True
                self.handle_signals()
                if self.should_exit.is_set():
                    return True
        except (OSError, EOFError, pickle.UnpicklingError) as error:
            _log.warning("Worker %s cannot be asked (%s).", process.pid, error)
        return False

    def _replace(self, index: int, process: Process) -> None:
        if process.process.is_alive():
            _log.error("Worker %s does not answer and is killed.", process.pid)
        process.kill()
        process.join()
        if process.exitcode != STARTUP_FAILURE:
            _log.warning(
                "Worker %s ended (exit code %s) and is replaced.", process.pid, process.exitcode
            )
            self._start(index)
        elif self._has_served:
            _log.error("Worker %s could not start; again in %g s.", process.pid, PAUSE_S)
            self._not_before[index] = time.monotonic() + PAUSE_S
        else:
            self.failed = True
            self.should_exit.set()

    def _try_again(self, index: int) -> None:
        if time.monotonic() >= self._not_before[index]:
            del self._not_before[index]
            self._start(index)

    def _start(self, index: int) -> None:
        process = Process(self.config, self.sockets)
        process.start()
        self.processes[index] = process


def end_with_parent(parent: int) -> None:
    """Stop this worker when the process that watches over it is gone.

    Args:
        parent: Number of that process.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_LOOK_S)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="parent", daemon=True).start()
