"""Words beside images in the torch-free runtime: embedded, searched for, given as labels, or refused."""

import json
import subprocess
import sys

import numpy as np
import pytest
import vfm_runtime
from vfm_runtime.bundle.contract import Contract
from vfm_runtime.bundle.manifest import read_manifest, write_manifest
from vfm_runtime.cli import main
from vfm_runtime.errors import BundleError, ContractError, MissingPackageError, OptionError
from vfm_runtime.search import VectorTable
from vfm_runtime.text import clean_text
from vfm_runtime.zero_shot import ZeroShotModel, fit_zero_shot, make_prompts

from tests.runtime import toy_embedder
from tests.runtime.test_search import SPEC

COLORS = toy_embedder.COLORS


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """A bundle that reads the names of colors, and carries a picture of each."""
    folder = toy_embedder.build(tmp_path_factory.mktemp("text") / "colors", text=True)
    pictures = [toy_embedder.paint(color, 1)[0] for color in COLORS.values()]
    vectors = vfm_runtime.load(folder, device="cpu").embed(pictures)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    contract = read_manifest(folder).contract
    VectorTable(SPEC, vectors, [f"{name}.png" for name in COLORS], {}).write(folder)
    write_manifest(folder, contract)
    return folder


def test_words_are_vectors_among_those_of_images(bundle, capsys):
    model = vfm_runtime.load(bundle, device="cpu")
    one, many = model.embed_text("a RED  cup"), model.embed_text(["red", "blue red"])
    np.testing.assert_array_equal(one, many[0])
    assert many.shape == (2, toy_embedder.WIDTH)
    assert (model.scale, model.bias) == (20.0, None)
    assert [near.path for near in model.search(text="green", k=1)] == ["green.png"]
    assert [rows[0].path for rows in model.search(text=["blue", "red"])] == ["blue.png", "red.png"]
    assert main(["search", str(bundle), "--text", "blue", "-k", "1", "--device", "cpu"]) == 0
    assert capsys.readouterr().out.startswith("blue: 0.9")
    words = ["search", str(bundle), "--text", "blue", "-k", "2", "--json", "--device", "cpu"]
    assert main(words) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["text"], answer["neighbors"][0]["path"]) == ("blue", "blue.png")
    assert main(["info", str(bundle), "--device", "cpu"]) == 0
    assert "text       8 tokens (tokenizer.json)" in capsys.readouterr().out


def test_labels_are_words_in_production(bundle, tmp_path, capsys):
    for name, color in COLORS.items():
        toy_embedder.write_pictures(tmp_path / name, color, 2)
    (tmp_path / "red" / "bad.png").write_bytes(b"none")
    words = [
        "predict",
        str(bundle),
        str(tmp_path),
        "--device",
        "cpu",
        "--labels",
        "red,blue, green",
    ]
    assert main([*words, "--json"]) == 1
    shown = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    for row in shown:
        if "error" not in row:
            assert f"/{row['label']}/" in row["image"]
            assert len(row["top"]) == 3
    assert sum("error" in row for row in shown) == 1
    # As the formula has it: the softmax of scaled cosines with the mean of the prompts.
    model = vfm_runtime.load(bundle, device="cpu")
    classifier = fit_zero_shot(model, make_prompts(["red", "blue"], ["a {}", "{}"]))
    picture = toy_embedder.paint(COLORS["blue"], 1)[0]
    logits = 20 * model.embed_text(["red", "blue"]) @ model.embed(picture)
    scores = np.exp(logits) / np.exp(logits).sum()
    answer = ZeroShotModel(model, classifier).predict(picture)
    np.testing.assert_allclose(answer.scores, scores, atol=1e-5)
    for more, text in [
        (["--template", "a cat"], "'a cat' has 0 times {}"),
        (["--draw", "x"], "only boxes and heatmaps of one can be drawn"),
        (["--group", "a"], "A group has rules for the labels of the bundle, and --labels gives"),
    ]:
        assert main([*words, *more]) in (1, 2)
        assert text in capsys.readouterr().err
    assert main(["predict", str(bundle), str(tmp_path), "--template", "a {}"]) == 2
    assert "--template is a text for labels. Add --labels" in capsys.readouterr().err


