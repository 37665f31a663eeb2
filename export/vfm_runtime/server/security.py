"""Security: bearer tokens, exposure, the Host and Origin headers, and headers that browsers obey."""

import hmac
import ipaddress
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, Security
from fastapi.security import HTTPBearer
from starlette.requests import Request

from vfm_runtime.errors import VfmError
from vfm_runtime.server.errors import ApiError
from vfm_runtime.server.settings import Settings

TOKENS_VARIABLE = "VFM_TOKENS"
"""Environment variable of bearer tokens, separated by commas."""

TEACH_TOKENS_VARIABLE = "VFM_TEACH_TOKENS"
"""Environment variable of the tokens of those who may teach, separated by commas."""

MIN_TOKEN_LENGTH = 16
"""Characters of the shortest token."""

PAGE_POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; media-src blob:; object-src 'none'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
"""Content-Security-Policy of the page: nothing from elsewhere, no code in the page itself."""

BARE_POLICY = "default-src 'none'; frame-ancestors 'none'"
"""Content-Security-Policy of everything else."""

_TOKEN = re.compile(r"[\x21-\x7e]+")
_PORT = re.compile(r":\d{0,5}$")
_LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
_MAKE_ONE = 'Make one with: python -c "import secrets; print(secrets.token_urlsafe())"'


class SecurityError(VfmError, ValueError):
    """The server would be open to strangers, or its tokens cannot be used; says the remedy."""


def read_tokens(settings: Settings, environ: Mapping[str, str] = os.environ) -> tuple[bytes, ...]:
    """Return the bearer tokens, from the environment and the file; none where neither is set.

    Raises:
        SecurityError: The file cannot be read, or a token is too short or has odd characters.
    """
    return _read_tokens(TOKENS_VARIABLE, settings.token_file, environ)


def read_teach_tokens(
    settings: Settings, environ: Mapping[str, str] = os.environ
) -> tuple[bytes, ...]:
    """Return the tokens of those who may teach; errors are those of `read_tokens`."""
    return _read_tokens(TEACH_TOKENS_VARIABLE, settings.teach_token_file, environ)


def _read_tokens(
    variable: str, token_file: Path | None, environ: Mapping[str, str]
) -> tuple[bytes, ...]:
    words = [(word, variable) for word in environ.get(variable, "").split(",")]
    if token_file is not None:
        name = str(token_file)
        try:
            lines = token_file.read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise SecurityError(
                f"The token file {name} cannot be read ({error}). Check its path and its permissions."
            ) from error
        words += [(line, name) for line in lines]
        if not any(line.strip() for line in lines):
            # Whoever names a file wants tokens: an empty one must not open the server.
            raise SecurityError(f"{name} holds no token. Write one a line into it.")
    return tuple(_encode_token(word.strip(), source) for word, source in words if word.strip())


def _encode_token(word: str, source: str) -> bytes:
    # The token itself is not shown: errors end up in logs.
    if len(word) < MIN_TOKEN_LENGTH:
        raise SecurityError(
            f"A token in {source} has {len(word)} characters; {MIN_TOKEN_LENGTH} is the least. {_MAKE_ONE}"
        )
    if _TOKEN.fullmatch(word) is None:
        raise SecurityError(
            f"A token in {source} holds spaces or characters outside ASCII, which a header cannot "
            f"carry. {_MAKE_ONE}"
        )
    return word.encode("ascii")


def is_loopback(host: str) -> bool:
    """Tell whether an address to listen on, or a name, is reached from this machine alone."""
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check_exposure(
    settings: Settings, tokens: Sequence[bytes], teach_tokens: Sequence[bytes] = ()
) -> None:
    """Refuse to listen where strangers can reach a server without tokens, or whoever may ask may also teach.

    Raises:
        SecurityError: The host is no loopback address and there are no tokens; or those who may teach have no tokens of
            their own.
    """
    if settings.state is not None and tokens and not set(teach_tokens) - set(tokens):
        raise SecurityError(
            f"With --state and tokens, whoever teaches needs a token of its own. Set {TEACH_TOKENS_VARIABLE} or "
            f"--teach-token-file to others than those of {TOKENS_VARIABLE} and --token-file. {_MAKE_ONE}"
        )
    if not tokens and not is_loopback(settings.host):
        raise SecurityError(
            f"Host {settings.host} can be reached from other machines, and no token is set. Set "
            f"{TOKENS_VARIABLE} or --token-file (one token a line, {MIN_TOKEN_LENGTH} characters or "
            "more), or listen on 127.0.0.1."
        )


