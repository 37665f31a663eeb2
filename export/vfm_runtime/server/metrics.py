"""Metrics of the server for Prometheus: counts, times and memory, of one process or of several workers together."""

import contextlib
import importlib
import logging
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

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
from vfm_runtime.server.batching import BatchMetrics

OTHER = "other"
"""Stands for every model that is not served: what a client sends must not become a label."""

MEMORY_EVERY_S = 1.0

_log = logging.getLogger(__name__)
_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
_FILES = ("counter", "histogram", "gauge_livesum", "gauge_livemax")
# Room for what the longest names and all routes of several models take.
_FILE_BYTES = 2**19
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128)
_MODEL = ("model", "version")
_VERSION = "/versions/{version}"

_Key = tuple[str, str]


class Metrics:
    """Counts for one process; where PROMETHEUS_MULTIPROC_DIR is set, `render` gives the sum of all its workers.

    Attributes:
        drift_alerts: Windows of images unlike those of the reference, by model and version.
        reloads: Bundles loaded while serving, by model.
        reload_failures: Bundles that could not be loaded while serving, by model.
    """

    def __init__(self) -> None:
        """Make every metric, in a registry of this object.

        Raises:
            RuntimeError: PROMETHEUS_MULTIPROC_DIR was set too late.
        """
        folder = os.environ.get(_FOLDER) or None
        if folder and values.ValueClass is values.MutexValue:
            raise StateError(
                f"{_FOLDER} is {folder}, but prometheus_client was imported before it was set, so it "
                "would count for this process alone. Set it before the workers start."
            )
        self._folder = reserve_room(folder)
        self._registry = CollectorRegistry()
        self._models: dict[_Key, tuple[str, ...]] = {}
        self._lock = threading.Lock()
        self._measured = 0.0

        def add_counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, labels, registry=self._registry)

        def add_histogram(name: str, text: str, buckets: Any, *labels: str) -> Histogram:
            return Histogram(name, text, labels, buckets=buckets, registry=self._registry)

        def add_gauge(name: str, text: str, mode: Any, *labels: str) -> Gauge:
            return Gauge(name, text, labels, multiprocess_mode=mode, registry=self._registry)

        self._requests = add_counter(
            "vfm_requests_total", "Requests answered.", "route", *_MODEL, "status"
        )
        text = "From the first byte of a request to the last of its answer."
        self._request_s = add_histogram("vfm_request_seconds", text, _SECONDS, "route", "model")
        self._rejections = add_counter("vfm_rejected_total", "Requests refused.", "reason")
        text = "Rows that wait for the model."
        self._queue_rows = add_gauge("vfm_queue_rows", text, "livesum", *_MODEL)
        self._batch_rows = add_histogram("vfm_batch_rows", "Rows of a batch.", _ROWS, *_MODEL)
        text = "What a request waited for its batch."
        self._queue_s = add_histogram("vfm_queue_seconds", text, _SECONDS, *_MODEL)
        text = "What a batch took in the model."
        self._compute_s = add_histogram("vfm_compute_seconds", text, _SECONDS, *_MODEL)
        text = "Windows of images that are unlike those of the bundle's reference."
        self.drift_alerts = add_counter("vfm_drift_alerts_total", text, *_MODEL)
        self.reloads = add_counter("vfm_reloads_total", "Bundles loaded while serving.", "model")
        text = "Bundles that could not be loaded while serving."
        self.reload_failures = add_counter("vfm_reload_failures_total", text, "model")
        text = "1 for each bundle that is loaded."
        self._info = add_gauge(
            "vfm_model_info", text, "livemax", *_MODEL, "task", "precision", "device"
        )
        self._memory = add_gauge("vfm_memory_bytes", "Resident memory of the server.", "livesum")

    def record_request(
        self,
        route: str,
        status: int,
        seconds: float,
        *,
        model: str | None = None,
        version: str | None = None,
        error_code: str | None = None,
    ) -> None:
        """Count a request that was answered by a route: its path has placeholders, and is never a client's."""
        route = route.replace(_VERSION, "")
        model, version = model or "", version or ""
        if (model, version) not in self._models:
            model, version = (OTHER, OTHER) if model else ("", "")
        self._requests.labels(route, model, version, str(status)).inc()
        self._request_s.labels(route, model).observe(seconds)
        if error_code is not None:
            self._rejections.labels(error_code).inc()
        self._measure_memory()

    def add_model(
        self, model: str, version: str, *, task: str, precision: str, device: str
    ) -> None:
        """Take a bundle that is served from now on; only then is its name a label."""
        self._forget_info((model, version))
        labels = (model, version, task, precision, device)
        with self._lock:
            self._models = {**self._models, (model, version): labels}
        self._info.labels(*labels).set(1)
        # Present from the start: a rate needs a value to rise from.
        self.reloads.labels(model).inc(0)
        self.reload_failures.labels(model).inc(0)

    def remove_model(self, model: str, version: str) -> None:
        """Drop a bundle that is not served any more."""
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
            # The files that workers share cannot lose an entry; 0 stands for a bundle that is not loaded.
            self._info.labels(*labels).set(0)

    def select_batch_metrics(self, model: str, version: str) -> BatchMetrics:
        """Return the metrics that a model's batcher keeps."""
        key = (model, version)
        return BatchMetrics(
            self._queue_rows.labels(*key),
            self._queue_s.labels(*key),
            self._batch_rows.labels(*key),
            self._compute_s.labels(*key),
        )

    def render(self) -> tuple[bytes, str]:
        """Return all metrics as text, and its content type."""
        self._measured = 0.0
        self._measure_memory()
        # Whoever tidies up temporary files may take the folder; this process still has its counts.
        if self._folder is None or not Path(self._folder).is_dir():
            return generate_latest(self._registry), CONTENT_TYPE_LATEST
        _remove_dead_workers(self._folder)
        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry, self._folder)  # type: ignore[no-untyped-call]
        return generate_latest(registry), CONTENT_TYPE_LATEST

    def _measure_memory(self) -> None:
        now = time.monotonic()
        if now - self._measured >= MEMORY_EVERY_S:
            self._measured = now
            self._memory.set(measure_memory())


