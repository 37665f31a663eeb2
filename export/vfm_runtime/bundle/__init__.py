"""A bundle on disk: contract, manifest, sessions of ONNX Runtime, golden answers.

The way of `Model.predict`, and of `vfm-runtime predict`:
1. `model.py`: `load` checks every file by `manifest.py`, and the graphs against `contract.py`.
2. The contract's task, found by name in `tasks/registry.py`, is the model's `task_type`.
3. `predictor.py`: `task_type.open` makes images of a source, one or several crops; `prepare` runs `preprocess.onnx`.
4. `Model.run` puts batches through `model.onnx` (`precision.py` chose which, `providers.py` where).
5. `task_type.predict` makes a `Prediction` of the rows of each source.
6. `printing.py` shows it by `lines`, `to_dict` and `draw`, whatever the task.
"""
