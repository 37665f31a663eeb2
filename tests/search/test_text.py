"""`vfm search --text`: words among images, by the towers of a pair, and what has no words."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from tests.embed.tiny_pair import write_tiny_pair
from tests.image_folders import write_image_folder
from tests.search.stores import write_store
from vfm.cli import main
from vfm.embed.store import EmbeddingStore

pytest.importorskip("lancedb")


@pytest.fixture
def run(capsys):
    def run(*words, code=0):
        assert main([str(word) for word in words]) == code
        shown = capsys.readouterr()
        return shown.err if code else shown.out

    return run


def test_words_find_images_as_open_clip_itself_does(run, tmp_path):
    open_clip = pytest.importorskip("open_clip")
    model, transform = write_tiny_pair(tmp_path)
    images = write_image_folder(tmp_path / "images", num_classes=2, images_per_class=4)
    store, page = str(tmp_path / "store"), tmp_path / "page.html"
    pair = ["--model", "open_clip:tiny_pair", "--base", tmp_path / "weights.pt"]
    run("embed", images, "--to", store, *pair, "--device", "cpu")
    paths = sorted(images.rglob("*.png"))
    with torch.inference_mode():
        pixels = torch.stack([transform(Image.open(path)) for path in paths])
        seen = model.encode_image(pixels, normalize=True).numpy()
        tokens = open_clip.get_tokenizer("tiny_pair")(["a red cup"])
        read = model.encode_text(tokens, normalize=True).numpy()[0]
    opened = EmbeddingStore.open(store)
    assert (opened.model.model, opened.model.source) == ("open_clip:tiny_pair", "image tower")
    vectors, rows = next(opened.read(["path"]))
    order = np.argsort(rows["path"])
    np.testing.assert_allclose(vectors[order], seen, atol=1e-5)

    words = ["search", store, "--text", "a red cup", "-k", "3", "--device", "cpu"]
    answer = json.loads(run(*words, "--json", "true"))
    cosines = seen @ read
    nearest = np.argsort(-cosines)[:3]
    assert [one["path"] for one in answer["neighbors"]] == [str(paths[i]) for i in nearest]
    similarities = [one["similarity"] for one in answer["neighbors"]]
    np.testing.assert_allclose(similarities, cosines[nearest], atol=1e-5)
    assert (answer["recall"], answer["num_searched"]) == (1.0, 8)
    assert "Recall 1 (exact): 4 of 8" in run(
        *words, "--where", f"label = '{paths[0].parent.name}'", "-o", page
    )
    assert "<h1>Search: a red cup</h1>" in page.read_text()
    assert page.read_text().count("data:image/png") == 1
    answer = json.loads(run("search", store, "--image", paths[2], "--json", "true"))
    assert answer["neighbors"][0]["path"] == str(paths[2])
    # The same weights in other hands are the same model; others are refused.
    torch.manual_seed(1)
    other = open_clip.create_model("tiny_pair").state_dict()
    torch.save(other, tmp_path / "other.pt")
    error = run(*words, *pair[:3], tmp_path / "other.pt", code=1)
    assert "holds other vectors: of open_clip:tiny_pair (image tower, L2, fingerprint" in error
    error = run("embed", images, "--to", store, *pair, "--normalize", "false", code=1)
    assert "The image tower of open_clip:tiny_pair gives one vector, of norm 1" in error


def test_what_is_no_query_of_words(run, tmp_path):
    store = str(tmp_path / "store")
    write_store(store, np.eye(4, dtype=np.float32))
    for words, text in [
        (["--text", "a cat"], "of m (pooled), a model of images alone, without a text tower"),
        (["--text", "a cat", "--model", "n"], "holds vectors of m (pooled), a model of images"),
        (["--text", "a cat"], "a store by open_clip:NAME/WEIGHTS reads words."),
        (["--text", " "], "--text is ' '. Give words alone, such as --text 'a red cup'"),
        (["--text", "a", "--box", "1,1,2,2"], "--text is 'a' and --box 1,1,2,2. Give words alone"),
        (["--text", "a", "--image", "x.png"], "--image and --text are two queries. Give one"),
        ([], "There is nothing to look for. Give --image FILE, or --text WORDS."),
    ]:
        assert text in run("search", store, *words, code=1)
