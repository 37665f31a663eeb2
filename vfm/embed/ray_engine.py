"""Ray engine: images embedded by workers on a cluster; who is killed starts again, and one process writes the store."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from vfm_runtime.errors import MissingPackageError, OptionError
from vfm_runtime.tasks.embedding import EmbeddingSpec

from vfm.embed.sources import SourceImage
from vfm.embed.workers import ERRAND, REMEDY, EmbeddedBatch, EmbedWorker, EngineError

_AHEAD = 2
"""Errands of each worker that are under way, so that none waits for the next."""
_RETRIES = 3
"""Times that an errand is done again whose worker died."""


@contextmanager
def open_ray_engine(
    opening: Mapping[str, Any], spec: EmbeddingSpec, *, batch_size: int, num_workers: int = 0
) -> Iterator[Callable[[Sequence[SourceImage]], Iterator[EmbeddedBatch]]]:
    """Start workers on a cluster; what is yielded does the work of `embed_batches`, in the order in which they end.

    The cluster is the one of RAY_ADDRESS, or one of this machine that ends with the block. It starts by a fork, which
    LanceDB does not bear: open stores inside the block.

    Args:
        opening: Arguments of `open_embedder`, by which each worker opens the model.
        spec: What the vectors are made of; a worker with other weights is refused.
        batch_size: Images that go through the model at once.
        num_workers: Number of workers, which can open the paths of all images; 0 for one for each GPU, or for each CPU
            without.

    Raises:
        MissingPackageError: Ray is not installed.
        OptionError: The cluster has not so many CPUs or GPUs.
        EngineError: The workers die again and again, or cannot open the model.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise MissingPackageError(
            "--engine ray takes Ray, which is not installed: pip install 'vfm[ray]'."
        ) from error
    is_started_here = not ray.is_initialized()
    if is_started_here:
        ray.init(include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
    try:
        workers = _start_workers(ray, opening, spec.fingerprint, num_workers)
        yield partial(_embed_by_workers, ray, workers, batch_size)
    except ray.exceptions.RayError as error:
        raise EngineError(
            f"The workers of Ray cannot go on: {str(error).strip().splitlines()[-1]} {REMEDY}"
        ) from error
    finally:
        if is_started_here:
            ray.shutdown()


def _embed_by_workers(
    ray: Any, workers: Sequence[Any], batch_size: int, images: Sequence[SourceImage]
) -> Iterator[EmbeddedBatch]:
    size = ERRAND * batch_size
    starts = iter(range(0, len(images), size))
    pending: dict[Any, Any] = {}

    def send(worker: Any) -> None:
        start = next(starts, None)
        if start is not None:
            pending[worker.embed.remote(images[start : start + size], batch_size)] = worker

    for _ in range(_AHEAD):
        for worker in workers:
            send(worker)
    while pending:
        (done, *_), _ = ray.wait(list(pending), num_returns=1)
        send(pending.pop(done))
        yield from ray.get(done)


def _start_workers(
    ray: Any, opening: Mapping[str, Any], fingerprint: str, num_workers: int
) -> list[Any]:
    resources = ray.cluster_resources()
    unit = "GPU" if opening["device"] != "cpu" and resources.get("GPU") else "CPU"
    available = int(resources.get(unit, 0))
    if num_workers < 0 or max(num_workers, 1) > available:
        raise OptionError(
            f"--workers is {num_workers}, and the cluster of Ray has {available} {unit}s, one for each worker. Give 1 "
            f"to {available}, or 0 for all of them."
        )
    worker = ray.remote(EmbedWorker).options(
        num_cpus=1,
        num_gpus=int(unit == "GPU"),
        max_restarts=-1,
        max_task_retries=_RETRIES,
    )
    return [worker.remote(opening, fingerprint) for _ in range(num_workers or available)]
