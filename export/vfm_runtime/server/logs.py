"""Logs: one line a request, as JSON or as text."""

import json
import logging
import warnings
from datetime import UTC, datetime
from typing import Any

from PIL import Image

REQUEST_LOGGER = "vfm_runtime.server.request"
"""Name of the logger of requests."""


def configure_logs(log_format: str) -> dict[str, Any]:
    """Return the configuration of `logging` in the format `json` or `text`, for this process and for its workers."""
    formatter = JsonFormatter if log_format == "json" else TextFormatter
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": {"()": f"{formatter.__module__}.{formatter.__name__}"}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
        "root": {"level": "WARNING", "handlers": ["stderr"]},
        "loggers": {
            "vfm_runtime": {"level": "INFO"},
            "uvicorn": {"level": "WARNING"},
            # python_multipart warns of every form that is malformed; whoever sent it is told.
            "python_multipart": {"level": "CRITICAL"},
            # Each request has a line of RequestMiddleware already.
            "uvicorn.access": {"level": "CRITICAL", "propagate": False},
        },
    }


def capture_warnings() -> None:
    """Bring the warnings of Python into the log."""
    logging.captureWarnings(True)
    # The server has its limit of pixels for large pictures.
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)


class JsonFormatter(logging.Formatter):
    """Writes one JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record; that of a request has `facts`."""
        line: dict[str, Any] = {"time": _format_time(record), "level": record.levelname.lower()}
        facts = getattr(record, "facts", None)
        if facts is not None:
            return json.dumps({**line, **facts})
        line |= {"logger": record.name, "message": record.getMessage()}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


class TextFormatter(logging.Formatter):
    """Writes a line for people; more lines for a traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the text of a record; that of a request has `facts`."""
        facts = getattr(record, "facts", None)
        if facts is None:
            text = f"{_format_time(record)} {record.levelname:<7} {record.getMessage()}"
            return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text
        rest = " ".join(
            f"{name}={value}"
            for name, value in facts.items()
            if value is not None and name not in ("method", "route", "status")
        )
        head = f"{facts['method']} {facts['route']} {facts['status']}"
        return f"{_format_time(record)} {record.levelname:<7} {head} {rest}"


def _format_time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
