"""Text towers: tokenizers, masks, and what a checkpoint rebuilds."""

import pytest
import torch

from tests.models.tiny_encoder import write_tiny_encoder
from vfm.models.text import EncoderTextTower, ProjectedTextTower, SmallTextTower, train_tokenizer

TEXTS = [
    "a photo of a red apple.",
    "a picture of a green pear.",
    "Rotkäppchen",
    "日本語 <pad> <end>",
]
SMALL = {"width": 16, "depth": 2, "num_heads": 2, "context": 12, "vocab_size": 300}


def build(tower):
    torch.manual_seed(0)
    tower.build(TEXTS)
    return tower.eval()


@pytest.mark.parametrize("kind", ["small", "encoder"])
def test_what_fills_up_a_text_changes_nothing_and_a_checkpoint_rebuilds_the_tower(tmp_path, kind):
    if kind == "small":
        tower, again = build(SmallTextTower(**SMALL)), SmallTextTower(**SMALL)
    else:
        pytest.importorskip("transformers")
        folder = write_tiny_encoder(tmp_path)
        # A checkpoint needs the folder no more.
        tower = build(EncoderTextTower(folder, context=12))
        again = EncoderTextTower(tmp_path / "gone", context=12)
    texts = ["a photo of a cat", "cat", ""]
    tokens = tower.tokenize(texts)
    assert tokens.shape[1] < 12
    with torch.no_grad():
        together = tower(tokens)
        for text, vector in zip(texts, together, strict=True):
            torch.testing.assert_close(tower(tower.tokenize([text]))[0], vector)
        full = torch.nn.functional.pad(tokens, (0, 12 - tokens.shape[1]), value=tower.pad)
        torch.testing.assert_close(tower(full), together)
        assert together.isfinite().all()
        assert (together[0] - together[1]).norm() > 1e-4
        again.restore(tower.describe())
        again.load_state_dict(tower.state_dict())
        torch.testing.assert_close(again.eval()(again.tokenize(texts)), together)


def test_every_text_has_tokens_and_none_stands_for_a_mark():
    tokenizer = train_tokenizer(TEXTS, 300)
    size = tokenizer.get_vocab_size()
    assert size <= 300
    for text in (*TEXTS, "\U0001f600", "", "<pad>"):
        *tokens, last = tokenizer.encode(text).ids
        assert last == size + 1
        assert max(tokens, default=0) < size
    assert len(tokenizer.encode("a photo of a red apple.").ids) < len("a photo of a red apple.")


def test_long_texts_are_cut_and_counted():
    tower = build(SmallTextTower(**SMALL))
    texts = ["apple", "a photo of a red apple. " * 9]
    assert tower.count_cut(texts) == 1
    tokens = tower.tokenize(texts)
    assert tokens.shape == (2, 12)
    assert tokens[1, -1] == tower.pad + 1  # the mark of the end stays


def test_a_projected_tower_gives_vectors_of_norm_one():
    tower = ProjectedTextTower(build(SmallTextTower(**SMALL)))
    tower.prepare(6)
    vectors = tower(tower.tower.tokenize(TEXTS))["text_embedding"]
    assert vectors.shape == (4, 6)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(4))


def test_what_makes_no_tower_is_refused(tmp_path):
    for arguments, message in (
        ({"width": 10, "num_heads": 4}, r"width is 10, depth 4 and num_heads 4\. Give 1 or more"),
        ({"vocab_size": 8}, r"vocab_size is 8\. Give 256 or more"),
        ({"context": 1}, r"context is 1\. Give a number from 2 to 8192"),
    ):
        with pytest.raises(ValueError, match=message):
            SmallTextTower(**arguments)
    with pytest.raises(ValueError, match=r"There is no tokenizer .* have one made of the texts"):
        build(SmallTextTower(tokenizer=tmp_path / "tokenizer.json"))
    tokenizer = train_tokenizer(TEXTS, 300)
    tokenizer.no_padding()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(
        ValueError, match=r"has no token that fills up texts \(looked for \[PAD\], <pad>"
    ):
        build(SmallTextTower(tokenizer=tmp_path / "tokenizer.json"))
    pytest.importorskip("transformers")
    with pytest.raises(
        ValueError, match=r"holds no text encoder .* Give a folder with config\.json"
    ):
        build(EncoderTextTower(tmp_path / "none"))
    folder = write_tiny_encoder(tmp_path)
    with pytest.raises(ValueError, match=r"context is 64, and the text encoder knows 16 tokens"):
        build(EncoderTextTower(folder))
