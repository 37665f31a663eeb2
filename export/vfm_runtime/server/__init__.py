"""Answers over HTTP: the Open Inference Protocol, a route for files, a page to try it, and metrics.

Needs the extra `server`. Nothing here is imported by the rest of the package. The way of `POST /predict`:
1. `front.py` and `security.py`: request id, host, origin, token, log and count around every request.
2. `service.py`: `attend` reads the body within its limits (`bodies.py`) and its time.
3. `predict.py`: a thread opens the file by the model's `task_type.open` and `prepare_all`.
4. `service.ask` gives the rows to the model's `batching.py`, where requests share batches; `pieces.py` cuts them.
5. `predict.py`: `task_type.predict` makes the `Prediction`; `to_dict` and, if asked for, `draw` are the answer.
"""
