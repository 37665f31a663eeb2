"""What the server counts, in the words of Prometheus."""

import contextlib
import importlib
import logging
import os
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
    multiprocess,
    values,
)

from vfm_runtime.errors import StateError

ROUTES = (
    *("/", "/static/{file}", "/docs", "/openapi.json", "/metrics", "/predict"),
    *("/v2", "/v2/health/live", "/v2/health/ready", "/v2/models"),
    *("/v2/models/{model}", "/v2/models/{model}/ready", "/v2/models/{model}/infer", "unmatched"),
)
"""Names of what can be asked, with or without a version."""

REASONS = (
    *("bad_image", "bad_request", "deadline", "draining", "internal", "invalid"),
    *("method_not_allowed", "model_failed", "not_found", "not_ready", "queue_full", "slow_body"),
    *("too_large", "unauthorized", "unknown_model", "unsupported_media_type", "wrong_host"),
    "wrong_origin",
)
"""Why a request may be refused: the `code` of the error."""

OTHER = "other"
"""Stands for every value that is not known beforehand: what a client sends must not become a label."""

MEMORY_EVERY_S = 1.0

_log = logging.getLogger(__name__)
_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
_FILES = ("counter", "histogram", "gauge_livesum", "gauge_livemax")
# Room for what the longest names and all routes of several models take.
_FILE_BYTES = 2**19
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128)
_MODEL = ("model", "version")

_Key = tuple[str, str]


class Metrics:
    """Counts for one process; where PROMETHEUS_MULTIPROC_DIR is set, `render` gives the sum of all its workers."""

    def __init__(self, routes: Iterable[str] = ROUTES, reasons: Iterable[str] = REASONS) -> None:
        """Make every metric, in a registry of its own.

        Args:
            routes: What `answered` may be told; all else is counted as `other`.
            reasons: The same of `rejected`.

        Raises:
            RuntimeError: PROMETHEUS_MULTIPROC_DIR was set too late.
        """
        self._routes, self._reasons = frozenset(routes), frozenset(reasons)
        self._folder = _with_room(_multiprocess_folder())
        self._registry = CollectorRegistry()
        self._models: dict[_Key, tuple[str, ...]] = {}
        self._lock = threading.Lock()
        self._measured = 0.0
        self._add_requests()
        self._add_batches()
        self._add_models()

    def _add_requests(self) -> None:
        own = self._registry
        self._requests = Counter(
            "vfm_requests_total",
            "Requests answered.",
            ("route", *_MODEL, "status"),
            registry=own,
        )
        self._request_s = Histogram(
            "vfm_request_seconds",
            "From the first byte of a request to the last of its answer.",
            ("route", "model"),
            buckets=_SECONDS,
            registry=own,
        )
        self._rejected = Counter(
            "vfm_rejected_total", "Requests refused.", ("reason",), registry=own
        )

    def _add_batches(self) -> None:
        own = self._registry
        self._queue_rows = Gauge(
            "vfm_queue_rows",
            "Rows that wait for the model.",
            _MODEL,
            multiprocess_mode="livesum",
            registry=own,
        )
        self._batch_rows = Histogram(
            "vfm_batch_rows", "Rows of a batch.", _MODEL, buckets=_ROWS, registry=own
        )
        self._queue_s = Histogram(
            "vfm_queue_seconds",
            "What a request waited for its batch.",
            _MODEL,
            buckets=_SECONDS,
            registry=own,
        )
        self._compute_s = Histogram(
            "vfm_compute_seconds",
            "What a batch took in the model.",
            _MODEL,
            buckets=_SECONDS,
            registry=own,
        )

    def _add_models(self) -> None:
        own = self._registry
        self._drift = Counter(
            "vfm_drift_alerts_total",
            "Windows of images that are unlike those of the bundle's reference.",
            _MODEL,
            registry=own,
        )
        self._reloads = Counter(
            "vfm_reloads_total", "Bundles loaded while serving.", ("model",), registry=own
        )
        self._failures = Counter(
            "vfm_reload_failures_total",
            "Bundles that could not be loaded while serving.",
            ("model",),
            registry=own,
        )
        self._info = Gauge(
            "vfm_model_info",
            "1 for each bundle that is loaded.",
            (*_MODEL, "task", "precision", "device"),
            multiprocess_mode="livemax",
            registry=own,
        )
        self._memory = Gauge(
            "vfm_memory_bytes",
            "Resident memory of the server.",
            multiprocess_mode="livesum",
            registry=own,
        )

    def answered(
        self, route: str, status: int, seconds: float, *, model: str = "", version: str = ""
    ) -> None:
        """Count an answer.

        Args:
            route: One of the routes; with placeholders, never a client's path.
            status: Of HTTP.
            seconds: What it took.
            model: Name of the model that was asked; empty where none was.
            version: Its version.
        """
        route = route if route in self._routes else OTHER
        if (model, version) not in self._models:
            model, version = (OTHER, OTHER) if model else ("", "")
        code = str(status) if 100 <= status < 600 else OTHER
        self._requests.labels(route, model, version, code).inc()
        self._request_s.labels(route, model).observe(seconds)
        self._measure_memory()

    def rejected(self, reason: str) -> None:
        """Count a request that was refused.

        Args:
            reason: One of the reasons, as `queue_full`.
        """
        self._rejected.labels(reason if reason in self._reasons else OTHER).inc()

    def loaded(self, model: str, version: str, *, task: str, precision: str, device: str) -> None:
        """A bundle is served from now on; only then is its name a label.

        Args:
            model: Its name.
            version: Its version.
            task: What it does.
            precision: In which it runs.
            device: Where it runs.
        """
        self._forget_info((model, version))
        labels = (model, version, task, precision, device)
        with self._lock:
            self._models = {**self._models, (model, version): labels}
        self._info.labels(*labels).set(1)
        # There from the start: a rate needs a value to rise from.
        self._reloads.labels(model).inc(0)
        self._failures.labels(model).inc(0)

    def unloaded(self, model: str, version: str) -> None:
        """A bundle is not served any more.

        Args:
            model: Its name.
            version: Its version.
        """
        self._forget_info((model, version))
        with self._lock:
            self._models = {key: v for key, v in self._models.items() if key != (model, version)}

    def _forget_info(self, key: _Key) -> None:
        labels = self._models.get(key)
        if labels is None:
            return
        if self._folder is None:
            self._info.remove(*labels)
        else:
            self._info.labels(*labels).set(0)  # files of several processes cannot lose an entry

    def reloaded(self, model: str) -> None:
        """Count a bundle that was loaded while serving.

        Args:
            model: Its name, as the user gave it.
        """
        self._reloads.labels(model).inc()

    def reload_failed(self, model: str) -> None:
        """Count a bundle that could not be loaded while serving.

        Args:
            model: Its name, as the user gave it.
        """
        self._failures.labels(model).inc()

    def drifted(self, model: str, version: str) -> None:
        """Count a window of images that are unlike those of the bundle's reference.

        Args:
            model: Its name.
            version: Of it.
        """
        self._drift.labels(model, version).inc()

    def batches(self, model: str, version: str) -> "BatchMetrics":
        """Return what a batcher tells of itself.

        Args:
            model: Name of its model.
            version: Its version.
        """
        return BatchMetrics(
            self._queue_rows.labels(model, version),
            self._queue_s.labels(model, version),
            self._batch_rows.labels(model, version),
            self._compute_s.labels(model, version),
        )

    def render(self) -> tuple[bytes, str]:
        """Return all metrics as text, and its content type."""
        self._measured = 0.0
        self._measure_memory()
        # Whoever tidies up temporary files may take the folder; this process still has its own.
        if self._folder is None or not Path(self._folder).is_dir():
            return generate_latest(self._registry), CONTENT_TYPE_LATEST
        _bury(self._folder)
        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry, self._folder)  # type: ignore[no-untyped-call]
        return generate_latest(registry), CONTENT_TYPE_LATEST

    def _measure_memory(self) -> None:
        now = time.monotonic()
        if now - self._measured >= MEMORY_EVERY_S:
            self._measured = now
            self._memory.set(resident_memory())


