"""Model repository with hot reload: bundles are loaded, watched, and replaced without dropping a request."""

import asyncio
import contextlib
import logging
import re
import weakref
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vfm_runtime.bundle.contract import REFERENCE_FILE
from vfm_runtime.bundle.manifest import read_manifest
from vfm_runtime.bundle.model import Model, load
from vfm_runtime.drift.monitor import DriftMonitor
from vfm_runtime.errors import BundleError, VfmError, format_value
from vfm_runtime.server.batching import Batcher
from vfm_runtime.server.bundle_paths import (
    Fingerprint,
    ManifestStamp,
    find_versions,
    parse_bundle_paths,
    take_fingerprint,
)
from vfm_runtime.server.metrics import Metrics
from vfm_runtime.server.settings import Settings
from vfm_runtime.teaching.taught import Taught

# A folder that is replaced by renaming is missing for a moment.
_MISSES_UNTIL_GONE = 2

# What is wrong with a bundle, or with the machine, in words; all else is a mistake of this program.
_EXPECTED = (ValueError, RuntimeError, OSError)

_log = logging.getLogger(__name__)


class UnknownModelError(VfmError, LookupError):
    """No model, or no version of it, has the name that was asked for."""


@dataclass(frozen=True, eq=False)
class ServedModel:
    """A model that answers. Hold on to it while you ask its batcher: it stays open for as long as anyone does."""

    name: str
    version: str
    """Name of its numbered folder; `1` of a bundle that is no folder of versions."""
    model: Model
    batcher: Batcher
    taught: Taught | None = None
    """What it is taught at run time; None without a state folder, and of models that give no embeddings."""


_Key = tuple[str, str]


