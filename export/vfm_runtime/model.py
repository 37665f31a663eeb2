"""Loading a bundle and asking it about images."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vfm_runtime import providers
from vfm_runtime.bundle import BundleError, Manifest, check_metadata, read_manifest
from vfm_runtime.contract import METADATA_KEY, MODEL_FILE, PREPROCESS_FILE, Contract
from vfm_runtime.image import ImageError, ImageSource, open_image
from vfm_runtime.types import Prediction

_log = logging.getLogger(__name__)

Errors = Literal["raise", "return"]
_Position = tuple[int, "NDArray[np.uint8] | ImageError"]


def load(
    path: str | Path,
    *,
    device: str = "auto",
    num_threads: int | None = None,
    batch_size: int = 32,
) -> "Model":
    """Load a bundle after checking every one of its files.

    Args:
        path: The bundle's folder.
        device: `cpu`, `cuda`, or `auto` for CUDA where it really loads; see `Model.device`.
        num_threads: Threads of one run on the CPU; None for one a core.
        batch_size: Images that go through the model at once.

    Raises:
        BundleError: It is not a bundle, or a file is missing or damaged.
        ContractError: The contract is malformed or newer than this version.
        ProviderError: ONNX Runtime is not installed properly, or CUDA was asked for in vain.
    """
    return Model(path, device=device, num_threads=num_threads, batch_size=batch_size)


class Model:
    """A loaded bundle; made by `load`. Threads may share it.

    Attributes:
        path: The bundle's folder.
        manifest: What `vfm.json` says: the contract and the bundle's files.
        contract: What the model takes and answers.
        labels: Every class, in the order of the scores.
        device: Where the model really runs, `cpu` or `cuda`.
        batch_size: Images that go through the model at once.
    """

    path: Path
    manifest: Manifest
    contract: Contract
    labels: tuple[str, ...]
    device: str
    batch_size: int

    def __init__(
        self,
        path: str | Path,
        *,
        device: str = "auto",
        num_threads: int | None = None,
        batch_size: int = 32,
    ) -> None:
        self.path = Path(path)
        self.batch_size = _batch_size(batch_size)
        self.manifest = read_manifest(self.path)
        self.contract = self.manifest.contract
        self.labels = self.contract.labels
        # On the CPU always: it is small work, and the pixels are then the same on every machine.
        self._preprocess = providers.open_session(
            self.path / PREPROCESS_FILE, "cpu", num_threads=num_threads
        )
        self._model = providers.open_session(
            self.path / MODEL_FILE, device, num_threads=num_threads
        )
        self.device = providers.device_of(self._model)
        metadata = self._model.get_modelmeta().custom_metadata_map
        check_metadata(self.path, MODEL_FILE, metadata.get(METADATA_KEY), self.contract)
        expect_ports(self._preprocess, self.path / PREPROCESS_FILE, "image", "pixels")
        expect_ports(self._model, self.path / MODEL_FILE, "pixels", "scores")
        self._check_labels()
        self._errors = providers.run_errors()

    def __repr__(self) -> str:
        return f"Model({str(self.path)!r}, {len(self.labels)} classes, {self.device})"

    @overload
    def predict(
        self,
        images: str | Path | bytes | Image.Image,
        *,
        batch_size: int | None = ...,
        errors: Literal["raise"] = ...,
    ) -> Prediction: ...

    @overload
    def predict(
        self,
        images: list[Any] | tuple[Any, ...],
        *,
        batch_size: int | None = ...,
        errors: Literal["raise"] = ...,
    ) -> list[Prediction]: ...

    @overload
    def predict(
        self,
        images: list[Any] | tuple[Any, ...],
        *,
        batch_size: int | None = ...,
        errors: Literal["return"],
    ) -> list[Prediction | ImageError]: ...

    # An array is one image or many by its dimensions, which its type does not tell.
    @overload
    def predict(
        self, images: ImageSource, *, batch_size: int | None = ..., errors: Errors = ...
    ) -> Any: ...

    def predict(
        self,
        images: ImageSource | list[Any] | tuple[Any, ...],
        *,
        batch_size: int | None = None,
        errors: Errors = "raise",
    ) -> Any:
        """Answer for one image, or for each image of a list.

        Args:
            images: A path, the bytes of a file, a uint8 array or an image of Pillow; or a list of
                them, of any sizes; or a uint8 array of shape [images, height, width, channels].
            batch_size: Images that go through the model at once; None for that of `load`.
            errors: With `return`, an image that cannot be opened gets its `ImageError` in its
                place; with `raise`, it is raised and the other answers are lost.

        Returns:
            A `Prediction` for one image, a list of the same length for a list.
        """
        if errors not in ("raise", "return"):
            raise ValueError(f"errors is {errors!r}. Choices: 'raise', 'return'.")
        size = self.batch_size if batch_size is None else _batch_size(batch_size)
        if isinstance(images, list | tuple):
            return self._predict_many(images, size, errors)
        if isinstance(images, np.ndarray) and images.ndim == 4:
            return self._predict_many(images, size, errors)
        answers = self._predict_many([images], 1, errors)
        return answers[0]

    def scores(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Run `model.onnx` on pixels that `preprocess.onnx` has made.

        Args:
            pixels: Uint8, [images, height, width, 3], of the model's own height and width.

        Returns:
            Probabilities, [images, classes].
        """
        expected = (*self.contract.size, 3)
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[1:] != expected:
            raise ValueError(
                f"The pixels are {pixels.dtype} of shape {list(pixels.shape)}; the model takes "
                f"uint8 of shape [images, {', '.join(map(str, expected))}]. Images of any other "
                "size go to `predict`."
            )
        scores: NDArray[np.float32] = self._run(self._model, MODEL_FILE, "pixels", pixels)
        return scores

    def preprocess(self, image: ImageSource) -> NDArray[np.uint8]:
        """Open one image and bring it to the model's size, [1, height, width, 3].

        Args:
            image: As for `predict`.

        Raises:
            ImageError: The image cannot be opened.
        """
        opened = open_image(image)
        pixels: NDArray[np.uint8] = self._run(self._preprocess, PREPROCESS_FILE, "image", opened)
        return pixels

    def _check_labels(self) -> None:
        # A symbolic dimension is a name; the first answer is then checked by Prediction.
        num_scores = self._model.get_outputs()[0].shape[-1]
        if isinstance(num_scores, int) and num_scores != len(self.labels):
            raise BundleError(
                f"{self.path / MODEL_FILE} answers with {num_scores} scores, the contract has "
                f"{len(self.labels)} labels. Export the bundle anew."
            )

    def _run(self, session: Any, name: str, port: str, values: NDArray[Any]) -> Any:
        try:
            return session.run(None, {port: values})[0]
        except self._errors as error:
            device = providers.device_of(session)
            raise providers.ProviderError(
                f"{self.path / name} failed on {device} with an input of shape "
                f"{list(values.shape)}: {providers.first_line(error)} "
                "If memory ran out, use a smaller batch_size or device='cpu'."
            ) from error

    def _predict_many(
        self, images: Iterable[Any], size: int, errors: Errors
    ) -> list[Prediction | ImageError]:
        answers: dict[int, Prediction | ImageError] = {}
        for batch in _batches(self._open_each(images, errors), size):
            good = [(index, item) for index, item in batch if not isinstance(item, ImageError)]
            answers.update((i, item) for i, item in batch if isinstance(item, ImageError))
            if good:
                rows = self.scores(np.concatenate([item for _, item in good]))
                made = [Prediction.from_scores(row, self.labels) for row in rows]
                answers.update(zip([index for index, _ in good], made, strict=True))
        return [answers[index] for index in range(len(answers))]

    def _open_each(self, images: Iterable[Any], errors: Errors) -> Iterator[_Position]:
        # One decoded image at a time; what waits for its batch has the model's small size.
        for index, image in enumerate(images):
            try:
                yield index, self.preprocess(image)
            except ImageError as error:
                if errors == "raise":
                    error.add_note(f"It is image number {index + 1} of those given.")
                    raise
                yield index, error


def expect_ports(session: Any, path: Path, source: str, answer: str) -> None:
    """Refuse an ONNX file whose input and output are not those of the contract.

    Args:
        session: Its session.
        path: The file.
        source: Name of its input, which is uint8.
        answer: Name of its output.

    Raises:
        BundleError: They have other names or types.
    """
    kinds = {"scores": "tensor(float)"}
    expected = [f"{name}: {kinds.get(name, 'tensor(uint8)')}" for name in (source, answer)]
    ports = [*session.get_inputs(), *session.get_outputs()]
    found = [f"{port.name}: {port.type}" for port in ports]
    if found != expected:
        raise BundleError(
            f"{path} takes and gives ({', '.join(found)}); a bundle of this format has "
            f"({', '.join(expected)}). Export it anew."
        )


def _batch_size(value: int) -> int:
    if value < 1:
        raise ValueError(f"batch_size is {value}. Give at least 1.")
    return value


def _batches(items: Iterator[_Position], size: int) -> Iterator[Sequence[_Position]]:
    # itertools.batched came with Python 3.12.
    batch: list[_Position] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
