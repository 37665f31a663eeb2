"""`vfm index`: settings that reach a recall, said with every answer, stale after writes; exact search beside it."""

import json
import re

import numpy as np
import pytest
from PIL import Image
from vfm_runtime.errors import DataError, OptionError

from tests.search.stores import write_store
from vfm.cli import main
from vfm.embed.location import lock_store
from vfm.embed.store import EmbeddingStore
from vfm.search import command, index
from vfm.search.exact import load_block, search_blocks
from vfm.search.index import IndexFacts, build_index, search_index

pytest.importorskip("lancedb")
WIDTH = 16


@pytest.fixture(scope="module", autouse=True)
def few_queries():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index, "_NUM_QUERIES", 40)
        yield


@pytest.fixture(scope="module")
def indexed(tmp_path_factory):
    """A store of bursts of 5 around 400 points, with an index."""
    random = np.random.default_rng(0)
    points = np.repeat(random.normal(size=(400, WIDTH)), 5, axis=0)
    vectors = (points + random.normal(size=points.shape) / 9).astype(np.float32)
    store = write_store(str(tmp_path_factory.mktemp("indexed") / "store"), vectors)
    said = []
    facts = build_index(store, 0.9, progress=said.append)
    assert "built in" in said[1]
    return store, facts


def test_an_index_reaches_its_recall_and_says_it(indexed):
    store, facts = indexed
    assert [setting.count for setting in facts.settings] == [10, 100]
    assert all(0.9 <= setting.recall <= 1 for setting in facts.settings)
    assert IndexFacts.read(EmbeddingStore.open(store.uri)) == facts
    queries = np.random.default_rng(1).normal(size=(60, WIDTH)).astype(np.float32)
    truth = search_blocks([load_block(store)], queries, count=10)
    hits = 0
    for query, true in zip(queries, truth, strict=True):
        result = search_index(store, facts, query, count=10)
        assert result.recall == facts.settings[0].recall
        exact = {one.path: one.similarity for one in true.neighbors}
        near = [one for one in result.neighbors if one.path in exact]
        np.testing.assert_allclose(
            [one.similarity for one in near], [exact[one.path] for one in near], atol=1e-5
        )
        hits += len(near)
    assert hits / 600 > 0.85
    text = facts.describe(facts.settings[0])
    assert re.search(r"Recall@10 [01]\.\d{3} .*with 40 of 2,000 rows, 0\.9 was asked for", text)
    assert "STALE" not in text
    assert facts.select(11).count == 100
    with pytest.raises(OptionError, match="-k is 101, and the index was measured for up to 100"):
        search_index(store, facts, queries[0], count=101)


def test_compaction_leaves_the_partitions(indexed):
    store, _ = indexed
    store.compact()
    search = store._table.search(np.ones(WIDTH, np.float32), vector_column_name="vector")
    plan = search.distance_type("cosine").nprobes(1).limit(5).analyze_plan()
    (ranked,) = re.findall(r"partitions_ranked=(\d+)", plan)
    assert int(ranked) > 20
    assert IndexFacts.read(store) is not None


def test_rows_written_since_are_found_and_make_it_stale(tmp_path, monkeypatch):
    random = np.random.default_rng(0)
    store = write_store(
        str(tmp_path / "store"), random.normal(size=(1200, WIDTH)).astype(np.float32)
    )
    build_index(store, 0.5)
    new = random.normal(size=(7, WIDTH)).astype(np.float32)
    write_store(store.uri, new, start=5000)
    opened = EmbeddingStore.open(store.uri)
    facts = IndexFacts.read(opened)
    assert "STALE: 7 rows were written since" in facts.describe(facts.settings[0])
    assert search_index(opened, facts, new[3], count=1).neighbors[0].path == "/x/05003.png"
    # An index that was not measured to the end is none.
    monkeypatch.setattr(index, "search_blocks", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        build_index(opened)
    assert IndexFacts.read(opened) is None


def test_what_cannot_be_indexed_is_refused(indexed, tmp_path, capsys):
    store, _ = indexed
    for recall in (0, 1, 1.5):
        with pytest.raises(OptionError, match=r"--recall is .* Give a fraction below 1.*exact"):
            build_index(store, recall)
    with lock_store(store.uri):
        assert main(["index", store.uri]) == 1
    assert "Another process is writing to" in capsys.readouterr().err
    small = write_store(str(tmp_path / "small"), np.ones((5, WIDTH), np.float32))
    with pytest.raises(DataError, match=r"has 5 rows; .* at least 1,000.*exact search is quick"):
        build_index(small)


def test_the_command_searches_by_the_index_and_says_so(indexed, monkeypatch, capsys, tmp_path):
    store, _ = indexed
    picture = tmp_path / "query.png"
    Image.new("RGB", (40, 30)).save(picture)
    seen = []

    def embed_query(_, picture, **__):
        seen.append(np.shape(picture))
        return np.ones(WIDTH, np.float32), None

    monkeypatch.setattr(command, "embed_query", embed_query)
    words = ["search", store.uri, "--image", str(picture)]

    def run(*more):
        status = main([*words, *more])
        shown = capsys.readouterr()
        return shown.out if status == 0 else shown.err

    assert "Recall 1 (exact)" in run()  # quick enough
    monkeypatch.setattr(command, "EXACT_UP_TO", 1999)
    assert "through an index; measured on" in run()
    answer = json.loads(run("--json", "true"))
    assert (answer["exact"], answer["index"]["num_rows"]) == (False, 2000)
    assert "Recall 1 (exact): 2,000 of 2,000" in run("--exact", "true")
    assert "Recall 1 (exact)" in run("-k", "101")
    assert "Recall 1 (exact)" in run("--where", "path != 'x'")
    # Without an index a large store says what to do.
    monkeypatch.setattr(command.IndexFacts, "read", lambda _: None)
    assert f"Exact and slow; build an index: vfm index {store.uri} --recall 0.95" in run()

    run("--box", "5,6,20,10")
    assert seen[-1] == (10, 20, 3)
    assert "--box is '5,6'. Give left, top, width and height in whole pixels" in run("--box", "5,6")
    error = run("--box", "30,0,11,9")
    assert "does not lie in" in error
    assert "40 pixels wide and 30 high" in error
    words = ["search", store.uri, "--text", "a cat"]
    assert "Recall 1 (exact)" in run()  # what an index finds of words was not measured
    assert main(["index", store.uri, "--recall", "1"]) == 1
    assert "--recall is 1." in capsys.readouterr().err