def test_texts_are_cleaned_as_open_clip_does():
    for text, clean, cleaned in [
        ("  A  Photo\tof\nX ", "lower", "a photo of x"),
        ("  A  Photo\tof\nX ", "whitespace", "A Photo of X"),
        ("It's a_b, (C)!", "canonicalize", "its a b c"),
        ("&amp;lt;b&amp;gt; schÃ¶n ﬁt", "lower", "<b> schön fit"),
        ("", "lower", ""),
    ]:
        assert clean_text(text, clean) == cleaned


def test_what_is_no_query_of_words_is_refused(bundle, tmp_path, monkeypatch, capsys):
    model = vfm_runtime.load(bundle, device="cpu")
    plain = vfm_runtime.load(toy_embedder.build(tmp_path / "plain"), device="cpu")
    with pytest.raises(OptionError, match="embeds images and has no text tower, so that words are"):
        plain.embed_text("red")
    for texts, text in [
        ([], "There are no texts to embed"),
        ([3], "A text is 3. Give words"),
        ("red <END> x", "holds '<end>', a mark of the tokenizer that words cannot be"),
    ]:
        with pytest.raises(OptionError, match=text):
            model.embed_text(texts)
    for more in ({}, {"text": "red", "images": [np.zeros((9, 9, 3), np.uint8)]}):
        with pytest.raises(OptionError, match="A search is for images or for a text"):
            model.search(**more)
    assert main(["search", str(bundle)]) == 2
    assert "Give IMAGE_OR_FOLDER, or --text." in capsys.readouterr().err
    for package in ("tokenizers", "ftfy"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, package, None)
            with pytest.raises(MissingPackageError, match=rf"{package}, .*'vfm-runtime\[text\]'"):
                vfm_runtime.load(bundle, device="cpu").embed_text("red")


def test_a_broken_text_tower_is_refused(tmp_path):
    short = toy_embedder.build(tmp_path / "short", text=True, length=5)
    with pytest.raises(vfm_runtime.VfmError, match="gives 8 tokens a text, and the model takes 5"):
        vfm_runtime.load(short, device="cpu").embed_text("red")
    folder = toy_embedder.build(tmp_path / "bundle", text=True)
    contract = read_manifest(folder).contract
    values = contract.to_dict()
    for key, wrong in [("clean", "upper"), ("length", 0), ("scale", True), ("more", 1)]:
        tower = {**values["tokenizer"], key: wrong}
        with pytest.raises(ContractError, match=r"'tokenizer' is .*; expected a text tower"):
            Contract.from_dict({**values, "tokenizer": tower})
    del values["embedding"]
    with pytest.raises(ContractError, match="expected 'embedding' beside it"):
        Contract.from_dict(values)
    (folder / "tokenizer.json").write_text("{}")
    write_manifest(folder, contract)
    with pytest.raises(BundleError, match=r"tokenizer\.json is no tokenizer"):
        vfm_runtime.load(folder, device="cpu").embed_text("red")
    (folder / "tokenizer.json").unlink()
    write_manifest(folder, contract)
    with pytest.raises(BundleError, match=r"a text tower, and does not list tokenizer\.json"):
        vfm_runtime.load(folder, device="cpu")


def test_texts_need_no_torch(bundle):
    code = f"""
import sys, vfm_runtime
model = vfm_runtime.load({str(bundle)!r}, device="cpu")
assert not {{"tokenizers", "ftfy"}} & set(sys.modules)
print(model.embed_text(["red"]).shape, {{"torch", "vfm", "open_clip", "transformers"}} & set(sys.modules))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == f"(1, {toy_embedder.WIDTH}) set()"
