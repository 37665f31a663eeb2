"""Ask a bundle about its golden images with ONNX Runtime, numpy and Pillow alone.

    pip install onnxruntime numpy pillow
    python golden.py bundle/ > answers.json
    vfm-runtime check bundle/ --answers answers.json

Prints the outputs of each image as JSON; the last command says whether they are those of the export. `Bundle.ask` is
all that a client of your own needs.
"""

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from PIL import Image, ImageOps

FORMATS = (1, 2)  # of bundles that are understood here
UNHEEDED = ("tiles", "value_range", "group_thresholds")  # would change the answers
TASKS = ("classification", "multilabel", "detection", "deepfake")

Outputs = dict[str, NDArray[Any]]


class BundleError(ValueError):
    """The folder is no bundle that is understood here, or a file is not the one of the export."""


class Bundle:
    """A bundle, its files checked.

    Args:
        folder: Folder that holds `vfm.json`.
    """

    def __init__(self, folder: Path) -> None:
        manifest = json.loads((folder / "vfm.json").read_text(encoding="utf-8"))
        self.folder, self.files, self.contract = folder, manifest["files"], manifest["contract"]
        if self.contract["format"] not in FORMATS:
            raise BundleError(
                f"The format of {folder} is {self.contract['format']}; known: {FORMATS}."
            )
        if unheeded := [name for name in UNHEEDED if name in self.contract]:
            raise BundleError(f"{folder} needs {', '.join(unheeded)}, which is not heeded here.")
        for head in (self.contract.get("heads") or {"": self.contract}).values():
            if head["task"] not in TASKS:
                raise BundleError(f"The task is {head['task']!r}; known: {', '.join(TASKS)}.")
        # Weights that ONNX Runtime opens by itself, where they are kept apart.
        if "model.onnx.data" in self.files:
            self.check("model.onnx.data")
        self.before = self._session("preprocess.onnx")
        self.model = self._session("model.onnx")

    def check(self, name: str) -> Path:
        """Return the path of a file whose bytes are those of the export.

        Args:
            name: Name of the file, as `vfm.json` lists it.
        """
        path = self.folder / name
        if name not in self.files:
            raise BundleError(f"vfm.json does not list {name}.")
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != self.files[name]:
            raise BundleError(f"{path} is damaged: its sha256 is not that of vfm.json.")
        return path

    def ask(self, image: NDArray[np.uint8]) -> Outputs:
        """Ask the model about one image; each output has one row.

        Args:
            image: Uint8 RGB, [height, width, 3].
        """
        inputs = _run(self.before, {"image": image})
        return _run(self.model, {port.name: inputs[port.name] for port in self.model.get_inputs()})

    def _session(self, name: str) -> onnxruntime.InferenceSession:
        path = self.check(name)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors alone
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _run(session: onnxruntime.InferenceSession, inputs: Outputs) -> Outputs:
    names = [port.name for port in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


def open_image(path: Path) -> NDArray[np.uint8]:
    """Open an image as uint8 RGB: upright, alpha over white, 16-bit grey brought to 8 bits.

    Args:
        path: Path of a file that Pillow opens.
    """
    with Image.open(path) as file:
        image = ImageOps.exif_transpose(file)
        if image.mode.startswith("I"):
            gray = ((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8)
            image = Image.fromarray(gray)
        elif image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return np.asarray(image.convert("RGB"))


def ask_golden(bundle: Bundle) -> dict[str, Any]:
    """Ask about every golden image, and return the outputs as plain values."""
    golden = json.loads(bundle.check("golden/golden.json").read_text(encoding="utf-8"))
    images = []
    for row in golden["images"]:
        outputs = bundle.ask(open_image(bundle.check(f"golden/{row['file']}")))
        values = {
            name: {"data": array.ravel().tolist(), "dims": list(array.shape)}
            for name, array in outputs.items()
        }
        images.append({"file": row["file"], "outputs": values})
    return {"images": images}


def main() -> int:
    """Ask one bundle; 1 where it is damaged or not understood here."""
    parser = argparse.ArgumentParser(description="Ask a bundle about its golden images.")
    parser.add_argument("bundle", type=Path, help="the folder that vfm export wrote")
    try:
        print(json.dumps(ask_golden(Bundle(parser.parse_args().bundle)), allow_nan=False))
        return 0
    except KeyError as error:
        print(f"error: the bundle has no key {error}.", file=sys.stderr)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