class BatchMetrics:
    """What a `Batcher` tells of itself; its `Observer`."""

    def __init__(self, rows: Gauge, queue: Histogram, batch: Histogram, compute: Histogram) -> None:
        self._rows, self._queue, self._batch, self._compute = rows, queue, batch, compute

    def queued(self, rows: int) -> None:
        """So many rows wait now."""
        self._rows.set(rows)

    def waited(self, seconds: float) -> None:
        """A request has come to its turn."""
        self._queue.observe(seconds)

    def ran(self, rows: int, seconds: float) -> None:
        """A batch went through the model."""
        self._batch.observe(rows)
        self._compute.observe(seconds)


def resident_memory() -> int:
    """Bytes of memory that this process holds; on macOS the most it ever held, 0 where nothing tells."""
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    if sys.platform == "darwin":
        resource = importlib.import_module("resource")  # not on Windows
        return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    return 0


def _multiprocess_folder() -> str | None:
    folder = os.environ.get(_FOLDER)
    if folder and values.ValueClass is values.MutexValue:
        raise StateError(
            f"{_FOLDER} is {folder}, but prometheus_client was imported before it was set, so it "
            "would count for this process alone. Set it before the workers start."
        )
    return folder or None


def _with_room(folder: str | None) -> str | None:
    """Take the room of this process's files before they are mapped into memory.

    A page that the disk turns out to have no room for later on would end the process.

    Returns:
        The folder; None where it has no room, and this process then counts for itself.
    """
    if folder is None:
        return None
    try:
        for name in _FILES:
            _take_room(Path(folder, f"{name}_{os.getpid()}.db"))
    except OSError as error:
        _log.error(
            "The counts have no room in %s (%s). Those of this worker stand alone until it is started anew.",
            *(folder, error.strerror),
        )
        values.ValueClass = values.MutexValue
        return None
    return folder


def _take_room(path: Path) -> None:
    if path.exists():
        return
    # Whole before it has its name: another worker may read it at once.
    draft = path.with_suffix(".new")
    try:
        draft.write_bytes(bytes(_FILE_BYTES))
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def _bury(folder: str) -> None:
    # What a worker that was killed had in its queue or in memory is no more.
    for pid in {path.stem.rpartition("_")[2] for path in Path(folder).glob("gauge_live*.db")}:
        # Two workers may do so at once.
        if not _is_alive(int(pid)):
            with contextlib.suppress(FileNotFoundError):
                multiprocess.mark_process_dead(pid, folder)  # type: ignore[no-untyped-call]


def _is_alive(pid: int) -> bool:
    if sys.platform == "win32":
        return True  # there, asking would end the process
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
