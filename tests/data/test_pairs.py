"""Pairs of images and texts: from tables and shards, several texts an image, and what is left out or refused."""

import tarfile
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from vfm.data import ImageData, PairData, PairShards
from vfm.data.token_batches import TokenBatchSampler
from vfm.preprocess import Preprocess
from vfm.spec import build

QUIET = {"num_workers": 0, "batch_size": 4, "val_fraction": 0.0}


def write_pairs(folder, rows, name="pairs.csv", header="path,text,label"):
    """Write a table, and the images that it names."""
    for row in rows:
        path = folder / row.split(",")[0]
        Image.fromarray(np.full((9, 9, 3), len(path.name), np.uint8)).save(path)
    (folder / name).write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return folder / name


def open_pairs(data):
    data.preprocess = Preprocess(size=(8, 8))
    data.setup("fit")
    return data


def list_texts(data, epoch):
    """Texts of a training epoch by image."""
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)
    return {
        name: text
        for batch in loader
        for name, text in zip(batch["name"], batch["texts"], strict=True)
    }


def test_an_image_has_a_text_of_its_cells_columns_and_rows(tmp_path):
    rows = [
        "a.png,a red apple|ein Apfel,fruit",
        "a.png,an apple,fruit",
        "b.png,a pear,",
        "c.png,,fruit",
        "d.png, ,",
    ]
    table = write_pairs(tmp_path, rows)
    data = PairData(table, text_separator="|", label_column="label", **QUIET)
    with pytest.warns(
        UserWarning, match=r"1 of the 4 images have no text .* such as 'd\.png'; they are left out"
    ):
        open_pairs(data)
    assert data.labels == ("fruit",)
    records = {r.name: (r.label, r.texts) for r in data.records["train"]}
    assert records == {
        "a.png": (0, ("a red apple", "ein Apfel", "an apple")),
        "b.png": (-1, ("a pear",)),
        "c.png": (0, ()),
    }
    shown = [list_texts(data, epoch) for epoch in range(20)]
    assert shown[3] == list_texts(data, 3)
    assert {epoch["a.png"] for epoch in shown} == set(records["a.png"][1])
    assert {epoch["c.png"] for epoch in shown} == {""}
    # A run's own table gives the same pairs, whatever becomes of the other.
    (tmp_path / "run").mkdir()
    again = build(data.keep_split(tmp_path / "run"), base=ImageData)
    table.unlink()
    again.setup("fit")
    assert again.fingerprint() == data.fingerprint()
    strict = PairData(write_pairs(tmp_path, rows), label_column="label", needs_text=True, **QUIET)
    with pytest.warns(UserWarning, match=r"2 of the 4 images have no text"):
        strict.setup("fit")
    assert len(strict.records["train"]) == 2


def test_texts_come_from_several_columns_and_lists_of_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    write_pairs(tmp_path, ["a.png,x,", "b.png,x,"])
    columns = {
        "path": ["a.png", "b.png"],
        "en": [["red apple", "apple"], ["pear"]],
        "de": ["Apfel", None],
    }
    parquet.write_table(pyarrow.table(columns), tmp_path / "pairs.parquet")
    data = open_pairs(PairData(tmp_path / "pairs.parquet", text_column=["en", "de"], **QUIET))
    assert [r.texts for r in data.records["train"]] == [("red apple", "apple", "Apfel"), ("pear",)]


def test_a_missing_image_shrinks_the_batch_with_its_text(tmp_path):
    table = write_pairs(tmp_path, [f"{i}.png,text {i}," for i in range(4)])
    (tmp_path / "2.png").write_bytes(b"broken")
    (batch,) = open_pairs(PairData(table, **QUIET)).train_dataloader()
    assert len(batch["image"]) == len(batch["texts"]) == 3
    assert all(
        name.removesuffix(".png") == text[-1]
        for name, text in zip(batch["name"], batch["texts"], strict=True)
    )
    assert [name for name, _ in batch["skipped"]] == ["2.png"]


def test_rows_that_contradict_each_other_are_refused(tmp_path):
    header = "path,text,split"
    for rows, arguments, message in (
        (
            ["a.png,x,train", "a.png,y,val"],
            {},
            r"'a\.png' has the split 'train' and the split 'val', in lines 2 and 3",
        ),
        (
            ["a.png,x,", "b.png,,"],
            {"text_column": "caption"},
            r"no column 'caption' \(--data.text_column\)",
        ),
        (
            ["a.png,,train", "b.png,,train"],
            {},
            r"2 of the 2 images have no text .* Name where the texts are",
        ),
    ):
        table = write_pairs(tmp_path, rows, header=header)
        with pytest.raises(ValueError, match=message):
            PairData(table, **arguments, **QUIET).setup("fit")
    with pytest.raises(ValueError, match=r"text_column is \[\] and text_separator"):
        PairData(tmp_path / "pairs.csv", text_column=[])