class AccessPolicy:
    """Decides, from its head alone, whether a request goes on."""

    def __init__(
        self, settings: Settings, tokens: Sequence[bytes], teach_tokens: Sequence[bytes] = ()
    ) -> None:
        self._tokens = tuple(tokens)
        # Without a token of its own nobody teaches a server that has tokens.
        self._teach_tokens = tuple(token for token in teach_tokens if token not in tokens)
        self._origins = frozenset(settings.allow_origin)
        # A page of another site can make its name lead to 127.0.0.1 (DNS rebinding); a browser then sends that
        # name as Host. Where there are tokens, such a page lacks them.
        self._only_local = not tokens and is_loopback(settings.host)
        self._names = {*_LOCAL_NAMES, settings.host.strip("[]").lower()}

    def check_source(self, method: str, headers: Mapping[bytes, bytes]) -> None:
        """Refuse a request for another host, or from a page of another site, to a server without tokens.

        Raises:
            ApiError: The host is not this machine, or the page is of another site.
        """
        if not self._only_local:
            return
        if _parse_host(headers.get(b"host", b"")) not in self._names:
            raise ApiError(
                421,
                "Without tokens this server answers requests for localhost, 127.0.0.1 and [::1] "
                "alone, and the Host header names another. Use one of those, or set tokens.",
            )
        origin = headers.get(b"origin")
        # Any page that a user of this machine looks at could send pictures here, though not read the answers.
        if method != "POST" or origin is None or self._origins & {origin.decode("latin-1"), "*"}:
            return
        if _parse_host(origin.partition(b"://")[2]) not in self._names:
            raise ApiError(
                403,
                "Without tokens this server answers no pages of other sites. Allow the site with --allow-origin, or "
                "set tokens.",
                "wrong_origin",
            )

    def check_token(self, authorization: str | None) -> None:
        """Refuse a request whose Authorization header holds no token that this server knows, where it has tokens.

        Raises:
            ApiError: The token is missing or wrong.
        """
        self._check(authorization, self._tokens, "of those that this server knows")

    def check_teach_token(self, authorization: str | None) -> None:
        """Refuse a request whose Authorization header holds no token of those who may teach.

        Raises:
            ApiError: The token is missing or wrong.
        """
        if self._tokens or self._teach_tokens:
            self._check(authorization, self._teach_tokens or (b"",), "of those who may teach")

    def _check(self, authorization: str | None, tokens: Sequence[bytes], whose: str) -> None:
        if not tokens:
            return
        scheme, _, word = (authorization or "").encode("latin-1").partition(b" ")
        # Each is compared, so that the time tells nothing of which one is nearly right.
        matches = [hmac.compare_digest(word.strip(), token) for token in tokens]
        if scheme.lower() == b"bearer" and word.strip() and any(matches):
            return
        what = "is missing" if authorization is None else f"is not one {whose}"
        raise ApiError(
            401,
            f"The token {what}. Send the header `Authorization: Bearer TOKEN`.",
            headers={"WWW-Authenticate": "Bearer"},
        )


def _parse_host(value: bytes) -> str:
    text = value.decode("latin-1").strip().lower()
    return _PORT.sub("", text).strip("[]") if text != "::1" else text


def _require_token(scheme: str, check: Callable[[AccessPolicy, str | None], None]) -> Any:
    """Return a dependency of routes that need a token, by the name of its scheme in the OpenAPI document."""
    bearer = HTTPBearer(scheme_name=scheme, auto_error=False)

    async def check_header(request: Request, _: Annotated[object, Security(bearer)]) -> None:
        check(request.app.state.policy, request.headers.get("authorization"))

    return Depends(check_header)


TOKEN = _require_token("bearer", AccessPolicy.check_token)
"""Stands among the dependencies of a route that needs a token where the server has tokens."""

TEACH_TOKEN = _require_token("teach", AccessPolicy.check_teach_token)
"""Stands among the dependencies of a route for those who may teach."""
