"""`vfm search`: the exact nearest, filters that are parsed or refused, a table, JSON and a page."""

import json
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.image_folders import write_image_folder
from vfm.cli import main
from vfm.embed.store import EmbeddingStore, StoreModel
from vfm.models.backbone import Backbone
from vfm.search.exact import search_store
from vfm.search.filters import FilterError, parse_filter

pytest.importorskip("lancedb")
COLUMNS = {"label": "text", "my column": "text", "score": "number", "seen": "boolean"}


def has(column, comparison):
    return f"(`{column}` IS NOT NULL AND `{column}` {comparison})"


@pytest.mark.parametrize(
    ("text", "expression"),
    [
        ("label = 'cat'", "((" + has("label", "= 'cat'") + "))"),
        (
            "label='it''s' AND score >= -1.5e2",
            "((" + has("label", "= 'it''s'") + " AND " + has("score", ">= -1.5e2") + "))",
        ),
        (
            "label in ('a', 'b') or not seen = true",
            "((" + has("label", "IN ('a', 'b')") + ") OR ((NOT " + has("seen", "= true") + ")))",
        ),
        ("label not in ('a')", "(((NOT " + has("label", "IN ('a')") + ")))"),
        (
            "(score<1 or score > 2)",
            "((((" + has("score", "< 1") + ") OR (" + has("score", "> 2") + "))))",
        ),
        (
            "\"my column\" != 'x; DROP TABLE --'",
            "(((NOT " + has("my column", "= 'x; DROP TABLE --'") + ")))",
        ),
    ],
)
def test_a_filter_is_parsed(text, expression):
    assert parse_filter(text, COLUMNS) == expression


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("labl = 'cat'", r"no column 'labl'\. Did you mean 'label'\? Columns: label, my column"),
        ("label = 3", "the column 'label' holds text, so a value such as 'cat' is expected, not 3"),
        ("score = 'x'", "the column 'score' holds number"),
        ("seen = 1", "true or false is expected"),
        ("label = cat", "is expected, not cat"),
        ("label like 'c%'", "after 'label' one of = .* is expected, not like"),
        ("label = 'a'; DROP TABLE x", "';.*is nothing that a filter knows"),
        ("label = 'a' -- x", "is nothing that a filter knows"),
        ("label = 'a' union select 1", "cannot go on with union"),
        ("length(label) = 3", "no column 'length'"),
        ("label = 'a", "is nothing that a filter knows"),
        ("(label = 'a'", "a parenthesis is not closed before the end"),
        ("label in ()", r"is expected, not \)"),
        ("", "a column is expected, not the end"),
        ("1 = 1", "a column is expected, not 1"),
        ("(" * 60 + "label = 'a'", "nested too deeply"),
        ("label = 'a'" + " " * 10_000 + "x", "at most 10,000 are read"),
    ],
)
def test_what_is_no_filter_is_refused_with_what_is(text, cause):
    with pytest.raises(FilterError, match=cause):
        parse_filter(text, COLUMNS)


@dataclass
class Row:
    columns: dict = field(default_factory=lambda: {"label": "a", "my column": "b", "score": 0.5})


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """A store of 3,000 vectors that no norm 1 has, made without a model."""
    uri = str(tmp_path_factory.mktemp("filled") / "store")
    facts = dict(fingerprint="f", model="m", base=None, source="pooled", normalize=False, width=16)
    store = EmbeddingStore.create(uri, StoreModel(**facts), [Row()])
    random = np.random.default_rng(0)
    vectors = random.normal(size=(3000, 16)).astype(np.float32) * random.uniform(1, 9, (3000, 1))
    rows = {
        "path": [f"/x/{i}.png" for i in range(3000)],
        "label": [f"it's {i % 3}" for i in range(3000)],
        "my column": [None if i % 2 else "b" for i in range(3000)],
        "score": [i / 3000 for i in range(3000)],
    }
    for start in range(0, 3000, 1000):
        part = slice(start, start + 1000)
        store.write(vectors[part].astype(np.float32), {k: v[part] for k, v in rows.items()})
    return store, vectors, rows


@pytest.mark.parametrize(
    ("where", "keep"),
    [
        (None, lambda i: True),
        ("label = 'it''s 1' and score < 0.5", lambda i: i % 3 == 1 and i < 1500),
        ("\"my column\" in ('b', 'c') or not score < 0.9", lambda i: i % 2 == 0 or i >= 2700),
        # A row without a value has another one than b.
        ("\"my column\" != 'b' and score < 0.1", lambda i: i % 2 == 1 and i < 300),
        ("not \"my column\" in ('b') and score < 0.1", lambda i: i % 2 == 1 and i < 300),
    ],
)
def test_the_nearest_are_those_of_a_plain_product(filled, where, keep):
    store, vectors, _ = filled
    query = np.random.default_rng(1).normal(size=16).astype(np.float32)
    expression = None if where is None else parse_filter(where, store.columns)
    result = search_store(store, query, count=7, where=expression, columns=["label"])
    cosines = vectors @ query / np.linalg.norm(vectors, axis=1) / np.linalg.norm(query)
    indices = [i for i in np.argsort(-cosines) if keep(i)][:7]
    assert [one.path for one in result.neighbors] == [f"/x/{i}.png" for i in indices]
    np.testing.assert_allclose(
        [o.similarity for o in result.neighbors], cosines[indices], atol=1e-5
    )
    assert result.neighbors[0].columns == {"label": f"it's {indices[0] % 3}"}
    assert (result.recall, result.num_searched) == (1.0, sum(map(keep, range(3000))))


def test_the_command_finds_lists_and_draws(tmp_path, capsys):
    torch.manual_seed(1)
    weights = tmp_path / "vit.safetensors"
    save_file(Backbone("test_vit", pretrained=False).model.state_dict(), weights)
    images = write_image_folder(tmp_path / "images", num_classes=2, images_per_class=4)
    store, page = str(tmp_path / "store"), tmp_path / "page.html"
    words = ["embed", images, "--to", store, "--model", "test_vit", "--base", weights]
    assert main([str(word) for word in words]) == 0
    query = sorted(images.rglob("*.png"))[5]
    label = query.parent.name
    capsys.readouterr()
    torch.manual_seed(2)
    other = tmp_path / "other.safetensors"
    save_file(Backbone("test_vit2", pretrained=False).model.state_dict(), other)
    words = ["search", store, "--image", str(query), "-k", "3", "--where", f"label = '{label}'"]
    assert main([*words, "-o", str(page)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["rank", "similarity", "label", "split", "path"]
    assert lines[1].split() == ["1", "1.0000", label, "-", str(query)]
    assert lines[4].startswith("Recall 1 (exact): 4 of 8 vectors compared")
    assert page.read_text().count("data:image/png") == 2
    assert main([*words, "--json", "true"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["recall"], answer["num_searched"], len(answer["neighbors"])) == (1.0, 4, 3)
    assert main([*words[:4], "--where", "label = 'none'"]) == 0
    assert "No image: the filter holds for no row." in capsys.readouterr().out
    for more, cause in (
        (["--model", "test_vit2"], "holds other vectors: of test_vit (pooled"),
        (["-k", "0"], "-k is 0. Ask for at least 1"),
        (["--where", "x = 1"], "there is no column 'x'"),
    ):
        more = [*more, "--base", str(other)] if "--model" in more else more
        assert main([*words[:4], *more]) == 1
        assert cause in capsys.readouterr().err
