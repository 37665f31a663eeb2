import re

import pytest
from vfm_runtime.server.security import (
    SecurityError,
    check_exposure,
    is_loopback,
    read_tokens,
)
from vfm_runtime.server.settings import Settings

TOKEN, OTHER = "abcdefgh-01234567", "0123456789abcdef"
GUARDED = ["/predict", "/v2/models", "/v2/models/toy", "/v2/models/toy/infer", "/metrics"]
OPEN = ["/v2", "/v2/health/live", "/v2/health/ready", "/openapi.json", "/"]


def settings(**values):
    return Settings(bundles=("a",), **values)


def test_tokens_of_the_environment_and_of_a_file(tmp_path):
    path = tmp_path / "tokens"
    path.write_text(f"{OTHER}\n\n")
    environ = {"VFM_TOKENS": f" {TOKEN} ,"}
    assert read_tokens(settings(), environ) == (TOKEN.encode(),)
    both = read_tokens(settings(token_file=path), environ)
    assert both == (TOKEN.encode(), OTHER.encode())
    assert read_tokens(settings(), {}) == ()


def test_tokens_that_cannot_be_used(tmp_path):
    with pytest.raises(SecurityError, match="A token in VFM_TOKENS has 15 characters; 16 is the"):
        read_tokens(settings(), {"VFM_TOKENS": "a" * 15})
    with pytest.raises(SecurityError, match="holds spaces or characters outside ASCII"):
        read_tokens(settings(), {"VFM_TOKENS": "é" * 16})
    path = tmp_path / "tokens"
    with pytest.raises(SecurityError, match=f"The token file {path} cannot be read"):
        read_tokens(settings(token_file=path), {})
    path.write_text("\n")
    with pytest.raises(SecurityError, match=f"{path} holds no token"):
        read_tokens(settings(token_file=path), {})


def test_errors_do_not_show_the_token():
    secret = "pässwörd-of-the-company"
    with pytest.raises(SecurityError) as caught:
        read_tokens(settings(), {"VFM_TOKENS": secret})
    assert secret not in str(caught.value)


@pytest.mark.parametrize(
    ("host", "local"),
    [
        *(("127.0.0.1", True), ("localhost", True), ("::1", True), ("127.9.9.9", True)),
        *(("0.0.0.0", False), ("::", False), ("192.168.0.1", False), ("example.com", False)),
        ("", False),
    ],
)
def test_exposure(host, local):
    assert is_loopback(host) == local
    check_exposure(settings(host=host), (b"token",))
    if local:
        check_exposure(settings(host=host), ())
        return
    with pytest.raises(SecurityError, match="can be reached from other machines, and no token"):
        check_exposure(settings(host=host), ())


@pytest.fixture
def guarded(started, monkeypatch):
    monkeypatch.setenv("VFM_TOKENS", f"{TOKEN},{OTHER}")
    return started("toy", host="0.0.0.0", base_url="http://example.com")


def test_what_needs_a_token(guarded, refused):
    for path in GUARDED:
        method = "POST" if path.endswith(("predict", "infer")) else "GET"
        answer = guarded.request(method, path)
        text = refused(answer, 401, "unauthorized")
        assert text == "The token is missing. Send the header `Authorization: Bearer TOKEN`."
        assert answer.headers["www-authenticate"] == "Bearer"
    for path in OPEN:
        assert guarded.get(path).status_code == 200, path


def iterate_routes(routes):
    for route in routes:
        # Newer versions of FastAPI keep routers that were included.
        router = getattr(route, "original_router", None)
        yield from [route] if router is None else iterate_routes(router.routes)


def test_every_other_route_needs_a_token(guarded):
    """Each route says so beside itself; one that forgets it is found here."""
    unguarded = {
        route.path
        for route in iterate_routes(guarded.app.routes)
        for method in route.methods
        if guarded.request(method, re.sub("{.*?}", "x", route.path)).status_code != 401
    }
    assert unguarded == {*OPEN, "/static/{file}"}
    paths = guarded.get("/openapi.json").json()["paths"]
    assert {path for path in paths if "security" not in str(paths[path])} == unguarded


@pytest.mark.parametrize("token", [TOKEN, OTHER])
def test_each_token_opens(guarded, jpeg, token):
    headers = {"Authorization": f"Bearer {token}"}
    assert guarded.get("/v2/models", headers=headers).status_code == 200
    assert (
        guarded.get("/metrics", headers={"Authorization": f"bearer  {token} "}).status_code == 200
    )
    headers["Content-Type"] = "image/jpeg"
    assert guarded.post("/predict", content=jpeg, headers=headers).status_code == 200


@pytest.mark.parametrize(
    "value",
    [
        *("Bearer", "Bearer ", f"Basic {TOKEN}", TOKEN, f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}"),
        *(f"Bearer {TOKEN.upper()}", f"Bearer {TOKEN},{OTHER}", f"Bearer {TOKEN} {OTHER}"),
        "Bearer \xe9\xff\xfe",
    ],
)
def test_what_does_not_open(guarded, refused, value):
    answer = guarded.get("/v2/models", headers={"Authorization": value.encode("latin-1")})
    text = refused(answer, 401, "unauthorized")
    assert text.startswith("The token is not one of those that this server knows.")


def test_other_spellings_of_a_guarded_path(guarded):
    for path in ("/predict/", "/./predict", "/%70redict", "/v2//models", "/METRICS"):
        assert guarded.request("POST", path).status_code in (401, 404, 405), path
        assert guarded.get(path).status_code in (401, 404, 405), path


