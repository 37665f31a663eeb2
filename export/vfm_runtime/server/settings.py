"""How the server runs: one frozen value, which also travels to its worker processes."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Self

from vfm_runtime.errors import OptionError

SETTINGS_VARIABLE = "VFM_SERVER_SETTINGS"
"""Environment variable that carries the settings to the worker processes."""

PARENT_VARIABLE = "VFM_SERVER_PARENT"
"""Environment variable that tells a worker the number of the process that watches over it."""

LOG_FORMATS = ("json", "text")
"""What `log_format` may be."""

_PATHS = ("token_file", "certfile", "keyfile")
_TUPLES = ("bundles", "allow_origin")
# What has to be more than 0; what may be 0 or more.
_POSITIVE = ("workers", "max_batch", "max_queue", "timeout", "body_timeout", "max_body_mb")
_MORE_POSITIVE = ("max_pixels", "max_frames", "max_seconds")
_NOT_NEGATIVE = ("max_wait_ms", "reload_every", "drain")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that the server can be told; checked when made."""

    bundles: tuple[str, ...]
    """A bundle's folder each, or NAME=FOLDER; a folder of numbered folders holds versions."""

    host: str = "127.0.0.1"
    """Address to listen on; any but a loopback one needs tokens."""

    port: int = 8000
    """Port to listen on; 0 for any that is free."""

    workers: int = 1
    """Processes that answer."""

    device: str = "auto"
    """As for `vfm_runtime.load`."""

    precision: str = "auto"
    """As for `vfm_runtime.load`."""

    num_threads: int | None = None
    """Threads of one worker; None for the cores that may be used, divided by the workers."""

    max_batch: int = 8
    """Images that go through a model at once."""

    max_wait_ms: float = 2.0
    """Longest wait for more images to fill a batch."""

    max_queue: int = 64
    """Images that wait for a model of one worker; more are refused with 429."""

    timeout: float = 30.0
    """Seconds that a whole request may take."""

    body_timeout: float = 20.0
    """Seconds in which a request's body has to arrive."""

    max_body_mb: float = 50
    """Largest body of a request, in MiB."""

    max_pixels: int = 25_000_000
    """Pixels of the largest image, and of a video's largest frame; looked at before decoding."""

    max_frames: int = 18_000
    """Frames of the longest video."""

    max_seconds: float = 600.0
    """Duration of the longest video."""

    token_file: Path | None = None
    """File of bearer tokens, one a line; others come from the environment variable VFM_TOKENS."""

    allow_origin: tuple[str, ...] = ()
    """Web origins whose pages may read the answers; `*` for all."""

    certfile: Path | None = None
    """TLS certificate, PEM."""

    keyfile: Path | None = None
    """Key of the certificate, PEM."""

    reload_every: float = 2.0
    """Seconds between two looks at the bundles' files; 0 for never."""

    drain: float = 30.0
    """Seconds that running requests get when the server is told to stop."""

    page: bool = True
    """Whether the demonstration page is served."""

    log_format: str = "json"
    """`json` for one object a line, or `text`."""

    def __post_init__(self) -> None:
        if not self.bundles:
            raise OptionError("There is no bundle to serve. Give the folder of at least one.")
        if not 0 <= self.port <= 65535:
            raise OptionError(f"port is {self.port}. Give 0 to 65535; 0 is any that is free.")
        for name in (*_POSITIVE, *_MORE_POSITIVE):
            if not getattr(self, name) > 0:
                raise OptionError(f"{name} is {getattr(self, name)}. Give more than 0.")
        for name in _NOT_NEGATIVE:
            if not getattr(self, name) >= 0:
                raise OptionError(f"{name} is {getattr(self, name)}. Give 0 or more.")
        if self.num_threads is not None and self.num_threads < 1:
            raise OptionError(
                f"num_threads is {self.num_threads}. Give 1 or more, or leave it out."
            )
        if self.log_format not in LOG_FORMATS:
            choices = ", ".join(LOG_FORMATS)
            raise OptionError(f"log_format is '{self.log_format}'. Choices: {choices}.")
        if (self.certfile is None) != (self.keyfile is None):
            raise OptionError("TLS needs both certfile and keyfile. Give both, or neither.")

    @property
    def max_body(self) -> int:
        """Bytes of the largest body."""
        return int(self.max_body_mb * 2**20)

    def to_json(self) -> str:
        """Return the settings as one JSON text."""
        return json.dumps(asdict(self), default=os.fspath)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Build settings from what `to_json` returned.

        Args:
            text: The JSON text.
        """
        values = json.loads(text)
        for name in _PATHS:
            values[name] = None if values[name] is None else Path(values[name])
        for name in _TUPLES:
            values[name] = tuple(values[name])
        return cls(**values)

    @classmethod
    def from_mapping(cls, values: Mapping[str, object]) -> Self:
        """Build settings from the values of a command line; others than the settings are left out.

        Args:
            values: By name.
        """
        names = [field.name for field in fields(cls)]
        given = {name: values[name] for name in names if name in values}
        for name in _TUPLES:
            given[name] = tuple(given.get(name) or ())  # type: ignore[arg-type]
        return cls(**given)  # type: ignore[arg-type]
