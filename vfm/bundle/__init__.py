"""From a checkpoint to an ONNX bundle that is proved to give the same answers."""

from vfm.bundle.parity import Parity, ParityError
from vfm.bundle.write import ExportError, export, export_task

__all__ = ["ExportError", "Parity", "ParityError", "export", "export_task"]
