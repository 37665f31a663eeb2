import asyncio
import base64
import json
import time
from types import SimpleNamespace

import pytest
from PIL import Image
from starlette.requests import ClientDisconnect, Request
from vfm_runtime.server import uploads
from vfm_runtime.server.errors import ApiError
from vfm_runtime.server.settings import Settings
from vfm_runtime.server.uploads import LimitedReceive, check_pixels, read_upload

SMALL = Settings(bundles=("a",), max_body_mb=1, body_timeout=0.2)
PART = b'--x\r\nContent-Disposition: form-data; name="file"\r\n\r\nabc\r\n'


def request(receive, **headers):
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": "POST", "path": "/", "headers": raw, "query_string": b""}
    return Request(scope, receive)


def sending(*chunks, pause=0.0, ends=True):
    """The receive of a client that sends these; without an end it then waits for ever."""
    waiting = list(chunks)

    async def receive():
        await asyncio.sleep(pause)
        if not waiting and not ends:
            await asyncio.sleep(60)
        chunk = waiting.pop(0) if waiting else b""
        return {"type": "http.request", "body": chunk, "more_body": bool(waiting) or not ends}

    return receive


def limited(receive, **headers):
    plain = request(receive, **headers)
    service = SimpleNamespace(run_in_thread=asyncio.to_thread)
    scope = {**plain.scope, "app": SimpleNamespace(state=SimpleNamespace(service=service))}
    return Request(scope, LimitedReceive(receive, plain.headers, SMALL))


def read(receive, **headers):
    return asyncio.run(limited(receive, **headers).body())


def unpack(body, content_type):
    return asyncio.run(read_upload(limited(sending(body), content_type=content_type)))


def test_a_body_in_pieces():
    assert read(sending(b"ab", b"", b"c")) == b"abc"


def test_a_body_as_large_as_it_may_be():
    assert len(read(sending(bytes(2**20)), content_length=str(2**20))) == 2**20


@pytest.mark.parametrize("length", [None, "5", "9" * 40])
def test_a_body_that_is_too_large(length):
    """Whatever its header claims, and before all of it is here."""
    taken = []

    async def receive():
        taken.append(1)
        return {"type": "http.request", "body": bytes(2**18), "more_body": True}

    headers = {} if length is None else {"content_length": length}
    with pytest.raises(ApiError, match="The body is larger than 1 MiB, the limit") as caught:
        read(receive, **headers)
    assert (caught.value.status_code, caught.value.code) == (413, "too_large")
    assert len(taken) == (0 if length == "9" * 40 else 5)


def test_a_body_that_is_too_slow():
    start = time.monotonic()
    with pytest.raises(ApiError, match=r"did not arrive within 0\.2 s") as caught:
        read(sending(*[b"x"] * 100, pause=0.05))
    assert (caught.value.status_code, caught.value.code) == (408, "slow_body")
    assert caught.value.headers == {"Connection": "close"}
    assert time.monotonic() - start < 2


def test_a_body_that_never_ends():
    with pytest.raises(ApiError, match="did not arrive within"):
        read(sending(b"x", ends=False))


def test_a_client_that_leaves_while_it_sends():
    async def receive():
        return {"type": "http.disconnect"}

    with pytest.raises(ClientDisconnect):
        read(receive)


@pytest.mark.parametrize("encoding", ["gzip", "br", "identity, gzip"])
def test_a_compressed_body(encoding):
    with pytest.raises(ApiError, match=f"Content-Encoding '{encoding}' is refused") as caught:
        read(sending(b"x"), content_encoding=encoding)
    assert caught.value.status_code == 415


def test_an_encoding_that_is_none():
    assert read(sending(b"x"), content_encoding="Identity") == b"x"


def test_media_types():
    assert unpack(b"x", "Image/PNG; a=b") == (b"x", False, "", None)
    form = PART.replace(b"--x", b"--x y") + b"--x y--\r\n"
    assert unpack(form, 'multipart/form-data; boundary="x y"').data == b"abc"
    with pytest.raises(ApiError, match="There is no Content-Type"):
        unpack(b"x", ";;;==")


def test_what_the_client_says_of_a_file():
    assert unpack(b"x", "image/png") == (b"x", False, "", None)
    assert unpack(b"x", "video/mp4") == (b"x", True, "", None)
    assert unpack(b"x", "application/octet-stream") == (b"x", None, "", None)
    form = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\nContent-Type: video/mp4\r\n\r\n\r\n'
    form = form.replace(b"\r\n\r\n\r\n", b"\r\n\r\nabc\r\n--x--\r\n")
    assert unpack(form, "multipart/form-data; boundary=x") == (b"abc", True, "a", None)
    form = form.replace(b'; filename="a"', b"")
    assert unpack(form, "multipart/form-data; boundary=x; charset=utf-16") == (
        b"abc",
        True,
        "",
        None,
    )


