"""Who may ask what: bearer tokens, the Host header, other origins, and headers that browsers obey."""

import hmac
import ipaddress
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from vfm_runtime.errors import VfmError
from vfm_runtime.server.errors import ApiError
from vfm_runtime.server.settings import Settings

TOKENS_VARIABLE = "VFM_TOKENS"
"""Environment variable of bearer tokens, separated by commas."""

LEAST_TOKEN = 16
"""Characters of the shortest token."""

PAGE_POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; media-src blob:; object-src 'none'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
"""Content-Security-Policy of the pages: nothing from elsewhere, no code in the page itself."""

_BARE_POLICY = "default-src 'none'; frame-ancestors 'none'"
_GUARDED: Final = ("/predict", "/v2/models", "/metrics")
_TOKEN = re.compile(r"[\x21-\x7e]+")
_PORT = re.compile(r":\d{0,5}$")
_LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
_METHODS = "GET, POST, OPTIONS"
_REQUEST_HEADERS = (
    "Authorization, Content-Type, Inference-Header-Content-Length, X-Request-Id, X-Timeout-Ms"
)
_ANSWER_HEADERS = "Inference-Header-Content-Length, Retry-After, X-Request-Id"


class SecurityError(VfmError, ValueError):
    """The server would be open to strangers, or its tokens cannot be used; says the remedy."""


def read_tokens(settings: Settings, environ: Mapping[str, str] = os.environ) -> tuple[bytes, ...]:
    """Return the bearer tokens, from the environment and the file; none where neither is given.

    Args:
        settings: Names the file.
        environ: Holds `VFM_TOKENS`.

    Raises:
        SecurityError: The file cannot be read, or a token is too short or has odd characters.
    """
    words = [(word, TOKENS_VARIABLE) for word in environ.get(TOKENS_VARIABLE, "").split(",")]
    if settings.token_file is not None:
        name = str(settings.token_file)
        lines = _lines(settings.token_file)
        words += [(line, name) for line in lines]
        if not any(line.strip() for line in lines):
            # Whoever names a file wants tokens: an empty one must not open the server.
            raise SecurityError(f"{name} holds no token. Write one a line into it.")
    return tuple(_checked(word.strip(), where) for word, where in words if word.strip())


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SecurityError(
            f"The token file {path} cannot be read ({error}). Check its path and its permissions."
        ) from error


def _checked(word: str, where: str) -> bytes:
    # The token itself is not shown: errors end up in logs.
    if len(word) < LEAST_TOKEN:
        raise SecurityError(
            f"A token in {where} has {len(word)} characters; {LEAST_TOKEN} is the least. Make one "
            'with: python -c "import secrets; print(secrets.token_urlsafe())"'
        )
    if _TOKEN.fullmatch(word) is None:
        raise SecurityError(
            f"A token in {where} holds spaces or characters outside ASCII, which a header cannot "
            'carry. Make one with: python -c "import secrets; print(secrets.token_urlsafe())"'
        )
    return word.encode("ascii")


def is_loopback(host: str) -> bool:
    """Tell whether an address to listen on is reached from this machine alone.

    Args:
        host: A name or an address.
    """
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check_exposure(settings: Settings, tokens: Sequence[bytes]) -> None:
    """Refuse to listen where strangers can reach a server without tokens.

    Args:
        settings: Names the host.
        tokens: What `read_tokens` gave.

    Raises:
        SecurityError: The host is no loopback address and there are no tokens.
    """
    if not tokens and not is_loopback(settings.host):
        raise SecurityError(
            f"Host {settings.host} can be reached from other machines, and no token is set. Set "
            f"{TOKENS_VARIABLE} or --token-file (one token a line, {LEAST_TOKEN} characters or "
            "more), or listen on 127.0.0.1."
        )


