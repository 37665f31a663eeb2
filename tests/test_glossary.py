"""The glossary is short, and what each word names exists."""

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MOST_TERMS = 40
TEXT = (ROOT / "recipes" / "GLOSSARY.md").read_text(encoding="utf-8")
ROWS = [line.strip("| ").split(" | ") for line in TEXT.splitlines() if line.startswith("| ")][2:]


def test_the_glossary_is_short_sorted_and_linked():
    terms = [row[0] for row in ROWS]
    assert 20 < len(terms) <= MOST_TERMS
    assert terms == sorted(terms, key=str.lower)
    assert "(GLOSSARY.md)" in (ROOT / "recipes" / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_a_term_names_a_file_or_class_that_exists(row):
    _, meaning, where = row
    assert len(meaning) > 20
    (target,) = re.findall(r"`([^`]+)`", where)
    if "/" in target:
        assert (ROOT / target).is_file() or (ROOT / "export" / target).is_file()
    else:
        module, name = target.split(".")
        assert hasattr(importlib.import_module(module), name)