@pytest.mark.parametrize("data", [bytes(range(256)) * 5000, "\xe9".encode(), b"\xe9"])
@pytest.mark.parametrize("name", ["", '; filename="a"'])
def test_a_form_keeps_every_byte(data, name):
    head = PART.replace(b'"file"', f'"file"{name}'.encode()).removesuffix(b"abc\r\n")
    body = head.replace(b"x", b"boundary") + data + b"\r\n--boundary--\r\n"
    kind = "multipart/form-data; charset=utf-8; boundary=boundary"
    settings = Settings(bundles=("a",))
    plain = request(sending(body), content_type=kind)
    receive = LimitedReceive(
        sending(*[body[i : i + 1000] for i in range(0, len(body), 1000)]), plain.headers, settings
    )
    assert asyncio.run(read_upload(Request(plain.scope, receive))).data == data


def test_a_form_with_other_fields():
    other = b'--x\r\nContent-Disposition: form-data; name="n"\r\n\r\n1\r\n'
    body = other + PART + other + b"--x--\r\n"
    assert unpack(body, "multipart/form-data; boundary=x").data == b"abc"


BAD_FORMS = [
    ("multipart/form-data", PART, "Missing boundary"),
    ("multipart/form-data; boundary=x", b"abc", "The multipart form is malformed"),
    ("multipart/form-data; boundary=x", b"", "ends before its last boundary"),
    ("multipart/form-data; boundary=x", PART, "ends before its last boundary"),
    ("multipart/form-data; boundary=y", PART + b"--x--\r\n", "The multipart form is malformed"),
    (
        "multipart/form-data; boundary=x",
        PART.replace(b'"file"', b'"image"') + b"--x--\r\n",
        "The form has 0 fields 'file', not one. Its fields: 'image'.",
    ),
    (
        "multipart/form-data; boundary=x",
        PART.replace(b'"file"', '"größe"'.encode()) + b"--x--\r\n",
        "Its fields: 'größe'",
    ),
    (
        "multipart/form-data; boundary=x",
        (PART + PART.replace(b'"file"', b'"file"; filename="a"')) * 20 + b"--x--\r\n",
        "it has more than 32 parts",
    ),
    ("multipart/form-data; boundary=x", PART * 2 + b"--x--\r\n", "The form has 2 fields 'file'"),
    ("multipart/form-data; boundary=x", PART * 40 + b"--x--\r\n", "it has more than 32 parts"),
    (
        "multipart/form-data; boundary=x",
        PART.replace(b"abc", b"") + b"--x--\r\n",
        "The file is empty",
    ),
    (
        "multipart/form-data; boundary=x",
        b"--x\r\n" + b"A: b\r\n" * 99 + b"\r\nabc\r\n--x--\r\n",
        "The multipart form is malformed",
    ),
]


@pytest.mark.parametrize(("kind", "body", "text"), BAD_FORMS)
def test_bad_forms(kind, body, text):
    with pytest.raises(ApiError, match=text) as caught:
        unpack(body, kind)
    assert caught.value.status_code == 400


@pytest.mark.parametrize(
    ("body", "status", "text"),
    [
        (b"{", 400, "The body is not valid JSON"),
        (b"[1]", 422, "The body is a JSON list, not an object"),
        (b"{}", 422, "The JSON object needs 'data', a string"),
        (b'{"data": 1}', 422, "The JSON object needs 'data', a string"),
        (b'{"data": "YQ==", "url": "http://a"}', 422, "has unknown keys: 'url'. It takes 'data'"),
        (b'{"data": "http://a/b.png"}', 400, "'data' is not base64"),
        (b'{"data": "data:image/png;base64,YQ=="}', 400, "'data' is not base64"),
        (b'{"data": "\xc3\xa4\xc3\xa4\xc3\xa4\xc3\xa4"}', 400, "'data' is not base64"),
        (b'{"data": ""}', 400, "The file is empty"),
    ],
)
def test_bad_json(body, status, text):
    with pytest.raises(ApiError, match=text) as caught:
        unpack(body, "application/json; charset=utf-8")
    assert caught.value.status_code == status


def test_json():
    body = json.dumps({"data": base64.b64encode(b"abc").decode()}).encode()
    assert unpack(body, "application/json") == (b"abc", None, "", None)


def test_pixels_at_the_limit(jpeg):
    check_pixels(jpeg, 300 * 200)
    with pytest.raises(ApiError, match="has 300x200 pixels; the limit is 59999 pixels"):
        check_pixels(jpeg, 300 * 200 - 1)


def test_an_older_pillow(monkeypatch, jpeg):
    """One that does not know a format refuses its name."""
    monkeypatch.setattr(uploads, "FORMATS", (*uploads.FORMATS, "NEXT"))
    uploads.list_formats.cache_clear()
    try:
        check_pixels(jpeg, 10**6)
        assert "JPEG" in uploads.list_formats()
        assert "NEXT" not in uploads.list_formats()
    finally:
        uploads.list_formats.cache_clear()


def test_every_format_that_pillow_writes(tmp_path):
    Image.init()
    for kind in {"PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM"} & set(Image.SAVE):
        path = tmp_path / kind
        Image.new("RGB", (8, 6)).save(path, kind)
        check_pixels(path.read_bytes(), 48)
        with pytest.raises(ApiError, match="has 8x6 pixels"):
            check_pixels(path.read_bytes(), 47)
