"""The bundles that are served: loaded, watched, and replaced without dropping a request."""

import asyncio
import contextlib
import logging
import time
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vfm_runtime.bundle.contract import REFERENCE_FILE
from vfm_runtime.bundle.manifest import read_manifest
from vfm_runtime.bundle.model import Model, load
from vfm_runtime.drift.monitor import DriftMonitor
from vfm_runtime.errors import BundleError, VfmError
from vfm_runtime.server.batching import Batcher
from vfm_runtime.server.metrics import Metrics
from vfm_runtime.server.settings import Settings
from vfm_runtime.server.sources import (
    Print,
    Source,
    Stamp,
    by_number,
    fingerprint,
    look,
    read_sources,
)
from vfm_runtime.tasks.base import Arrays

# A folder that is replaced by renaming is missing for a moment.
_LOOKS_UNTIL_GONE = 2

# What is wrong with a bundle, or with the machine, in words; all else is a mistake of this program.
_EXPECTED = (ValueError, RuntimeError, OSError)

_log = logging.getLogger(__name__)


class UnknownModelError(VfmError, LookupError):
    """No model, or no version of it, has the name that was asked for."""


@dataclass(frozen=True, eq=False)
class Served:
    """A model that answers. Hold on to it while you ask its batcher: it stays open for as long as anyone does."""

    name: str
    """As in the bundle's word."""

    version: str
    """Name of its numbered folder; `1` of a bundle without."""

    model: Model
    """The bundle."""

    batcher: Batcher
    """Runs the model."""

    loaded: float
    """When, in seconds since 1970."""


_Key = tuple[str, str]