@pytest.mark.parametrize(
    "host", ["localhost", "127.0.0.1:8000", "[::1]", "[::1]:80", "LOCALHOST:1"]
)
def test_hosts_of_this_machine(client, host):
    assert client.get("/v2", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.com", "evil.com:8000", "127.0.0.1.evil.com", "localhost.evil.com", "", "\xe9"]
)
def test_hosts_of_others(client, refused, host):
    """Of pages whose own name leads to 127.0.0.1."""
    answer = client.get("/v2", headers={"Host": host.encode("latin-1")})
    assert "the Host header names another" in refused(answer, 421, "wrong_host")


def test_tokens_free_the_host(guarded):
    assert guarded.get("/v2", headers={"Host": "models.example.org"}).status_code == 200


PREFLIGHT = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}


def test_other_origins_are_shut_out(client, refused):
    answer = client.get("/v2", headers={"Origin": "https://a.example"})
    assert not [name for name in answer.headers if name.startswith("access-control")]
    answer = client.options("/predict", headers=PREFLIGHT)
    refused(answer, 405, "method_not_allowed")
    assert "access-control-allow-origin" not in answer.headers


def test_origins_that_are_let_in(started, refused):
    client = started("toy", allow_origin=("https://a.example",))
    answer = client.options("/predict", headers=PREFLIGHT)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == "https://a.example"
    assert "Authorization" in answer.headers["access-control-allow-headers"]
    answer = client.get("/v2", headers={"Origin": "https://a.example"})
    assert answer.headers["access-control-allow-origin"] == "https://a.example"
    assert answer.headers["vary"] == "Origin"
    # Errors too, else the page could not read them.
    answer = client.get("/nope", headers={"Origin": "https://a.example"})
    assert answer.headers["access-control-allow-origin"] == "https://a.example"
    for other in ("https://b.example", "https://a.example.evil", "null"):
        answer = client.options("/predict", headers={**PREFLIGHT, "Origin": other})
        assert answer.status_code == 400
        assert "access-control-allow-origin" not in answer.headers


def test_pages_of_other_sites_cannot_load_a_server_without_tokens(client, started, jpeg, refused):
    def ask(client, origin):
        headers = {"Origin": origin, "Content-Type": "image/jpeg"}
        return client.post("/predict?model=toy", content=jpeg, headers=headers)

    for origin in ("https://evil.example", "null", "http://localhost.evil.example"):
        refused(ask(client, origin), 403, "wrong_origin")
    for origin in ("http://127.0.0.1:8000", "http://localhost", "http://[::1]:8000"):
        assert ask(client, origin).status_code == 200
    allowed = started("toy", allow_origin=("https://a.example",))
    assert ask(allowed, "https://a.example").status_code == 200


def test_a_page_with_a_token_may_ask_whether_it_may_ask(started, monkeypatch, refused):
    monkeypatch.setenv("VFM_TOKENS", "0123456789abcdef")
    client = started("toy", allow_origin=("https://a.example",))
    answer = client.options("/predict", headers=PREFLIGHT)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == "https://a.example"
    # What follows without the token is refused all the same.
    refused(client.post("/predict", headers={"Origin": "https://a.example"}), 401, "unauthorized")
    other = {**PREFLIGHT, "Origin": "https://b.example"}
    assert client.options("/predict", headers=other).status_code == 400


def test_preflights_go_through_the_checks_of_all_requests(started, refused):
    client = started("toy", allow_origin=("*",))
    answer = client.options("/predict", headers={**PREFLIGHT, "X-Request-Id": "ab"})
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == "*"
    assert answer.headers["x-request-id"] == "ab"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    refused(
        client.options("/predict", headers={**PREFLIGHT, "Host": "evil.com"}), 421, "wrong_host"
    )
    metrics = client.get("/metrics").text
    for status in (200, 421):
        assert re.search(rf'requests_total{{.*status="{status}".*}} 1.0', metrics), metrics


def test_pages_can_read_why_they_are_refused(started, refused):
    client = started("toy", allow_origin=("https://a.example",))
    answer = client.get("/v2", headers={"Origin": "https://a.example", "Host": "evil.com"})
    refused(answer, 421, "wrong_host")
    assert answer.headers["access-control-allow-origin"] == "https://a.example"
    assert "X-Request-Id" in answer.headers["access-control-expose-headers"]
    answer = client.post("/predict", headers={"Origin": "https://b.example"})
    refused(answer, 403, "wrong_origin")
    assert answer.headers["vary"] == "Origin"


def test_an_address_of_the_loopback_answers_to_its_name(started, refused):
    client = started("toy", host="127.0.0.2", base_url="http://127.0.0.2")
    assert client.get("/v2").status_code == 200
    refused(client.get("/v2", headers={"Host": "evil.example"}), 421, "wrong_host")


def test_all_origins(started):
    client = started("toy", allow_origin=("*",))
    answer = client.get("/v2", headers={"Origin": "https://b.example"})
    assert answer.headers["access-control-allow-origin"] == "*"


def test_headers_that_browsers_obey(client):
    for path in ("/v2", "/", "/nope"):
        headers = client.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert "server" not in headers
    assert client.get("/v2").headers["content-security-policy"].startswith("default-src 'none'")
    policy = client.get("/").headers["content-security-policy"]
    assert policy.startswith("default-src 'self'; img-src 'self' data: blob:; media-src blob:")
    assert "unsafe" not in policy
