"""`vfm export open_clip:... --text true`: a bundle that embeds images and words as the pair of towers does."""

import json
import random
from importlib.metadata import version

import numpy as np
import onnxruntime
import pytest
import torch
import vfm_runtime
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from PIL import Image
from skimage import data
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from vfm_runtime.bundle.manifest import hash_file, read_manifest
from vfm_runtime.cli import main as runtime_main
from vfm_runtime.text import open_tokenizer, tokenize

from tests.embed.tiny_pair import write_tiny_pair
from tests.image_folders import write_image_folder
from vfm.bundle.errors import ExportError
from vfm.bundle.export import export
from vfm.bundle.tokenizer import compare_tokens, convert_tokenizer
from vfm.cli import main
from vfm.tasks.image_text import open_pair

open_clip = pytest.importorskip("open_clip")
CLIP = version("open_clip_torch")
WORDS = (
    "a photo of the Red cup, don't YOU'LL it's 12 3.5 #1 caf\u00e9 na\u00efve x_y ( ) <br> &amp; &lt;p&gt; ... !? "
    "\u65e5\u672c\u8a9e \u0440\u0443\u0441 \U0001f600 \U0001f44d\U0001f3fd sch\u00c3\u00b6n \ufb01n a\u0301 \u2177 "
    "\u0130 \u1e9e \u01c5 \u017f \u212a \u0663 zero\u200bwidth \ud7ff \U0001fae8 \u0378 \u0345 \u2028 \u00a0 \x1f"
)
"""Words, marks and characters that are cleaned, folded or classed in ways of their own."""


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Options of a tiny pair, and its bundle."""
    folder = tmp_path_factory.mktemp("pair")
    write_tiny_pair(folder)
    images = write_image_folder(folder / "images", num_classes=2, images_per_class=3)
    options = {"base": folder / "weights.pt", "images": images, "num_images": 6}
    export("open_clip:tiny_pair", out=folder / "bundle", text=True, **options)
    return folder, options


def draw_texts(number, seed=0):
    """Texts of words, letters and any characters at random: empty ones and such of thousands of letters among them."""
    generator = random.Random(seed)
    texts = ["", " ", "word " * 500, "x" * 3000]
    while len(texts) < number:
        kind = generator.randrange(3)
        size = generator.choice([1, 3, 8, 40])
        if kind < 2:
            texts.append(
                generator.choice([" ", ""]).join(generator.choices(WORDS.split(" "), k=size))
            )
        else:
            points = (generator.randrange(0x20, 0x3000) for _ in range(size))
            texts.append("".join(map(chr, points)))
    return texts


def test_tokens_are_those_of_training_on_a_thousand_texts(pair):
    folder, _ = pair
    spec = read_manifest(folder / "bundle").contract.text
    texts = draw_texts(1000)
    ours = tokenize(open_tokenizer(folder / "bundle" / "tokenizer.json"), spec, texts)
    theirs = open_clip.get_tokenizer("tiny_pair")(texts).numpy()
    np.testing.assert_array_equal(ours, theirs)
    assert ours.shape == (1000, 16)
    assert ours[0, :3].tolist() == [49406, 49407, 0]
    assert (ours[2] == 49407).argmax() == 15
    assert spec.clean == "lower"
    assert spec.marks == ("<start_of_text>", "<end_of_text>")


def test_the_bundle_embeds_as_the_pair_does(pair):
    folder, options = pair
    model = vfm_runtime.load(folder / "bundle", device="cpu")
    ours = open_pair("open_clip:tiny_pair", base=options["base"], device="cpu")
    texts = draw_texts(60, seed=1)
    cosines = (model.embed_text(texts) * ours.embed_text(texts)).sum(1)
    assert cosines.min() >= 0.9999
    network = open_clip.create_model("tiny_pair", pretrained=str(options["base"])).eval()
    with torch.inference_mode():
        read = open_clip.get_tokenizer("tiny_pair")(texts)
        expected = network.encode_text(read, normalize=True).numpy()
    np.testing.assert_allclose(model.embed_text(texts), expected, atol=1e-5)
    facts = json.loads((folder / "bundle" / "parity.json").read_text())
    assert facts["passed"]
    assert facts["texts"]["equal_tokens"]
    assert facts["texts"]["least_cosine"] >= 0.9999
    card = (folder / "bundle" / "card.md").read_text()
    assert "texts have the same tokens" in card
    assert "pipeline_tag: zero-shot-image-classification\n" in card
    assert "- **Not cleared to be sold: pretrained weights (no licence stated)**\n" in card
    bill = (folder / "bundle" / "bom.cdx.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_7).validate_str(bill) is None
    parts = {part["bom-ref"]: part for part in json.loads(bill)["components"]}
    assert {
        "weights",
        "file:model.onnx",
        "file:text.onnx",
        f"pkg:pypi/open_clip_torch@{CLIP}",
    } <= set(parts)
    assert str(folder) not in bill
    manifest = read_manifest(folder / "bundle")
    for name in ("text.onnx", "tokenizer.json"):
        assert manifest.files[name] == hash_file(folder / "bundle" / name)
    assert manifest.contract.embedding == ours.embedding
    assert runtime_main(["check", str(folder / "bundle"), "--device", "cpu"]) == 0


@pytest.mark.slow
def test_a_bundle_of_images_alone_reads_no_words(pair, tmp_path):
    export("open_clip:tiny_pair", out=tmp_path / "images", **pair[1])
    assert "text.onnx" not in read_manifest(tmp_path / "images").files
    with pytest.raises(vfm_runtime.VfmError, match="has no text tower"):
        vfm_runtime.load(tmp_path / "images", device="cpu").embed_text("a cat")


def test_images_are_prepared_as_open_clip_does(pair):
    ours = open_pair("open_clip:tiny_pair", base=pair[1]["base"], device="cpu")
    _, _, transform = open_clip.create_model_and_transforms("tiny_pair")
    for photo in (data.astronaut(), data.chelsea()[:300, :450]):
        theirs = transform(Image.fromarray(photo))
        pixels = torch.from_numpy(ours.prepare(photo)["pixels"])
        difference = (ours.image_tower.preprocess.normalize(pixels)[0] - theirs).abs()
        # A level of 255 is 0.015 here. What is cut is cut before the resize, not after: a fraction of a pixel.
        assert difference.mean() < (0.01 if photo.shape[0] == photo.shape[1] else 0.2)


def test_words_stay_in_a_bundle_of_labels(pair, tmp_path, capsys):
    folder, options = pair
    images, out = str(options["images"]), tmp_path / "words"
    words = ["classify", images, "--labels", "red,blue", "--json", "true", "--device", "cpu"]
    assert main([*words, "--model", str(folder / "bundle"), "--bundle", str(out)]) == 0
    shown = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert runtime_main(["check", str(out), "--device", "cpu"]) == 0
    model = vfm_runtime.load(out, device="cpu")
    assert model.labels == ("red", "blue")
    for row in shown:
        answer = model.predict(row["image"])
        assert answer.label == row["label"]
        assert answer.score == pytest.approx(row["score"], abs=1e-4)
    assert "red (3), blue (3)" in (out / "card.md").read_text()
    # A client of ONNX Runtime gives other words: one more label, without an export.
    session = onnxruntime.InferenceSession(out / "model.onnx", providers=["CPUExecutionProvider"])
    names = ["class_matrix", "class_bias", "class_center"]
    assert [one.name for one in session.get_overridable_initializers()] == names
    rows = model.scale * model.embed_text(["red", "blue", "green"])
    given = {"class_matrix": rows, "class_bias": np.zeros(3, np.float32)}
    pixels = model.preprocess(shown[0]["image"])
    (scores,) = session.run(["scores"], {"pixels": pixels, **given})
    logits = rows @ model.embed(shown[0]["image"])
    expected = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    np.testing.assert_allclose(scores[0], expected, atol=1e-5)
    for more, text in [
        (["--model", "open_clip:tiny_pair", "--bundle", "x"], "IMAGES --text true -o BUNDLE"),
        (
            ["--model", str(folder / "bundle"), "--bundle", "x", "--none-below", "0.1"],
            "'none of these' is no part of it",
        ),
    ]:
        assert main([*words, *more]) == 1
        assert text in capsys.readouterr().err


def test_a_tokenizer_of_transformers_is_converted(tmp_path):
    transformers = pytest.importorskip("transformers")
    words = {"<pad>": 0, "<unk>": 1, "</s>": 2, **{word: i + 3 for i, word in enumerate("abcdef")}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 2)]
    )
    special = {"pad_token": "<pad>", "unk_token": "<unk>", "sep_token": "</s>"}
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    fast.save_pretrained(tmp_path)
    texts = ["", "A, b! c", "a_b </s> d", "f " * 50, "x  y"]
    for options, clean in [
        ({"clean": "canonicalize"}, "canonicalize"),
        ({"strip_sep_token": True}, "whitespace"),
    ]:
        theirs = open_clip.tokenizer.HFTokenizer(str(tmp_path), context_length=6, **options)
        converted, spec = convert_tokenizer(theirs, 10.0, None)
        assert (spec.clean, spec.length, spec.marks) == (clean, 6, ())
        compare_tokens(theirs, Tokenizer.from_str(converted.to_str()), spec, texts)
    with pytest.raises(ExportError, match="the tokens of 'x' are others, as of 1 of 1 texts"):
        compare_tokens(lambda _: torch.zeros((1, 6)), converted, spec, ["x"])


def test_what_is_no_pair_to_export_is_refused(pair, tmp_path):
    _, options = pair
    masked = open_clip.SimpleTokenizer(context_length=16, reduction_mask="random")
    with pytest.raises(ExportError, match=r"or drops some at random\. Leave --text out"):
        convert_tokenizer(masked, 1.0, None)
    for name, more, text in [
        (
            "open_clip:tiny_pair",
            {"fp16": True},
            "--fp16 goes with a checkpoint, and open_clip:tiny",
        ),
        (
            "open_clip:tiny_pair",
            {"commercial": True},
            "this may not be sold: pretrained weights (no licence stated)",
        ),
        (
            "test_vit",
            {"text": True},
            "--text writes a text tower, and test_vit reads no words",
        ),
        (["open_clip:tiny_pair", "b=x.ckpt"], {}, "open_clip:tiny_pair stands beside others"),
    ]:
        with pytest.raises(ExportError) as caught:
            export(name, out=tmp_path / "out", **options, **more)
        assert text in str(caught.value)
