"""Inference server over HTTP: the Open Inference Protocol, a route for files, a page to try it, and metrics.

Needs the extra `server`. Nothing here is imported by the rest of the package. The way of `POST /predict`:
1. `middleware.py`: request id, host, origin, errors, log and count around every request; the body within its limits.
2. `security.py`: the dependency `TOKEN`; `service.py`: the dependency `DEADLINE`.
3. `predict.py`: `Service.handle` reads the file (`uploads.py`), and a thread opens it by the model's `task_type`.
4. `Service.run_model` gives the rows to the model's `batching.py`, where requests share batches.
5. `predict.py`: `task_type.predict` makes the `Prediction`; `to_dict` and, if asked for, `draw` are the response.

To add a route, write one function in a file of its own, with its parameters and its model of the response, and include
its router in `app.py`. Limits and tokens stand beside it:

    @router.post(
        "/search",
        dependencies=[TOKEN, DEADLINE],
        response_model=SearchResponse,
        responses=describe_errors(400, 401, 408, 413, 415, 422, 429, 503, 504),
    )
    async def search(request: Request, top: Annotated[int, Query(ge=1)] = 5) -> Response:
        service = get_service(request)

        async def answer(upload: Upload) -> Response: ...

        return await service.handle(request, read_upload, answer)

Every body is limited in size and time by the middleware, also where FastAPI reads it. `Service.handle` adds the limit
of requests at once, the deadline, and the end of the work when the client leaves. Any exception becomes the one form
of all errors, and is counted by its code (`errors.py`).
"""