def test_shards_hold_texts(tmp_path):
    with tarfile.open(tmp_path / "pairs.tar", "w") as tar:
        for i, text in enumerate(["an apple\nein Apfel", "", "a pear"]):
            image = BytesIO()
            Image.fromarray(np.full((9, 9, 3), i, np.uint8)).save(image, "png")
            for ending, content in (("png", image.getvalue()), ("txt", text.encode())):
                entry = tarfile.TarInfo(f"{i}.{ending}")
                entry.size = len(content)
                tar.addfile(entry, BytesIO(content))
    data = PairShards(str(tmp_path / "pairs.tar"), num_workers=0, batch_size=4)
    with pytest.warns(UserWarning, match=r"1 of the 3 images have no text"):
        open_pairs(data)
    (batch,) = data.train_dataloader()
    assert set(batch["name"]) == {"0", "2"}
    assert set(batch["texts"]) <= {"an apple", "ein Apfel", "a pear"}
    assert len(batch["texts"]) == 2


def count_words(records):
    return np.array([max(len(text.split()) for text in record.texts) for record in records])


def open_budget(folder, lengths, count=count_words, **options):
    """Pairs whose i-th image has a text of so many words."""
    table = write_pairs(folder, [f"{i}.png,{'a ' * n}," for i, n in enumerate(lengths)])
    data = PairData(table, **QUIET | options)
    data.count_tokens = count
    return open_pairs(data)


def list_batches(loader, epoch):
    loader.sampler.set_epoch(epoch)
    return [batch["index"].tolist() for batch in loader]


def test_a_budget_of_tokens_joins_texts_of_like_length(tmp_path):
    lengths = [3, 40, 4, 5, 39, 4, 2, 7, 20, 3, 21, 2, 8, 3]
    data = open_budget(tmp_path, lengths, token_budget=80, batch_size=6)
    loader = data.train_dataloader()
    epochs = [list_batches(loader, epoch) for epoch in range(4)]
    assert {len(batches) for batches in epochs} == {len(loader)}
    assert epochs[0] != epochs[1]
    assert list_batches(loader, 2) == epochs[2]
    words = count_words(data.records["train"])
    for batches in epochs:
        assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
        for batch in batches:
            assert 2 <= len(batch) <= 6
            assert len(batch) * words[batch].max() <= 80
        filled = sum(len(batch) * words[batch].max() for batch in batches)
        assert filled < 1.4 * words.sum()
    # In the middle of an epoch the rest of its batches is left.
    state = loader.state_dict()
    again = data.train_dataloader()
    again.load_state_dict({**state, "epoch": 3, "batches": 2})
    assert [batch["index"].tolist() for batch in again] == epochs[3][2:]
    with pytest.raises(ValueError, match=r"have changed: token budget \(99 to 80\)"):
        again.load_state_dict({**state, "batches": 1, "token_budget": 99})


def test_ranks_share_each_batch_of_a_budget():
    counts = np.random.default_rng(0).integers(2, 60, 101)
    ranks = [
        TokenBatchSampler(counts, budget=200, most=16, rank=rank, num_replicas=2)
        for rank in range(2)
    ]
    batches = [[[index for _, index in batch] for batch in sampler] for sampler in ranks]
    assert [len(b) for b in batches[0]] == [len(b) for b in batches[1]]
    assert len(batches[0]) == len(ranks[0])
    seen = [i for rank in batches for b in rank for i in b]
    assert len(seen) == len(set(seen)) == 100
    for pair in zip(*batches, strict=True):
        assert not set(pair[0]) & set(pair[1])
        assert all(len(b) * counts[b].max() <= 200 for b in pair)


def test_a_budget_that_cannot_be_met_is_refused(tmp_path):
    data = open_budget(tmp_path, [3, 50], token_budget=60)
    with pytest.raises(
        ValueError,
        match=r"token_budget is 60, and the longest training text takes 50 tokens: two of them, .* Give 100 or more",
    ):
        data.train_dataloader()
    data.count_tokens = None
    with pytest.raises(
        ValueError,
        match=r"token_budget is 60, and the task has no text tower .* give --model ContrastiveTask",
    ):
        data.train_dataloader()


def test_a_budget_of_tokens_that_saves_nothing_is_said(tmp_path):
    data = open_budget(
        tmp_path, [3] * 8, lambda records: np.full(len(records), 77), token_budget=310
    )
    with pytest.warns(
        UserWarning,
        match=r"token_budget is 310, and every training text takes 77 tokens, .* open_clip: it saves nothing\. "
        r"Leave it out \(--data.token_budget\) and give --data.batch_size 4, which is the same",
    ):
        assert len(data.train_dataloader()) == 2
