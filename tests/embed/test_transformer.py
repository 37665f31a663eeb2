"""`ImageEmbedder` in the hands of scikit-learn."""

import pickle

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from vfm_runtime.bundle.predictor import Predictor
from vfm_runtime.media.image import ImageError

import vfm
from tests.image_folders import write_image_folder
from tests.tasks.tiny import fit, vit


@pytest.fixture
def embedder(weights):
    return vfm.ImageEmbedder("test_vit", base=str(weights), device="cpu")


@pytest.fixture
def paths(tmp_path):
    return sorted(write_image_folder(tmp_path, num_classes=2, images_per_class=6).rglob("*.png"))


def test_each_file_is_embedded_once_for_all_copies(embedder, paths, monkeypatch):
    embedded = []
    original = Predictor.embed

    def count(self, images, **options):
        embedded.extend(images)
        return original(self, images, **options)

    monkeypatch.setattr(Predictor, "embed", count)
    labels = [path.parent.name for path in paths]
    pipeline = make_pipeline(embedder, LogisticRegression())
    search = GridSearchCV(pipeline, {"logisticregression__C": [0.1, 1, 10]}, cv=2, refit=False)
    search.fit([str(path) for path in paths], labels)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert sorted(embedded) == [str(path) for path in paths]
    # A file that has changed is another.
    paths[1].write_bytes(paths[-1].read_bytes())
    vectors = embedder.transform(paths)
    assert embedded[len(paths) :] == [str(paths[1])]
    np.testing.assert_allclose(vectors[1], vectors[-1], atol=1e-6)


def test_vectors_are_those_of_the_model(embedder, paths):
    expected = vfm.load("test_vit", base=embedder.base, device="cpu").embed(paths[:3])
    np.testing.assert_allclose(embedder.transform(paths[:3]), expected, atol=1e-6)
    pixels = [np.zeros((8, 8, 3), np.uint8), np.full((8, 8, 3), 200, np.uint8)]
    mixed = embedder.transform([pixels[0], paths[0], pixels[1]])
    np.testing.assert_allclose(mixed[1], expected[0], atol=1e-6)
    assert not np.allclose(mixed[0], mixed[2])


def test_copies_have_the_arguments_alone(embedder, paths):
    before = embedder.transform(paths[:2])
    copy = pickle.loads(pickle.dumps(clone(embedder)))
    assert copy.get_params() == embedder.get_params()
    assert np.array_equal(copy.transform(paths[:2]), before)
    longer = copy.set_params(normalize=False).transform(paths[:2])
    np.testing.assert_allclose(longer / np.linalg.norm(longer, axis=1)[:, None], before, atol=1e-6)
    assert not np.allclose(longer, before)


def test_a_checkpoint_embeds_by_the_arguments(paths, tmp_path):
    trained = fit(tmp_path / "run", vit(), max_steps=1)
    trained.save_checkpoint(tmp_path / "vit.ckpt")
    embedder = vfm.ImageEmbedder(str(tmp_path / "vit.ckpt"), source="layers", normalize=False)
    expected = vfm.load(tmp_path / "vit.ckpt").embed(paths[:2], source="layers", normalize=False)
    np.testing.assert_allclose(embedder.transform(paths[:2]), expected, atol=1e-5)


def test_an_image_that_cannot_be_read_is_no_vector(embedder, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\nno image")
    with pytest.raises(ImageError, match=r"broken\.png"):
        embedder.transform([broken])
