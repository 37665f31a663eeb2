"""Loading a bundle and asking it about images."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vfm_runtime import providers
from vfm_runtime.bundle import BundleError, Manifest, check_metadata, read_manifest
from vfm_runtime.contract import METADATA_KEY, MODEL_FILE, PREPROCESS_FILE, Contract
from vfm_runtime.image import ImageSource, open_image
from vfm_runtime.predictor import Predictor

_log = logging.getLogger(__name__)


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


class Model(Predictor):
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
        self.manifest = read_manifest(self.path)
        self.contract = self.manifest.contract
        multilabel = self.contract.task == "multilabel"
        super().__init__(self.contract.labels, batch_size, multilabel=multilabel)
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