class Gate:
    """Decides, from its head alone, whether a request goes on; knows the headers of every answer."""

    def __init__(self, settings: Settings, tokens: Sequence[bytes]) -> None:
        self._tokens = tuple(tokens)
        self._origins = frozenset(settings.allow_origin)
        # A page of another site can make its own name lead to 127.0.0.1 (DNS rebinding); a browser
        # then sends that name. With tokens, the page lacks them.
        self._only_local = not tokens and is_loopback(settings.host)
        self._names = {*_LOCAL_NAMES, settings.host.strip("[]").lower()}

    def check(
        self,
        scope: Mapping[str, Any],
        headers: Mapping[bytes, bytes],
        *,
        needs_token: bool = True,
    ) -> None:
        """Refuse a request that may not be made.

        Args:
            scope: Of ASGI; its method and path count.
            headers: By name in lower case.
            needs_token: Whether what is guarded takes a token.

        Raises:
            ApiError: The host is not this machine, the page that asks is of another site, or the token is missing or
                wrong.
        """
        if self._only_local and _host_name(headers.get(b"host", b"")) not in self._names:
            raise ApiError(
                421,
                "Without tokens this server answers requests for localhost, 127.0.0.1 and [::1] "
                "alone, and the Host header names another. Use one of those, or set tokens.",
            )
        if self._only_local and scope["method"] == "POST":
            self._check_origin(headers.get(b"origin"))
        if needs_token and self._tokens and _is_guarded(scope["path"]):
            self._check_token(headers.get(b"authorization"))

    def _check_origin(self, origin: bytes | None) -> None:
        """Any page that a user of this machine looks at could send pictures here, though not read the answers."""
        if origin is None or self._allowed(origin) is not None:
            return
        name = _host_name(origin.partition(b"://")[2])
        if name not in self._names:
            raise ApiError(
                403,
                "Without tokens this server answers no pages of other sites. Allow the site with --allow-origin, or "
                "set tokens.",
                "wrong_origin",
            )

    def _check_token(self, value: bytes | None) -> None:
        scheme, _, given = (value or b"").partition(b" ")
        given = given.strip()
        # Each is compared, so that the time tells nothing of which one is nearly right.
        matches = [hmac.compare_digest(given, token) for token in self._tokens]
        if scheme.lower() == b"bearer" and any(matches):
            return
        what = "is missing" if value is None else "is not one of those that this server knows"
        raise ApiError(
            401,
            f"The token {what}. Send the header `Authorization: Bearer TOKEN`.",
            headers={"WWW-Authenticate": "Bearer"},
        )

    def headers(self, origin: bytes | None, *, is_page: bool) -> list[tuple[bytes, bytes]]:
        """Headers that every answer gets.

        Args:
            origin: The Origin header of the request.
            is_page: Whether the answer is HTML.
        """
        policy = PAGE_POLICY if is_page else _BARE_POLICY
        made = {
            "Content-Security-Policy": policy,
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
        }
        if self._origins:
            made["Vary"] = "Origin"
        allowed = self._allowed(origin)
        if allowed is not None:
            made["Access-Control-Allow-Origin"] = allowed
            made["Access-Control-Expose-Headers"] = _ANSWER_HEADERS
        return [(name.lower().encode(), value.encode("latin-1")) for name, value in made.items()]

    def preflight(self, origin: bytes | None) -> dict[str, str] | None:
        """Headers of the answer to a browser that asks whether it may ask; None where it may not.

        Args:
            origin: The Origin header of the request.
        """
        if self._allowed(origin) is None:
            return None
        return {
            "Access-Control-Allow-Methods": _METHODS,
            "Access-Control-Allow-Headers": _REQUEST_HEADERS,
            "Access-Control-Max-Age": "600",
        }

    def _allowed(self, origin: bytes | None) -> str | None:
        if origin is None:
            return None
        text = origin.decode("latin-1")
        if text in self._origins:
            return text
        return "*" if "*" in self._origins else None


def _host_name(value: bytes) -> str:
    text = value.decode("latin-1").strip().lower()
    return _PORT.sub("", text).strip("[]") if text != "::1" else text


def _is_guarded(path: str) -> bool:
    # Two slashes are not one to the router, so nothing guarded is reached by another spelling.
    return any(path == start or path.startswith(f"{start}/") for start in _GUARDED)
