"""Cache of a teacher's outputs on disk: int8 with a scale for each row, by view of the augmentation."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from numpy.typing import NDArray
from torch import Tensor

from vfm.training.feature_cache import CacheError, get_cache_dir

_FREE_FRACTION = 0.9


class TeacherCache:
    """What a teacher gave for the images of a split, each in some views; it fills as images come by.

    The files are mapped, so that processes of one machine share them, and a run that was stopped goes on with what it
    has. All of it may be deleted.
    """

    def __init__(
        self, key: Sequence[Any], shapes: Mapping[str, tuple[int, ...]], *, views: int, count: int
    ) -> None:
        """Make the files, or map those that are there.

        Args:
            key: All that outputs depend on, plain values: teacher, images, their order, augmentation, sizes.
            shapes: Shape of an image's row for each output.
            views: Number of views of an image, which augmentation makes of it.
            count: Number of images of the split.

        Raises:
            CacheError: The disk has too little space.
        """
        digest = hashlib.sha256(json.dumps(list(key)).encode()).hexdigest()[:32]
        self.folder = get_cache_dir().with_name("teachers") / digest
        num_bytes = sum(views * count * (int(np.prod(shape)) + 4) for shape in shapes.values())
        self.folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.folder).free
        if not (self.folder / "done").is_file() and num_bytes > _FREE_FRACTION * free:
            raise CacheError(
                f"The teacher's outputs for {count} images in {views} views would take {num_bytes / 2**30:.1f} GiB; "
                f"{self.folder.parent} has {free / 2**30:.1f} GiB left. Set VFM_CACHE to a folder on a larger disk, "
                "ask for fewer views (--model.cache_views 1), or leave tokens out (--model.loss.tokens 0)."
            )
        self._arrays: dict[str, tuple[NDArray[np.int8], NDArray[np.float32]]] = {
            name: (
                self._map(f"{name}.int8", np.int8, (views, count, *shape)),
                self._map(f"{name}.scale", np.float32, (views, count)),
            )
            for name, shape in shapes.items()
        }
        self._done: NDArray[np.bool_] = self._map("done", np.bool_, (views, count))
        rank_zero_info(
            f"Outputs of the teacher are kept in {self.folder} (up to {num_bytes / 2**20:.1f} MiB; "
            f"{float(self._done.mean()):.0%} of {views} views of {count} images are there)."
        )

    def read(self, view: int, index: NDArray[np.int64]) -> dict[str, Tensor] | None:
        """Return the outputs for M images in a view, float32; None where one is not there yet.

        Args:
            view: Number of the view, from 0.
            index: Positions of the images in their split, [M].
        """
        if not self._done[view, index].all():
            return None
        return {
            name: torch.from_numpy(
                values[view, index].astype(np.float32)
                * scales[view, index].reshape(-1, *[1] * (values.ndim - 2))
            )
            for name, (values, scales) in self._arrays.items()
        }

    def write(self, view: int, index: NDArray[np.int64], outputs: Mapping[str, Tensor]) -> None:
        """Keep the outputs for M images, a row each, in int8 of the row's largest absolute value."""
        for name, tensor in outputs.items():
            rows = tensor.float().cpu().numpy()
            largest = np.abs(rows).reshape(len(rows), -1).max(axis=1) / 127
            scale = np.maximum(largest, np.finfo(np.float32).tiny)
            values, scales = self._arrays[name]
            values[view, index] = np.rint(rows / scale.reshape(-1, *[1] * (rows.ndim - 1)))
            scales[view, index] = scale
        self._done[view, index] = True

    def _map(self, name: str, kind: Any, shape: tuple[int, ...]) -> Any:
        """Map a file, which keeps its content where it has its size already, as another process may have made it."""
        path = self.folder / name
        with path.open("ab") as file:
            file.truncate(int(np.prod(shape)) * np.dtype(kind).itemsize)
        return np.memmap(path, kind, "r+", shape=shape)