class Repository:
    """Loads bundles and keeps up with their files; to be used on one event loop, except for its construction."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        """Load every bundle; blocks for as long as that takes.

        Raises:
            ValueError: A name has other characters than it may, or stands twice.
            BundleError: A bundle has no version that can be loaded, as also `ContractError` and `ProviderError` say.
        """
        self._settings = settings
        self._metrics = metrics
        self._paths = parse_bundle_paths(settings.bundles)
        self._served: dict[_Key, ServedModel] = {}
        self._stamps: dict[_Key, ManifestStamp] = {}
        self._failed: dict[_Key, Fingerprint] = {}
        self._missed: dict[_Key, int] = {}
        self._leaving: set[Batcher] = set()
        self._closings: set[asyncio.Task[None]] = set()
        self._refreshing = asyncio.Lock()
        for name, folder in self._paths.items():
            self._load_first(name, folder)

    def find_model(self, name: str | None = None, version: str | None = None) -> ServedModel:
        """Return the model to ask: the only one where no name is given, the highest version where none is.

        Raises:
            UnknownModelError: There is none of that name or version, or several and no name.
        """
        names = ", ".join(self._paths)
        if name is None:
            if len(self._paths) > 1:
                raise UnknownModelError(f"There are several models: {names}. Name one.")
            (name,) = self._paths
        versions = [served.version for served in self.list_models() if served.name == name]
        if not versions:
            raise UnknownModelError(f"There is no model {format_value(name)}. Models: {names}.")
        version = versions[-1] if version is None else version
        if version not in versions:
            raise UnknownModelError(
                f"The model '{name}' has no version {format_value(version)}. "
                f"Versions: {', '.join(versions)}."
            )
        return self._served[name, version]

    def list_models(self) -> list[ServedModel]:
        """Return every version of every model, by name and then by version."""
        return [self._served[key] for key in sorted(self._served, key=lambda k: (k[0], int(k[1])))]

    async def watch(self) -> None:
        """Look at the bundles' files every `reload_every` seconds, until cancelled; 0 is never."""
        while self._settings.reload_every > 0:
            await asyncio.sleep(self._settings.reload_every)
            await self.refresh()

    async def refresh(self) -> None:
        """Load what is new or has changed, and let go what is no more.

        Nothing is raised: a bundle that cannot be loaded is logged, and the one before it goes on.
        """
        async with self._refreshing:
            for name, folder in self._paths.items():
                stamps = await asyncio.to_thread(find_versions, folder)
                for version, stamp in stamps.items():
                    await self._update((name, version), stamp)
                self._remove_missing(name, stamps)
                for key in [*self._failed]:
                    if key[0] == name and key[1] not in stamps:
                        del self._failed[key]

    async def close(self) -> None:
        """Answer what is held, for `drain` seconds at most; nothing is taken any more."""
        batchers = {served.batcher for served in self._served.values()} | self._leaving
        await asyncio.gather(*(batcher.close(self._settings.drain) for batcher in batchers))
        if self._closings:
            await asyncio.wait(self._closings)

    def _load_first(self, name: str, folder: Path) -> None:
        stamps = find_versions(folder)
        if not stamps:
            read_manifest(folder)  # says what is wrong
            raise BundleError(f"{folder} changed while it was read. Start again.")
        errors = []
        for version, stamp in stamps.items():
            key = (name, version)
            fingerprint = take_fingerprint(stamp.folder)
            try:
                served = self._load(*key, stamp.folder)
            except Exception as error:  # raised below, unless another version can be served
                self._record_failure(key, fingerprint, error)
                errors.append(error)
                continue
            self._install(key, served, stamp)
        if len(errors) == len(stamps):
            raise errors[-1]

    def _load(self, name: str, version: str, folder: Path) -> ServedModel:
        settings = self._settings
        model = load(
            folder,
            device=settings.device,
            precision=settings.precision,
            num_threads=settings.num_threads,
            batch_size=settings.max_batch,
            keep_memory=False,
            # The same cores open images and talk to clients.
            spin=False,
        )
        # An empty picture goes through the model, alone and in a full batch: the first runs are the slowest, and what
        # cannot answer is better found before it is asked.
        row = model.prepare(np.zeros((*model.contract.size, 3), np.uint8))
        model.task_type.predictions(model.run(row))
        outputs = model.run({k: np.repeat(v, settings.max_batch, axis=0) for k, v in row.items()})
        if REFERENCE_FILE in model.manifest.files:
            alerts = self._metrics.drift_alerts
            monitor = DriftMonitor(model, on_alert=lambda _: alerts.labels(name, version).inc())
            # By a reference that is not of this model, watching would fail with every answer.
            labels = {head: len(task.labels) for head, task in model.task_type.heads.items()}
            monitor.reference.check_labels(labels)
            monitor.check(outputs)
            # Attached only now: what has run so far was no image.
            model.monitor = monitor
        batcher = Batcher(
            model.compute_outputs,
            max_batch=settings.max_batch,
            max_wait_ms=settings.max_wait_ms,
            max_queue=settings.max_queue,
            metrics=self._metrics.select_batch_metrics(name, version),
            observe=None if model.monitor is None else model.monitor.add,
        )
        taught = None
        vectors = model.box_embedding or model.embedding
        if settings.state is not None and vectors and vectors.fingerprint:
            # Vectors of other weights cannot be compared: each has a folder of its own, and a new bundle takes over.
            weights = re.sub(r"[^0-9A-Za-z]", "_", vectors.fingerprint[:12])
            state = settings.state / name / weights
            if not state.exists() and state.parent.exists():
                _log.warning(
                    "Nothing was taught to the weights of %s, version %s. What was taught to others stays in %s.",
                    *(name, version, state.parent),
                )
            model.keep_state(state, keep_pictures=settings.keep_pictures)
            taught = model.taught
        return ServedModel(name, version, model, batcher, taught)

    async def _update(self, key: _Key, stamp: ManifestStamp) -> None:
        if self._stamps.get(key) == stamp:
            self._failed.pop(key, None)
            return
        # Taken before the load: what changes while it runs is a change.
        fingerprint = await asyncio.to_thread(take_fingerprint, stamp.folder)
        if self._failed.get(key) == fingerprint:
            return
        try:
            served = await asyncio.to_thread(self._load, *key, stamp.folder)
        except Exception as error:  # whatever is wrong with it, the one before it goes on
            self._record_failure(key, fingerprint, error)
            return
        stamps = await asyncio.to_thread(find_versions, self._paths[key[0]])
        if stamps.get(key[1]) != stamp:
            _log.info("%s changed while it was loaded; the next look loads it.", stamp.folder)
            return
        self._install(key, served, stamp)
        self._metrics.reloads.labels(key[0]).inc()

    def _install(self, key: _Key, served: ServedModel, stamp: ManifestStamp) -> None:
        model, (name, version) = served.model, key
        self._release(key)
        self._served = {**self._served, key: served}
        self._stamps[key] = stamp
        self._failed.pop(key, None)
        task = model.contract.task
        self._metrics.add_model(
            name, version, task=task, precision=model.precision, device=model.device
        )
        _log.info(
            "Serving %s, version %s, from %s: %s, %s on %s.",
            *(name, version, stamp.folder, task, model.precision, model.device),
        )

    def _release(self, key: _Key) -> None:
        """Close the batcher of a model when the last request that holds the model has let go of it."""
        served = self._served.get(key)
        if served is None:
            return
        batcher, loop = served.batcher, asyncio.get_running_loop()
        self._leaving.add(batcher)

        async def close() -> None:
            await batcher.close(self._settings.drain)
            self._leaving.discard(batcher)

        def start_closing() -> None:
            task = loop.create_task(close())
            self._closings.add(task)
            task.add_done_callback(self._closings.discard)

        def close_soon() -> None:
            # The last holder may be a thread, and outlive the loop.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(start_closing)

        weakref.finalize(served, close_soon).atexit = False

    def _record_failure(self, key: _Key, fingerprint: Fingerprint, error: Exception) -> None:
        self._failed[key] = fingerprint
        self._metrics.reload_failures.labels(key[0]).inc()
        stays = "the one before it goes on" if key in self._served else "it is not served"
        trace = None if isinstance(error, _EXPECTED) else error
        text = "%s, version %s, cannot be loaded; %s. %s"
        _log.error(text, *key, stays, error, exc_info=trace)

    def _remove_missing(self, name: str, stamps: dict[str, ManifestStamp]) -> None:
        keys = [key for key in self._served if key[0] == name]
        gone = [key for key in keys if key[1] not in stamps]
        for key in keys:
            self._missed[key] = self._missed.get(key, 0) + 1 if key in gone else 0
        if len(gone) == len(keys):
            if min(self._missed[key] for key in gone) == 1:
                _log.warning(
                    "There is no bundle at %s any more; the one that is loaded goes on. Put one back, "
                    "or serve without it from the next start.",
                    self._paths[name],
                )
            return
        for key in gone:
            if self._missed[key] < _MISSES_UNTIL_GONE:
                continue
            self._release(key)
            self._served = {k: served for k, served in self._served.items() if k != key}
            del self._stamps[key], self._missed[key]
            self._metrics.remove_model(*key)
            _log.info("%s, version %s, is gone and not served any more.", *key)