class Repository:
    """Loads bundles and keeps up with their files.

    To be used on one event loop, except for its construction.
    """

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        """Load every bundle; blocks for as long as that takes.

        Args:
            settings: Which bundles, and how they run.
            metrics: Counts.

        Raises:
            ValueError: A name is none, or stands twice.
            BundleError: A bundle has no version that can be loaded, as also `ContractError` and `ProviderError` say.
        """
        self._settings = settings
        self._metrics = metrics
        self._sources = read_sources(settings.bundles)
        self._served: dict[_Key, Served] = {}
        self._stamps: dict[_Key, Stamp] = {}
        self._failed: dict[_Key, Print] = {}
        self._missed: dict[_Key, int] = {}
        self._leaving: set[Batcher] = set()
        self._closings: set[asyncio.Task[None]] = set()
        self._one_look = asyncio.Lock()
        for source in self._sources:
            self._start(source)

    def served(self, name: str | None = None, version: str | None = None) -> Served:
        """Return the model to ask.

        Args:
            name: Of the model; None where there is only one.
            version: None for the highest.

        Raises:
            UnknownModelError: There is none of that name or version, or several and no name.
        """
        name = self._only_name() if name is None else name
        versions = by_number(v for n, v in self._served if n == name)
        if not versions:
            raise UnknownModelError(f"There is no model {_short(name)}. Models: {self._names()}.")
        version = versions[-1] if version is None else version
        if version not in versions:
            raise UnknownModelError(
                f"The model '{name}' has no version {_short(version)}. "
                f"Versions: {', '.join(versions)}."
            )
        return self._served[name, version]

    def models(self) -> list[Served]:
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
        async with self._one_look:
            for source in self._sources:
                found = await asyncio.to_thread(look, source.folder)
                for version, stamp in found.items():
                    await self._keep_up(source, version, stamp)
                self._note_missing(source, found)
                self._forget_failures(source, found)

    async def close(self) -> None:
        """Answer what is held, for `drain` seconds at most; nothing is taken any more."""
        batchers = {served.batcher for served in self._served.values()} | self._leaving
        await asyncio.gather(*(batcher.close(self._settings.drain) for batcher in batchers))
        if self._closings:
            await asyncio.wait(self._closings)

    def _only_name(self) -> str:
        if len(self._sources) > 1:
            raise UnknownModelError(f"There are several models: {self._names()}. Name one.")
        return self._sources[0].name

    def _names(self) -> str:
        return ", ".join(source.name for source in self._sources)

    def _start(self, source: Source) -> None:
        found = look(source.folder)
        if not found:
            read_manifest(source.folder)  # says what is wrong
            raise BundleError(f"{source.folder} changed while it was read. Start again.")
        errors = []
        for version, stamp in found.items():
            prints = fingerprint(stamp.folder)
            try:
                served = self._load(source.name, version, stamp.folder)
            except Exception as error:  # raised below, unless another version can be served
                self._note_failure((source.name, version), prints, error)
                errors.append(error)
                continue
            self._install((source.name, version), served, stamp)
        if len(errors) == len(found):
            raise errors[-1]

    def _load(self, name: str, version: str, folder: Path) -> Served:
        settings = self._settings
        model = load(
            folder,
            device=settings.device,
            precision=settings.precision,
            num_threads=settings.num_threads,
            batch_size=settings.max_batch,
            # The same cores open images and talk to clients.
            spin=False,
        )
        outputs = warm_up(model, settings.max_batch)
        if REFERENCE_FILE in model.manifest.files:
            monitor = DriftMonitor(model, on_alert=lambda _: self._metrics.drifted(name, version))
            check_monitor(monitor, model, outputs)
            # From here on: what was run until now was no image.
            model.monitor = monitor
        batcher = Batcher(
            model.run,
            max_batch=settings.max_batch,
            max_wait_ms=settings.max_wait_ms,
            max_queue=settings.max_queue,
            observer=self._metrics.batches(name, version),
        )
        return Served(name, version, model, batcher, time.time())

    async def _keep_up(self, source: Source, version: str, stamp: Stamp) -> None:
        key = (source.name, version)
        if self._stamps.get(key) == stamp:
            self._failed.pop(key, None)
            return
        # Taken before the load: what changes while it runs is a change.
        prints = await asyncio.to_thread(fingerprint, stamp.folder)
        if self._failed.get(key) == prints:
            return
        try:
            served = await asyncio.to_thread(self._load, *key, stamp.folder)
        except Exception as error:  # whatever is wrong with it, the one before it goes on
            self._note_failure(key, prints, error)
            return
        if (await asyncio.to_thread(look, source.folder)).get(version) != stamp:
            _log.info("%s changed while it was loaded; the next look loads it.", stamp.folder)
            return
        self._install(key, served, stamp)
        self._metrics.reloaded(source.name)

    def _install(self, key: _Key, served: Served, stamp: Stamp) -> None:
        model, (name, version) = served.model, key
        self._retire(key)
        self._served = {**self._served, key: served}
        self._stamps[key] = stamp
        self._failed.pop(key, None)
        task = model.contract.task
        self._metrics.loaded(
            name, version, task=task, precision=model.precision, device=model.device
        )
        _log.info(
            "Serving %s, version %s, from %s: %s, %s on %s.",
            *(name, version, stamp.folder, task, model.precision, model.device),
        )

    def _retire(self, key: _Key) -> None:
        served = self._served.get(key)
        if served is None:
            return
        # Requests that hold it are still to be answered by it. The last one to let go closes it.
        self._leaving.add(served.batcher)
        loop = asyncio.get_running_loop()
        weakref.finalize(served, self._close_soon, loop, served.batcher).atexit = False

    def _close_soon(self, loop: asyncio.AbstractEventLoop, batcher: Batcher) -> None:
        # The last holder may be a thread, and outlive the loop.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(self._start_closing, batcher)

    def _start_closing(self, batcher: Batcher) -> None:
        task = asyncio.get_running_loop().create_task(self._finish(batcher))
        self._closings.add(task)
        task.add_done_callback(self._closings.discard)

    async def _finish(self, batcher: Batcher) -> None:
        await batcher.close(self._settings.drain)
        self._leaving.discard(batcher)

    def _note_failure(self, key: _Key, prints: Print, error: Exception) -> None:
        self._failed[key] = prints
        self._metrics.reload_failed(key[0])
        stays = "the one before it goes on" if key in self._served else "it is not served"
        trace = None if isinstance(error, _EXPECTED) else error
        text = "%s, version %s, cannot be loaded; %s. %s"
        _log.error(text, *key, stays, error, exc_info=trace)

    def _note_missing(self, source: Source, found: dict[str, Stamp]) -> None:
        keys = [key for key in self._served if key[0] == source.name]
        gone = [key for key in keys if key[1] not in found]
        for key in keys:
            self._missed[key] = self._missed.get(key, 0) + 1 if key in gone else 0
        if len(gone) < len(keys):
            self._let_go([key for key in gone if self._missed[key] >= _LOOKS_UNTIL_GONE])
        elif min(self._missed[key] for key in gone) == 1:
            _log.warning(
                "There is no bundle at %s any more; the one that is loaded goes on. Put one back, "
                "or serve without it from the next start.",
                source.folder,
            )

    def _forget_failures(self, source: Source, found: dict[str, Stamp]) -> None:
        for key in [key for key in self._failed if key[0] == source.name and key[1] not in found]:
            del self._failed[key]

    def _let_go(self, keys: Iterable[_Key]) -> None:
        for key in keys:
            self._retire(key)
            self._served = {k: served for k, served in self._served.items() if k != key}
            del self._stamps[key], self._missed[key]
            self._metrics.unloaded(*key)
            _log.info("%s, version %s, is gone and not served any more.", *key)


def warm_up(model: Model, max_batch: int) -> Arrays:
    """Run a model on an empty picture, alone and in a full batch, and make its answers; return its outputs.

    The first runs are the slowest, and what cannot answer is better found before it is asked.

    Args:
        model: The model.
        max_batch: Rows of a full batch.
    """
    row = model.prepare(np.zeros((*model.contract.size, 3), np.uint8))
    model.task_type.predictions(model.run(row))
    return model.run({name: np.repeat(array, max_batch, axis=0) for name, array in row.items()})


def check_monitor(monitor: DriftMonitor, model: Model, outputs: Arrays) -> None:
    """Refuse a reference that is not of this model: watching by it would fail with every answer.

    Args:
        monitor: Holds the reference.
        model: The bundle.
        outputs: What the model gives.

    Raises:
        ValueError: A figure or a label of the reference is none of the model's.
    """
    labels = {name: len(head.labels) for name, head in model.task_type.heads.items()}
    monitor.reference.check_labels(labels)
    monitor.check(outputs)


def _short(name: str) -> str:
    given = repr(name)
    return given if len(given) <= 80 else f"{given[:77]}..."
