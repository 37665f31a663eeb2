"""From a checkpoint to an ONNX bundle that is proved to give the same answers."""

from vfm.bundle.errors import ExportError
from vfm.bundle.options import ExportOptions
from vfm.bundle.parity import Parity, ParityError

__all__ = ["ExportError", "ExportOptions", "Parity", "ParityError"]
