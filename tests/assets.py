"""What a test says whose fetched files are not there."""

import os
from typing import NoReturn

import pytest

from tests import fetch_assets


def missing(what: str, remedy: str = f"Run: {fetch_assets.COMMAND}") -> NoReturn:
    """Skip the test; where files must be there, as in the whole check, fail it.

    Args:
        what: A sentence's subject and verb, such as `The photos are`.
        remedy: What to do.
    """
    message = f"{what} missing. {remedy}"
    if os.environ.get("VFM_REQUIRE_ASSETS") == "1":
        pytest.fail(message)
    pytest.skip(message)
