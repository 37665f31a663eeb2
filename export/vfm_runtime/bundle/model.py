"""Model: a loaded bundle, which predicts for images and videos with ONNX Runtime."""

import ctypes
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vfm_runtime.bundle import providers
from vfm_runtime.bundle.contract import (
    METADATA_KEY,
    MODEL_FILE,
    PRECISION_FILES,
    PREPROCESS_FILE,
)
from vfm_runtime.bundle.manifest import Manifest, check_metadata, read_manifest
from vfm_runtime.bundle.precision import choose_precision
from vfm_runtime.bundle.predictor import Predictor
from vfm_runtime.errors import BundleError, DataError, ProviderError
from vfm_runtime.media.image import ImageSource
from vfm_runtime.ort import list_errors, summarize_error
from vfm_runtime.search import VECTORS_FILE, VectorTable
from vfm_runtime.tasks.base import Arrays
from vfm_runtime.text import TEXT_FILE, TEXT_OUTPUT, TOKENS, TextSpec, TextTower

if TYPE_CHECKING:
    from vfm_runtime.drift.monitor import DriftMonitor

IMAGE = {"image": "uint8"}
"""What `preprocess.onnx` takes."""


class Model(Predictor):
    """A bundle, loaded after checking every one of its files; also called `load`. Threads may share it.

    Args:
        path: Folder of the bundle.
        device: `cpu`, `cuda`, `tensorrt`, `openvino`, or `auto` for CUDA where it really loads, else OpenVINO where its
            plugin is installed.
        precision: `fp32`, `fp16`, `int8`, `bf16`, or `auto` for fp16 on a GPU and int8 on the CPU where the bundle has
            it, else fp32.
        num_threads: Number of threads of one run on the CPU; None for one for each core that may be used.
        batch_size: Number of images that go through the model at once.
        keep_memory: Whether memory that a large image took is kept for the next one.
        spin: Whether idle threads keep their cores; better not where the same cores decode images.
        state: Folder that holds what the model is taught at run time; in memory alone by default.
        keep_pictures: Whether small pictures of what it is taught are kept there too, for `why`.
        manifest: Manifest of a bundle that is still being written, whose files are not checked; None to read it.

    Raises:
        BundleError: It is not a bundle, or a file is missing or damaged.
        ContractError: The contract is malformed or newer than this version.
        ProviderError: ONNX Runtime is not installed properly, or a device was asked for in vain.
        OptionError: The bundle has no graph of that precision, it does not run on that device, or has a state but gives
            no embeddings.
        DataError: The state is damaged, or of another model.

    Attributes:
        path: Folder of the bundle.
        manifest: Contract and files of the bundle, as `vfm.json` has them.
        contract: Task, labels and rules of the model, and where it comes from.
        device: Where the model really runs, such as `cpu` or `cuda`.
        precision: Precision of the graph that runs.
        precisions: Precisions of the graphs in the bundle.
        monitor: Watches the answers for drift, where one is set.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        device: str = "auto",
        precision: str = "auto",
        num_threads: int | None = None,
        batch_size: int = 32,
        keep_memory: bool = True,
        spin: bool = True,
        state: str | Path | None = None,
        keep_pictures: bool = False,
        manifest: Manifest | None = None,
    ) -> None:
        self.path = Path(path)
        self.manifest = read_manifest(self.path) if manifest is None else manifest
        self.contract = self.manifest.contract
        super().__init__(self.contract.type, batch_size)
        self.value_range = self.contract.value_range
        self.embedding = self.contract.embedding
        self.box_embedding = self.contract.box_embedding
        if self.contract.text is not None:
            self.scale, self.bias = self.contract.text.scale, self.contract.text.bias
        self._text: TextTower | None = None
        files = self.manifest.files
        self.precisions = tuple(p for p, name in PRECISION_FILES.items() if name in files)
        self._options: dict[str, Any] = {"num_threads": num_threads, "spin": spin}
        self._keeps_memory = keep_memory
        self._open_preprocess()
        where, self.precision = choose_precision(device, precision, self.precisions)
        self._open(where, device)
        if precision == "auto" and providers.get_device(self._model) != where:
            # CUDA or OpenVINO did not load the graph, and the CPU has a precision of its own.
            where, self.precision = choose_precision("cpu", "auto", self.precisions)
            self._open(where, "cpu")
        self.device = providers.get_device(self._model)
        self._process = os.getpid()
        self._reopening = threading.Lock()
        self.monitor: DriftMonitor | None = None
        self._check_graphs()
        self._errors = list_errors()
        if VECTORS_FILE in self.manifest.files:
            self.vectors = VectorTable.read(self.path, self.embedding)
        if state is not None:
            self.keep_state(state, keep_pictures=keep_pictures)

    def __repr__(self) -> str:
        what = "classes" if self.contract.heads is None else "heads"
        where = f"{self.precision} on {self.device}"
        return f"Model({str(self.path)!r}, {len(self.labels)} {what}, {where})"

    @property
    def output_shapes(self) -> dict[str, list[Any]]:
        """Dimensions of each output of the graph, by name; one that is free is no number."""
        return {port.name: port.shape for port in self._model.get_outputs()}

    def run(self, inputs: Arrays) -> Arrays:
        """Run `model.onnx` on what `preprocess.onnx` has made: `pixels`, uint8 [N, H, W, 3], of the model's own size.

        Returns:
            The outputs of the task, a row an image; of several heads each is named `head.output`. Where the bundle has
            a reference also `components` [N, k] and `distances` [N].
        """
        answers = self.compute_outputs(inputs)
        if self.monitor is not None:
            self.monitor.add(answers)
        return answers

    def compute_outputs(self, inputs: Arrays) -> Arrays:
        """Compute what `run` returns, of images that the monitor shall not count."""
        pixels = inputs["pixels"]
        expected = (*self.contract.size, 3)
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[1:] != expected:
            raise DataError(
                f"The pixels are {pixels.dtype} of shape {list(pixels.shape)}; the model takes "
                f"uint8 of shape [images, {', '.join(map(str, expected))}]. Images of any other "
                "size go to `predict`."
            )
        self._survive_fork()
        return self._run(self._model, self._file, inputs)

    def prepare(self, image: ImageSource) -> Arrays:
        """Open one image and bring it to the model's size, by `preprocess.onnx`."""
        self._survive_fork()
        if (
            isinstance(image, np.ndarray)
            and image.dtype == np.uint8
            and image.shape[2:] == (3,)
            and image.size > 0
            and image.flags.c_contiguous
        ):
            pixels = image  # not copied: nobody writes to them
        else:
            pixels = self.open_pixels(image)
        return self._run(self._preprocess, PREPROCESS_FILE, {"image": pixels})

    def embed_text(self, texts: str | Sequence[str]) -> NDArray[np.float32]:
        """Return the vector of one text, float32 [D], or of each of a list, [M, D], by `text.onnx` on the CPU."""
        if self.contract.text is None:
            return super().embed_text(texts)
        self._survive_fork()
        with self._reopening:
            if self._text is None:
                self._text = self._open_text(self.contract.text)
            tower = self._text
        vectors = tower.embed([texts] if isinstance(texts, str) else texts)
        return vectors[0] if isinstance(texts, str) else vectors

    def _open_text(self, spec: TextSpec) -> TextTower:
        """Open the text tower, when the first text comes: it may be as large as that of images."""
        path = self.path / TEXT_FILE
        session = providers.open_session(path, "cpu", **self._options)
        metadata = session.get_modelmeta().custom_metadata_map
        check_metadata(self.path, TEXT_FILE, metadata.get(METADATA_KEY), self.contract)
        expect_ports(session, path, {TOKENS: "int64"}, {TEXT_OUTPUT: "float"})
        return TextTower(self.path, spec, session)

    def _open_preprocess(self) -> None:
        # On the CPU always: it is small work, and the pixels are then the same on every machine.
        self._preprocess = providers.open_session(
            self.path / PREPROCESS_FILE, "cpu", keep_memory=self._keeps_memory, **self._options
        )

    def _survive_fork(self) -> None:
        """Open the sessions anew in a process that was forked: their threads stayed behind, and a run would hang."""
        if self._process == os.getpid():
            return
        if self.device not in ("cpu", "openvino"):
            raise ProviderError(
                f"{self.path} was loaded on {self.device} before this process was forked, and {self.device} does not "
                "survive that. Load the bundle in the new process, or start processes with 'spawn'."
            )
        with self._reopening:
            if self._process != os.getpid():
                text = [] if self._text is None else [self._text.session]
                for session in (self._preprocess, self._model, *text):
                    # Never freed: it would wait for its threads, at the latest when this process ends.
                    ctypes.pythonapi.Py_IncRef(ctypes.py_object(session))
                self._open_preprocess()
                self._open(self.device, self.device)
                self._text = None
                self._process = os.getpid()

    def _open(self, where: str, asked: str) -> None:
        # Device "auto": where CUDA or OpenVINO does not load the graph, the session runs on the CPU; but not
        # in bf16, which ONNX Runtime's CPU provider does not compute.
        may_fall_back = asked == "auto" and where != "cpu" and self.precision != "bf16"
        self._file = PRECISION_FILES.get(self.precision, MODEL_FILE)
        self._model = providers.open_session(
            self.path / self._file,
            "auto" if may_fall_back else where,
            precision=self.precision,
            **self._options,
        )

    def _check_graphs(self) -> None:
        metadata = self._model.get_modelmeta().custom_metadata_map
        check_metadata(self.path, self._file, metadata.get(METADATA_KEY), self.contract)
        inputs, outputs = self.contract.ports()
        expect_ports(self._preprocess, self.path / PREPROCESS_FILE, IMAGE, inputs)
        expect_ports(self._model, self.path / self._file, inputs, outputs)
        try:
            self.task_type.check_shapes(self.output_shapes)
        except ValueError as error:
            raise BundleError(
                f"{self.path / self._file} {error}. Export the bundle anew."
            ) from error

    def _run(self, session: Any, name: str, inputs: Arrays) -> Arrays:
        try:
            answers = session.run(None, inputs)
            return {p.name: a for p, a in zip(session.get_outputs(), answers, strict=True)}
        except self._errors as error:
            device = providers.get_device(session)
            shape = list(next(iter(inputs.values())).shape)
            raise ProviderError(
                f"{self.path / name} failed on {device} with an input of shape "
                f"{shape}: {summarize_error(error)} "
                "If memory ran out, use a smaller batch_size or device='cpu'."
            ) from error


load = Model
"""Loads a bundle."""


def expect_ports(
    session: Any, path: Path, inputs: Mapping[str, str], outputs: Mapping[str, str]
) -> None:
    """Refuse an ONNX file, open in a session, whose inputs and outputs are not those of the contract.

    Raises:
        BundleError: They have other names or element types.
    """
    expected = [f"{name}: tensor({kind})" for name, kind in [*inputs.items(), *outputs.items()]]
    ports = [*session.get_inputs(), *session.get_outputs()]
    actual = [f"{port.name}: {port.type}" for port in ports]
    if actual != expected:
        raise BundleError(
            f"{path} takes and gives ({', '.join(actual)}); a bundle of this format has "
            f"({', '.join(expected)}). Export it anew."
        )
