from __future__ import annotations

import ast
import inspect
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import vfm_runtime
from PIL import Image
from vfm_runtime.media.image import ImageError, open_image

import vfm
from tests.image_folders import write_image_folder
from vfm.bundle import ExportError, ParityError
from vfm.training.checkpoint import CheckpointError

PUBLIC = [
    "AdaptOptions",
    "Adaptation",
    "AsymmetricLoss",
    "AttentionPoolHead",
    "BaseTask",
    "BinaryCrossEntropy",
    "BoxAugment",
    "CLIPLoss",
    "ClassificationHead",
    "ClassificationLoss",
    "ClassificationTask",
    "Component",
    "ContrastiveLoss",
    "ContrastiveTask",
    "CrossEntropy",
    "DINO",
    "DeepfakeData",
    "DeepfakeHead",
    "DeepfakeLoss",
    "DeepfakeTask",
    "DenseHead",
    "DenseLoss",
    "DetectionData",
    "DetectionHead",
    "DetectionLoss",
    "DetectionTask",
    "DetrHead",
    "DigitsData",
    "DistillationLoss",
    "DistillationTask",
    "Effort",
    "EmbeddingTask",
    "FeatureDistillation",
    "FeatureInfo",
    "Features",
    "FocalLoss",
    "FolderData",
    "Head",
    "IdxData",
    "ImageData",
    "ImageEmbedder",
    "LeJEPA",
    "LinearHead",
    "LoRA",
    "LogitDistillation",
    "Loss",
    "MAE",
    "MLPHead",
    "Mixing",
    "Model",
    "MultiCrop",
    "NeighborsHead",
    "Optim",
    "PairData",
    "PairShards",
    "PartialFineTuning",
    "Preprocess",
    "PretrainingTask",
    "Raw",
    "RelationDistillation",
    "SelfSupervisedMethod",
    "SelfSupervisedTask",
    "ShardData",
    "SigLIPLoss",
    "SwAV",
    "SyntheticData",
    "SyntheticDeepfakes",
    "SyntheticScenes",
    "TableData",
    "UniCLLoss",
    "UnlabeledData",
    "VISReg",
    "VfmError",
    "VotingHead",
    "export",
    "load",
]
SIZES = [(40, 31), (17, 63), (32, 32), (120, 20), (9, 11)]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    return write_image_folder(root, num_classes=3, images_per_class=12, size=SIZES)


@pytest.fixture(scope="module")
def checkpoint(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("run")
    L.seed_everything(0)
    task = vfm.ClassificationTask(
        "vit_tiny_patch16_224",
        pretrained=False,
        image_size=32,
        backbone_args={"embed_dim": 32, "depth": 2, "num_heads": 2},
        optim=vfm.Optim(lr=3e-3),
    )
    trainer = L.Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        max_epochs=8,
        default_root_dir=root,
    )
    trainer.fit(task, datamodule=vfm.FolderData(images, num_workers=0, batch_size=8))
    return root / "checkpoints" / "best.ckpt"


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> vfm.Model:
    return vfm.load(checkpoint, device="cpu")  # type: ignore[return-value]


