"""Lightning engine: images embedded by one process for each GPU of this machine, by Lightning's predict."""

from __future__ import annotations

import pickle
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch.multiprocessing.spawn import ProcessException
from torch.utils.data import DataLoader
from vfm_runtime.cpu_quota import count_usable_cores
from vfm_runtime.errors import OptionError
from vfm_runtime.tasks.embedding import EmbeddingSpec

from vfm.embed.sources import SourceImage
from vfm.embed.workers import ERRAND, REMEDY, EmbeddedBatch, EmbedWorker, EngineError
from vfm.training.log_filters import filter_logs

_SUFFIX = ".rows"
_POLL_SECONDS = 0.1


class _EmbedModule(L.LightningModule):
    """Opens the model in each process, and leaves the rows of each errand as a file for who writes them."""

    def __init__(
        self,
        errands: Sequence[Sequence[SourceImage]],
        opening: Mapping[str, Any],
        fingerprint: str,
        batch_size: int,
        folder: str,
    ) -> None:
        super().__init__()
        self._errands = errands
        self._opening = opening
        self._fingerprint = fingerprint
        self._batch_size = batch_size
        self._folder = Path(folder)

    def setup(self, stage: str) -> None:
        filter_logs()

    def predict_dataloader(self) -> DataLoader[int]:
        # Numbers of errands: Lightning looks into batches, and refuses frozen dataclasses there.
        numbers: Any = range(len(self._errands))
        return DataLoader(numbers, batch_size=1, collate_fn=itemgetter(0))

    def on_predict_start(self) -> None:
        # Lightning has made the device of this process torch's current one, which a device without a number means.
        opening = {**self._opening, "device": self.device.type}
        self._worker = EmbedWorker(opening, self._fingerprint)

    def predict_step(self, errand: int) -> None:
        batches = self._worker.embed(self._errands[errand], self._batch_size)
        file = self._folder / f"{errand:09d}.part"
        file.write_bytes(pickle.dumps(batches))
        file.rename(file.with_suffix(_SUFFIX))


def make_lightning_engine(
    opening: Mapping[str, Any], spec: EmbeddingSpec, *, batch_size: int, num_workers: int = 0
) -> Callable[[Sequence[SourceImage]], Iterator[EmbeddedBatch]]:
    """Return what does the work of `embed_batches` in several processes, each with its part of the images.

    Args:
        opening: Arguments of `open_embedder`, by which each process opens the model.
        spec: What the vectors are made of; a process with other weights is refused.
        batch_size: Images that go through the model at once in each process.
        num_workers: Number of processes; 0 for one for each GPU, or for each CPU without.

    Raises:
        OptionError: The machine has not so many GPUs or CPUs, or the model is a bundle, which knows one GPU alone.
    """
    uses_gpu = opening["device"] != "cpu" and torch.cuda.is_available()
    unit, available = (
        ("GPU", torch.cuda.device_count()) if uses_gpu else ("CPU", count_usable_cores())
    )
    if num_workers < 0 or num_workers > available:
        raise OptionError(
            f"--workers is {num_workers}, and this machine has {available} {unit}s, one for each worker. Give 1 to "
            f"{available}, or 0 for all of them."
        )
    if uses_gpu and Path(opening["model"]).is_dir():
        raise OptionError(
            f"{opening['model']} is a bundle, which runs on the first GPU that it sees. Give --engine ray, which shows "
            "each worker one GPU alone, or the checkpoint that the bundle was exported from."
        )
    return partial(
        _embed_by_processes,
        opening,
        spec.fingerprint,
        batch_size,
        "gpu" if uses_gpu else "cpu",
        num_workers or available,
    )


def _embed_by_processes(
    opening: Mapping[str, Any],
    fingerprint: str,
    batch_size: int,
    accelerator: str,
    num_workers: int,
    images: Sequence[SourceImage],
) -> Iterator[EmbeddedBatch]:
    size = ERRAND * batch_size
    errands = [images[start : start + size] for start in range(0, len(images), size)]
    if not errands:
        return
    filter_logs()
    trainer = L.Trainer(
        accelerator=accelerator,
        devices=min(num_workers, len(errands)),
        # Processes that are spawned know nothing of the store, whose library does not bear forks.
        strategy="ddp_spawn",
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    with tempfile.TemporaryDirectory(prefix="vfm-embed-") as folder, ThreadPoolExecutor(1) as pool:
        module = _EmbedModule(errands, opening, fingerprint, batch_size, folder)
        run = pool.submit(trainer.predict, module, return_predictions=False)
        try:
            yield from _read_parts(Path(folder), run)
            run.result()
        except ProcessException as error:
            raise EngineError(
                f"A process that embeds has ended: {str(error).strip().splitlines()[-1]} {REMEDY}"
            ) from error
        finally:
            launcher = trainer.strategy.launcher
            if launcher is not None and not run.done():
                launcher.kill(signal.SIGTERM)


def _read_parts(folder: Path, run: Future[Any]) -> Iterator[EmbeddedBatch]:
    """Yield the rows of each file as it comes, until the run has ended and all are read."""
    is_done = False
    while not is_done:
        # Asked before the files are listed: what the last process wrote is read then.
        is_done = run.done()
        for file in sorted(folder.glob(f"*{_SUFFIX}")):
            yield from pickle.loads(file.read_bytes())
            file.unlink()
        if not is_done:
            time.sleep(_POLL_SECONDS)
