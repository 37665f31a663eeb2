"""`vfm classify --labels`: words beside images, prompt ensembles, none of these, and models without a text tower."""

import importlib.util
import json

import numpy as np
import pytest
import torch
from PIL import Image
from vfm_runtime.errors import DataError, OptionError
from vfm_runtime.media.image import open_image
from vfm_runtime.zero_shot import TEMPLATES, fit_zero_shot, make_prompts, read_prompts

from tests.embed.tiny_pair import write_tiny_pair
from tests.image_folders import write_image_folder
from tests.runtime.toy_embedder import write_pictures
from vfm.cli import main
from vfm.incontext import command
from vfm.incontext.towers import open_image_text_model

COLORS = {"red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1)}


class ColorPair:
    """A pair of towers that knows colors: of an image the mean one, of a text the first that it names."""

    embedding, scale, bias = None, 20.0, None

    def prepare(self, image):
        return {"color": open_image(image).reshape(-1, 3).mean(0)[None] - 100}

    def embed_prepared(self, inputs):
        return self.normalize(inputs["color"])

    def embed_text(self, texts):
        first = [min(COLORS, key=lambda color, t=text: t.find(color) % 1000) for text in texts]
        return self.normalize(np.array([COLORS[color] for color in first]) - 0.4)

    def normalize(self, rows):
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def run(monkeypatch, capsys):
    monkeypatch.setattr(command, "open_image_text_model", lambda name, **options: ColorPair())

    def run(*words, code=0):
        assert main(["classify", *map(str, words), "--model", "pair"]) == code
        return capsys.readouterr()

    return run


def test_words_label_images(run, tmp_path):
    images = tmp_path / "images"
    for name, color in (("a", (200, 40, 40)), ("b", (40, 40, 200))):
        write_pictures(images / name, color, 2)
    shown = run(images, "--labels", "red, green,blue", "--json", "true").out
    answers = [json.loads(line) for line in shown.splitlines()]
    assert [answer["label"] for answer in answers] == ["red", "red", "blue", "blue"]
    assert 0.9 < answers[0]["score"] <= 1
    # Whatever is not similar enough is none of these.
    shown = run(images, "--labels", "green,blue", "--none-below", "0.2").out
    assert shown.count(": none of these, highest cosine ") == 2
    others = tmp_path / "others"
    write_pictures(others, (200, 40, 40), 20, seed=2)
    shown = run(images, "--labels", "green,blue", "--none-images", others)
    assert "none of these: below a cosine of -" in shown.err
    assert "95% of the 20 images" in shown.err
    assert shown.out.count(": blue ") == 2
    texts = tmp_path / "prompts.json"
    texts.write_text('{"warm": ["a red thing", "red"], "cold": ["something blue"]}')
    assert run(images, "--prompts", texts).out.count(": cold ") == 2


def test_what_cannot_be_asked(run, tmp_path):
    images = tmp_path / "images"
    write_pictures(images, (200, 40, 40), 1)
    for words, text in [
        ([], "Nothing says what the classes are. Give one of --examples DIR, --labels cat,dog"),
        (["--labels", "a,b", "--examples", images], "--examples and --labels say what"),
        (["--labels", "a"], "There is 1 label. Give two or more"),
        (["--labels", "a,b, a"], "The label 'a' stands twice. Name each class once."),
        (["--labels", "a,,b"], "The label is ''. Give a name"),
        (["--labels", "a,b", "--templates", '["a photo"]'], "has 0 times {}, where the label"),
        (
            ["--labels", "a,b", "--curve", tmp_path],
            "--curve goes with --examples, not with --labels",
        ),
        (
            ["--examples", images, "--none-below", "0.1"],
            "--none-below goes with --labels or --prompts",
        ),
        (
            ["--labels", "a,b", "--none-below", "0.1", "--none-images", images],
            "Leave one of them out",
        ),
        (
            ["--labels", "red,blue", "--none-images", images],
            "There are 1 images of none of the labels",
        ),
        (["--prompts", tmp_path / "none.json"], "cannot be read (No such file"),
    ]:
        assert text in run(images, *words, code=1).err
    path = tmp_path / "prompts.json"
    for content, text in [
        ("{", "is no JSON"),
        ('["a"]', "is no object of lists of texts. Write it as"),
        ('{"a": [], "b": ["x"]}', "is no object of lists of texts"),
    ]:
        path.write_text(content)
        with pytest.raises(DataError) as caught:
            read_prompts(path)
        assert text in str(caught.value)
    path.write_text('{"a": ["x"], "a": ["y"]}')
    with pytest.raises(OptionError, match="The label 'a' stands twice"):
        read_prompts(path)


def test_prompts_are_averaged_and_sigmoids_stand_alone():
    prompts = make_prompts(["red", "blue"])
    assert prompts["red"] == [template.replace("{}", "red") for template in TEMPLATES]
    pair = ColorPair()
    classifier = fit_zero_shot(pair, {"both": ["red", "blue"], "green": ["green"]})
    np.testing.assert_allclose(np.linalg.norm(classifier.vectors, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(classifier.vectors[0, 0], classifier.vectors[0, 2])
    pair.bias = -5.0
    (answer,) = fit_zero_shot(pair, prompts).answer(pair.embed_text(["red"]))
    assert answer.score == pytest.approx(1 / (1 + np.exp(-(20.0 - 5.0))))
    assert fit_zero_shot(pair, prompts).answer(np.zeros((0, 3), np.float32)) == []


def test_a_model_without_a_text_tower_is_refused():
    with pytest.raises(OptionError, match="'test_vit' has no text tower, so that words cannot be"):
        open_image_text_model("test_vit")
    if importlib.util.find_spec("open_clip") is None:
        with pytest.raises(ImportError, match=r"pip install 'vfm\[clip\]'"):
            open_image_text_model("open_clip:ViT-B-32/openai")


def test_a_tiny_pair_of_open_clip(tmp_path, capsys):
    open_clip = pytest.importorskip("open_clip")
    model, transform = write_tiny_pair(tmp_path)
    for name, text in [
        ("tiny_pear", "open_clip has no model 'tiny_pear'. Did you mean 'tiny_pair'?"),
        ("tiny_pair", "'tiny_pair' has no weights, and none were named. Choices: none but a file."),
        ("ViT-B-32/nope", "'ViT-B-32' has no weights 'nope'. Choices: openai, "),
    ]:
        with pytest.raises(OptionError) as caught:
            open_image_text_model(f"open_clip:{name}")
        assert text in str(caught.value)
    with pytest.raises(OptionError, match="There is no file of weights"):
        open_image_text_model("open_clip:tiny_pair", base=tmp_path / "none.pt")
    (tmp_path / "bad.pt").write_bytes(b"none")
    with pytest.raises(DataError, match=r"bad\.pt cannot be loaded into 'tiny_pair' \("):
        open_image_text_model("open_clip:tiny_pair", base=tmp_path / "bad.pt")
    # Of the model's own size, so that nothing is resized.
    images = write_image_folder(tmp_path / "images", num_classes=1, images_per_class=2)
    paths = sorted(images.rglob("*.png"))
    words = ["classify", images, "--labels", "cat,dog", "--model", "open_clip:tiny_pair"]
    words += ["--base", tmp_path / "weights.pt", "--device", "cpu", "--json", "true"]
    assert main([str(word) for word in words]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    # As open_clip itself has it.
    tokens = open_clip.get_tokenizer("tiny_pair")
    with torch.inference_mode():
        pixels = torch.stack([transform(Image.open(path)) for path in paths])
        seen = model.encode_image(pixels, normalize=True)
        classes = []
        for label in ("cat", "dog"):
            read = tokens([template.replace("{}", label) for template in TEMPLATES])
            mean = model.encode_text(read, normalize=True).mean(0)
            classes.append(mean / mean.norm())
        expected = (model.logit_scale.exp() * seen @ torch.stack(classes).T).softmax(-1)
    assert [answer["label"] for answer in answers] == [
        ("cat", "dog")[i] for i in expected.argmax(1).tolist()
    ]
    np.testing.assert_allclose(
        [answer["score"] for answer in answers], expected.max(1).values, atol=1e-4
    )
