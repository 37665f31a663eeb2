"""Settings of the server: one frozen value, which also travels to its worker processes."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from vfm_runtime.errors import OptionError

LOG_FORMATS = ("json", "text")
"""What `log_format` may be."""

_FILE = {"type": Path, "metavar": "FILE"}
_TUPLES = ("bundles", "allow_origin")
_POSITIVE = (
    *("workers", "max_batch", "max_queue", "timeout", "body_timeout", "max_body_mb"),
    *("max_pixels", "max_open_pixels", "max_frames", "max_seconds"),
)
_NOT_NEGATIVE = ("max_wait_ms", "reload_every", "drain")


def _declare_option(default: Any, text: str, **options: Any) -> Any:
    """A field that is an option of the command line too: its help, and what else `add_argument` takes."""
    return field(default=default, metadata={"help": text, **options})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that the server can be told; checked when it is made."""

    bundles: tuple[str, ...]
    """A bundle's folder each, or NAME=FOLDER; a folder of numbered folders holds versions."""

    host: str = _declare_option(
        "127.0.0.1", "address to listen on; any but a loopback one needs tokens"
    )
    port: int = _declare_option(8000, "0 for any that is free", type=int)
    workers: int = _declare_option(1, "processes that answer", type=int)
    device: str = _declare_option(
        "auto", "where the models run: auto, cpu, cuda, tensorrt, openvino"
    )
    precision: str = _declare_option("auto", "auto, fp32, fp16, int8, bf16")
    num_threads: int | None = _declare_option(
        None, "of one worker (default: the usable cores, divided)", type=int
    )
    max_batch: int = _declare_option(8, "images that go through a model at once", type=int)
    max_wait_ms: float = _declare_option(2.0, "longest wait for a fuller batch", type=float)
    max_queue: int = _declare_option(64, "images that wait for a model; more are refused", type=int)
    timeout: float = _declare_option(30.0, "seconds of a whole request", type=float)
    body_timeout: float = _declare_option(20.0, "seconds in which a body has to arrive", type=float)
    max_body_mb: float = _declare_option(50, "largest body in MiB", type=float)
    max_pixels: int = _declare_option(
        25_000_000, "of the largest image, and of a video's frames", type=int
    )
    max_open_pixels: int = _declare_option(
        25_000_000, "of all images that are opened at once; a larger one is opened alone", type=int
    )
    max_frames: int = _declare_option(18_000, "of the longest video", type=int)
    max_seconds: float = _declare_option(600.0, "of the longest video", type=float)
    token_file: Path | None = field(
        default=None,
        metadata={"help": "bearer tokens, one a line; others in VFM_TOKENS", **_FILE},
    )
    state: Path | None = field(
        default=None,
        metadata={
            "help": "folder of what models are taught at run time; without it nothing can be taught",
            "type": Path,
            "metavar": "DIR",
        },
    )
    keep_pictures: bool = _declare_option(
        False,
        "keep small pictures of what is taught too, not vectors alone",
        action="store_true",
    )
    teach_token_file: Path | None = field(
        default=None,
        metadata={"help": "tokens to teach with, as above; others in VFM_TEACH_TOKENS", **_FILE},
    )
    allow_origin: tuple[str, ...] = _declare_option(
        (),
        "web origin whose pages may read the answers, or *; may be repeated",
        action="append",
        metavar="ORIGIN",
    )
    certfile: Path | None = field(default=None, metadata={"help": "TLS certificate, PEM", **_FILE})
    keyfile: Path | None = field(
        default=None, metadata={"help": "key of the certificate, PEM", **_FILE}
    )
    reload_every: float = _declare_option(
        2.0, "seconds between looks at the bundles; 0: never", type=float
    )
    drain: float = _declare_option(30.0, "seconds that running requests get at the end", type=float)
    page: bool = True
    """Whether the demonstration page is served."""
    log_format: str = _declare_option("json", "of the log", choices=LOG_FORMATS)

    def __post_init__(self) -> None:
        if not self.bundles:
            raise OptionError("There is no bundle to serve. Give the folder of at least one.")
        if not 0 <= self.port <= 65535:
            raise OptionError(f"port is {self.port}. Give 0 to 65535; 0 is any that is free.")
        for name in _POSITIVE:
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

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """Build settings from values by name, such as those of a command line; other names are left out."""
        chosen = {field.name: values[field.name] for field in fields(cls) if field.name in values}
        return cls(**{**chosen, **{name: tuple(chosen.get(name) or ()) for name in _TUPLES}})