@pytest.fixture(scope="module")
def bundle(model: vfm.Model, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("export") / "bundle"
    parity = model.export(out, images=images, one_file=True)
    assert parity.passed
    assert len(parity.images) == 36
    return out


def sources(path: Path) -> list[Any]:
    return [path, str(path), path.read_bytes(), open_image(path), Image.open(path)]


def test_all_kinds_of_sources_have_one_answer(model: vfm.Model, images: Path) -> None:
    path = next(iter(sorted(images.rglob("*.png"))))
    answers = [model.predict(source) for source in sources(path)]
    for answer in answers:
        assert answer.labels == model.labels == ("class_0", "class_1", "class_2")
        assert np.array_equal(answer.scores, answers[0].scores)
        assert answer.scores.sum() == pytest.approx(1, abs=1e-5)
        assert answer.score == answer.scores.max()
        assert answer.label == answer.labels[int(answer.scores.argmax())]


def test_alone_equals_in_a_batch_of_mixed_sizes(model: vfm.Model, images: Path) -> None:
    files = sorted(images.rglob("*.png"))
    mixed = [sources(path)[i % 5] for i, path in enumerate(files)]
    together = model.predict(mixed, batch_size=7)
    assert len(together) == 36
    for path, answer in zip(files, together, strict=True):
        np.testing.assert_allclose(answer.scores, model.predict(path).scores, atol=1e-6)
    # The model tells images apart: else the order of the answers would prove nothing.
    assert len({answer.label for answer in together}) > 1
    assert np.std([answer.scores[0] for answer in together]) > 0.01


def test_the_model_has_learned(model: vfm.Model, images: Path) -> None:
    files = sorted(images.rglob("*.png"))
    right = [a.label == f.parent.name for a, f in zip(model.predict(files), files, strict=True)]
    assert np.mean(right) > 0.6


def test_scores_are_those_of_the_task(model: vfm.Model, images: Path) -> None:
    path = next(iter(sorted(images.rglob("*.png"))))
    pixels = model.preprocess(path)
    assert pixels.shape == (1, 32, 32, 3)
    assert pixels.dtype == np.uint8
    expected = model.task.preprocess.resize(open_image(path))[0]
    assert np.array_equal(pixels[0], expected)
    assert np.array_equal(model.scores(pixels)[0], model.predict(path).scores)


def test_a_bad_image_raises_or_takes_its_place(
    model: vfm.Model, images: Path, tmp_path: Path
) -> None:
    (tmp_path / "bad.png").write_bytes(b"")
    good = next(iter(sorted(images.rglob("*.png"))))
    with pytest.raises(ImageError, match=r"bad\.png"):
        model.predict([good, tmp_path / "bad.png"])
    answers = model.predict([tmp_path / "bad.png", good], errors="return")
    assert isinstance(answers[0], ImageError)
    assert np.array_equal(answers[1].scores, model.predict(good).scores)


def test_repr_says_what_it_is(model: vfm.Model, checkpoint: Path) -> None:
    assert repr(model) == f"Model({str(checkpoint)!r}, 3 classes, cpu)"


def test_the_bundle_answers_alike(model: vfm.Model, bundle: Path, images: Path) -> None:
    loaded = vfm.load(bundle, device="cpu")
    assert isinstance(loaded, vfm_runtime.Model)
    assert loaded.labels == model.labels
    files = sorted(images.rglob("*.png"))
    ours, theirs = model.predict(files), loaded.predict(files)
    for first, second in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(first.scores, second.scores, atol=1e-3)
        assert first.label == second.label
    path = files[0]
    for source in sources(path):
        np.testing.assert_allclose(
            loaded.predict(source).scores, model.predict(path).scores, atol=1e-3
        )


def test_the_model_still_answers_after_an_export(
    model: vfm.Model, bundle: Path, checkpoint: Path, images: Path
) -> None:
    path = next(iter(sorted(images.rglob("*.png"))))
    fresh = vfm.load(checkpoint, device="cpu").predict(path)
    assert np.array_equal(model.predict(path).scores, fresh.scores)


def test_a_bundle_is_not_overwritten(model: vfm.Model, bundle: Path, images: Path) -> None:
    before = (bundle / "vfm.json").read_bytes()
    with pytest.raises(ExportError, match="a bundle never changes once written"):
        model.export(bundle, images=images)
    assert (bundle / "vfm.json").read_bytes() == before


def test_export_needs_images(model: vfm.Model, tmp_path: Path) -> None:
    few = write_image_folder(tmp_path / "few", num_classes=2, images_per_class=2)
    with pytest.raises(ParityError, match="holds 4 images; parity needs at least 32"):
        model.export(tmp_path / "bundle", images=few)
    with pytest.raises(ParityError, match="There is no folder"):
        vfm.export(tmp_path / "any.ckpt", images=tmp_path / "none")
    assert not (tmp_path / "bundle").exists()


def test_load_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="There is no checkpoint"):
        vfm.load(tmp_path / "none.ckpt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(vfm_runtime.BundleError):
        vfm.load(tmp_path / "empty")


def test_the_public_names() -> None:
    assert sorted(vfm.__all__) == PUBLIC
    assert len(vfm.__all__) == len(set(vfm.__all__))
    assert set(PUBLIC) <= set(dir(vfm))


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_is_described(name: str) -> None:
    found = getattr(vfm, name)
    if name == "Raw":  # an alias of a dict, described in the source
        return
    assert inspect.isclass(found) or inspect.isfunction(found)
    own = found.__dict__.get("__doc__") if inspect.isclass(found) else found.__doc__
    assert own
    # The one that dataclasses make up is no description.
    assert not own.startswith(f"{name}(")
    assert found.__module__.startswith(("vfm.", "vfm_runtime."))


@pytest.mark.parametrize("package", [vfm, vfm_runtime])
def test_type_checkers_see_the_modules_of_the_table(package: types.ModuleType) -> None:
    tree = ast.parse(Path(package.__file__ or "").read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    modules = {node.module for node in block.body if isinstance(node, ast.ImportFrom)}
    prefix = "vfm_runtime." if package is vfm_runtime else ""
    assert modules == {f"{prefix}{module}" for module in package._MODULES}


def test_an_unknown_name() -> None:
    with pytest.raises(AttributeError, match="module 'vfm' has no attribute 'Nothing'"):
        _ = vfm.Nothing


def test_importing_vfm_loads_no_torch() -> None:
    code = "import sys, vfm; print(sorted({'torch', 'timm', 'lightning'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("old", "name"),
    [("FakesData", "DeepfakeData"), ("SyntheticFakes", "SyntheticDeepfakes")],
)
def test_a_public_name_of_an_earlier_version(old: str, name: str) -> None:
    with pytest.warns(DeprecationWarning, match=rf"vfm\.{old} is now vfm\.{name}"):
        assert getattr(vfm, old) is getattr(vfm, name)
