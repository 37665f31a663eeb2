"""From a checkpoint to an ONNX bundle that is proved to give the same answers.

The way of `vfm export`, all of it in `export.py`:
1. `Checkpoint.open` in `tasks/checkpoint.py` reads the file once; it knows task, data by split and results.
2. The task's own `open_validation` gives what calibrates it; `ood.py` fits where the training images lie.
3. `contract.py` says what the bundle promises; `onnx_graphs.py` writes `preprocess.onnx` and `model.onnx`.
4. `parity.py` compares the graphs with torch on real images; what differs goes to a folder `.rejected`.
5. `precisions.py` writes int8 and fp16 by `vfm/quantization`, within the budget that `accuracy.py` measures.
6. `golden.py`, `card.py`, and last of all the manifest; the folder takes its name when all of it is there.
"""

from vfm.bundle.errors import ExportError
from vfm.bundle.options import ExportOptions
from vfm.bundle.parity import Parity, ParityError

__all__ = ["ExportError", "ExportOptions", "Parity", "ParityError"]
