"""ConSE: the vector of an image is the mean of those of its likely class names."""

import json

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from vfm_runtime.errors import DataError, OptionError

from tests.models.tiny_encoder import write_tiny_encoder
from tests.runtime.toy_embedder import paint, write_pictures
from vfm.cli import main
from vfm.incontext.conse import ConseModel, open_conse
from vfm.incontext.towers import open_image_text_model


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A tiny random encoder of words."""
    pytest.importorskip("transformers")
    return write_tiny_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "vit.safetensors"
    save_file(timm.create_model("test_vit").state_dict(), path)
    return path


def test_an_image_is_the_mean_of_its_likely_names(encoder, weights):
    model = open_conse("conse:test_vit", base=weights, text=encoder, device="cpu")
    (picture,) = paint((200, 40, 40), 1)
    inputs = model.prepare(picture)
    with torch.inference_mode():
        scores = model._classifier(torch.from_numpy(inputs["image"])).softmax(-1)[0].numpy()
    best = np.argsort(-scores)[:10]
    mean = (scores[best, None] * model._names[best]).sum(0)
    np.testing.assert_allclose(
        model.embed_prepared(inputs)[0], mean / np.linalg.norm(mean), atol=1e-5
    )
    assert model._names.shape == (1000, 16)
    # A text alone, or beside a longer one that it is padded for, is the same.
    together = model.embed_text(["cat", "a photo of a dog"])
    np.testing.assert_allclose(together[0], model.embed_text(["cat"])[0], atol=1e-5)


def test_the_command_reads_words_by_a_classifier(encoder, weights, tmp_path, capsys):
    images = tmp_path / "images"
    write_pictures(images, (200, 40, 40), 2)
    words = ["classify", images, "--labels", "cat,dog", "--model", "conse:test_vit"]
    words += ["--base", weights, "--device", "cpu", "--json", "true"]
    assert main([*map(str, words), "--text", str(encoder)]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {answer["label"] for answer in answers} <= {"cat", "dog"}
    assert main(list(map(str, words))) == 1
    assert "classifies images and reads no words. Give --text FOLDER" in capsys.readouterr().err


def test_what_cannot_read_words_is_refused(encoder, weights, tmp_path):
    with pytest.raises(DataError, match=r"holds no text encoder \("):
        open_conse("conse:test_vit", base=weights, text=tmp_path, device="cpu")
    with pytest.raises(OptionError, match=r"no model 'test_vot'\. Did you mean 'test_vit"):
        open_conse("conse:test_vot", base=weights, text=encoder, device="cpu")
    with pytest.raises(OptionError, match="--text goes with conse:NAME, not with 'test_vit'"):
        open_image_text_model("test_vit", text=encoder)
    bare = tmp_path / "bare.safetensors"
    save_file(timm.create_model("test_vit", num_classes=0).state_dict(), bare)
    with pytest.raises(
        DataError, match="lacks 2 tensors of the classifier 'test_vit', such as head"
    ):
        open_conse("conse:test_vit", base=bare, text=encoder, device="cpu")
    few = timm.create_model("test_vit", num_classes=7)
    with pytest.raises(OptionError, match="The model has 7 classes, whose names are not known"):
        ConseModel(few, lambda texts: np.zeros((len(texts), 2)), "cpu")