def measure_memory() -> int:
    """Bytes of memory that this process holds; on macOS the most it ever held, 0 where nothing tells."""
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    if sys.platform == "darwin":
        resource = importlib.import_module("resource")  # not on Windows
        return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    return 0


def reserve_room(folder: str | None) -> str | None:
    """Take the room of this process's files before they are mapped into memory.

    A page that the disk turns out to have no room for later on would end the process.

    Returns:
        The folder; None where it has no room, and this process then counts for itself.
    """
    if folder is None:
        return None
    try:
        for name in _FILES:
            path = Path(folder, f"{name}_{os.getpid()}.db")
            if path.exists():
                continue
            # Whole before it has its name: another worker may read it at once.
            draft = path.with_suffix(".new")
            try:
                draft.write_bytes(bytes(_FILE_BYTES))
                draft.replace(path)
            finally:
                draft.unlink(missing_ok=True)
    except OSError as error:
        _log.error(
            "The counts have no room in %s (%s). Those of this worker stand alone until it is started anew.",
            *(folder, error.strerror),
        )
        values.ValueClass = values.MutexValue
        return None
    return folder


def _remove_dead_workers(folder: str) -> None:
    """Take away what workers that were killed had in their queues and in memory."""
    for pid in {path.stem.rpartition("_")[2] for path in Path(folder).glob("gauge_live*.db")}:
        try:
            if sys.platform != "win32":  # Windows would end the process that is asked for
                os.kill(int(pid), 0)
        except ProcessLookupError:
            # Two workers may do so at once.
            with contextlib.suppress(FileNotFoundError):
                multiprocess.mark_process_dead(pid, folder)  # type: ignore[no-untyped-call]
        except PermissionError:
            continue  # it lives, and is not ours
