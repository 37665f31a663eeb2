from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import vfm
from tests.image_folders import write_image_folder
from tests.tasks.tiny import LABELS, Steep, fit, shapes, stored, trainer, vit
from vfm.data import FolderData
from vfm.losses import CrossEntropy
from vfm.models.heads import LinearHead
from vfm.spec import SpecError
from vfm.tasks import BaseTask, ClassificationTask
from vfm.tasks.classification.task import LabelError
from vfm.training.checkpoint import CheckpointError, read_checkpoint
from vfm.types import Labels


def test_resuming_with_other_labels(tmp_path: Path, best: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        trainer(tmp_path, max_epochs=9).fit(vit(), datamodule=shapes(num_classes=4), ckpt_path=best)
    text = str(caught.value)
    assert "The labels of the checkpoint are not those of the model: 3 against 4" in text
    assert "only in the model: ['class_3']" in text
    assert "--model.weights" in text


def test_resuming_with_another_backbone(tmp_path: Path, best: Path) -> None:
    task = vit(backbone="test_efficientnet", backbone_args=None)
    with pytest.raises(CheckpointError) as caught:
        trainer(tmp_path, max_epochs=9).fit(task, datamodule=shapes(), ckpt_path=best)
    text = str(caught.value)
    assert "backbone is 'vit_tiny_patch16_224', this task's is 'test_efficientnet'" in text
    assert "--model.backbone vit_tiny_patch16_224" in text


def test_training_a_loaded_task_on_other_labels(tmp_path: Path, best: Path) -> None:
    task = ClassificationTask.load(best)
    with pytest.raises(CheckpointError, match="labels of the data are not those of the model"):
        trainer(tmp_path).fit(task, datamodule=shapes(num_classes=4))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    return write_image_folder(root, num_classes=3, images_per_class=6, splits=["test"], seed=9)


def test_fewer_classes_are_matched_by_name(tmp_path: Path, folder: Path, best: Path) -> None:
    root = tmp_path / "images"
    shutil.copytree(folder, root)
    shutil.rmtree(root / "test" / "class_0")
    copy = tmp_path / "model" / "best.ckpt"
    copy.parent.mkdir()
    shutil.copy(best, copy)
    data = FolderData(root, num_workers=0, batch_size=5)
    (metrics,) = trainer(tmp_path).test(ClassificationTask.load(copy), datamodule=data)
    assert data.labels == ("class_1", "class_2")
    files = sorted(root.rglob("*.png"))
    answers = vfm.load(copy).predict(files)
    right = [a.label == f.parent.name for a, f in zip(answers, files, strict=True)]
    expected = float(np.mean(right))
    assert expected > 0.5  # with indices left as they are it would be near 0
    assert metrics["test/accuracy"] == pytest.approx(expected)
    results = json.loads((copy.parent / "results.json").read_text())["test"]
    assert results["accuracy"]["value"] == pytest.approx(expected)
    assert results["num_samples"] == 12
    matrix = np.array(results["confusion_matrix"])
    assert matrix.shape == (3, 3)
    assert matrix.sum(1).tolist() == [0, 6, 6]


def test_an_unknown_class_is_refused(tmp_path: Path, folder: Path, best: Path) -> None:
    root = tmp_path / "images"
    shutil.copytree(folder, root)
    (root / "test" / "class_1").rename(root / "test" / "zebra")
    data = FolderData(root, num_workers=0)
    with pytest.raises(LabelError) as caught:
        trainer(tmp_path).test(ClassificationTask.load(best), datamodule=data)
    text = str(caught.value)
    assert "The data has 1 labels that the model was not trained for: ['zebra']." in text
    assert f"The model knows 3: {LABELS}." in text
    assert "Leave their images out, or train with them." in text


@pytest.mark.parametrize("function", ["test", "validate", "predict"])
def test_an_untrained_model_does_not_answer(tmp_path: Path, function: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        getattr(trainer(tmp_path), function)(vit(), datamodule=shapes())
    text = str(caught.value)
    assert "ClassificationTask has not been trained." in text
    assert "ClassificationTask.load('best.ckpt')" in text


def test_other_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="takes its labels from an ImageData"):
        trainer(tmp_path).fit(vit(), train_dataloaders=[1])


def test_missing_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"There is no checkpoint .*none\.ckpt"):
        BaseTask.load(tmp_path / "none.ckpt")


@pytest.mark.parametrize("share", [0.0, 0.0001, 0.3, 0.99])
def test_truncated_checkpoint(tmp_path: Path, best: Path, share: float) -> None:
    whole = best.read_bytes()
    path = tmp_path / "cut.ckpt"
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(CheckpointError) as caught:
        BaseTask.load(path)
    text = str(caught.value)
    assert f"{path} ({int(share * len(whole)):,} bytes) cannot be read as a checkpoint" in text
    assert "It may be cut short" in text


@pytest.mark.parametrize(
    "content", [b"hello, this is text\n", b"a b\n", b"0,1,2\n", b"\x89PNG\r\n", b"# card\n"]
)
def test_a_file_of_another_kind(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other.ckpt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="cannot be read as a checkpoint"):
        read_checkpoint(path)


class Evil:
    def __init__(self, flag: Path) -> None:
        self.flag = flag

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.flag,)


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    flag, path = tmp_path / "flag", tmp_path / "evil.ckpt"
    for write in (
        lambda content: torch.save(content, path),
        lambda content: path.write_bytes(pickle.dumps(content)),
    ):
        write({"vfm": {"format": 1}, "evil": Evil(flag)})
        with pytest.raises(CheckpointError, match="cannot be read as a checkpoint"):
            vfm.load(path)
        assert not flag.exists()


@pytest.mark.parametrize("content", [{"state_dict": {}}, {"a": torch.zeros(2)}, [1]])
def test_a_checkpoint_of_others(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "other.ckpt"
    torch.save(content, path)
    with pytest.raises(CheckpointError, match="was not written by vfm: it has no entry 'vfm'"):
        vfm.load(path)


def test_resuming_from_a_checkpoint_of_others(tmp_path: Path, best: Path) -> None:
    content = stored(best)
    del content["vfm"]
    torch.save(content, tmp_path / "other.ckpt")
    with pytest.raises(CheckpointError, match="was not written by vfm"):
        trainer(tmp_path, max_epochs=9).fit(
            vit(), datamodule=shapes(), ckpt_path=tmp_path / "other.ckpt"
        )


def test_a_newer_format_is_refused(tmp_path: Path, best: Path) -> None:
    content = stored(best)
    content["vfm"]["format"] = 2
    torch.save(content, tmp_path / "new.ckpt")
    with pytest.raises(CheckpointError, match=r"has format 2; this vfm reads up to 1\. Upgrade"):
        BaseTask.load(tmp_path / "new.ckpt")


def test_the_class_asked_for_is_required(best: Path) -> None:
    with pytest.raises(SpecError, match="is not a Steep"):
        Steep.load(best)


def test_a_head_with_arguments_comes_back(tmp_path: Path) -> None:
    fit(tmp_path, vit(head=LinearHead(dropout=0.25)), limit_train_batches=1)
    head = BaseTask.load(tmp_path / "checkpoints" / "last.ckpt").head
    assert isinstance(head, LinearHead)
    assert head.dropout.p == 0.25


def test_label_smoothing_reaches_the_loss() -> None:
    logits = torch.tensor([[4.0, 0.0, 0.0], [0.0, 2.0, 0.0]])
    batch = {"target": Labels(torch.tensor([0, 1]))}
    plain = vit().compute_loss({"logits": logits}, batch)
    smooth = vit(loss=CrossEntropy(label_smoothing=0.3)).compute_loss({"logits": logits}, batch)
    log = logits.log_softmax(1)
    expected = -(log[0, 0] + log[1, 1])
    torch.testing.assert_close(plain, expected)
    torch.testing.assert_close(smooth, 0.7 * expected - 0.3 * log.mean(1).sum())


def test_metrics_are_those_of_the_whole_split(tmp_path: Path, best: Path) -> None:
    """Batches of unequal size weigh each image alike."""
    values = []
    for batch_size in (5, 24):
        copy = tmp_path / str(batch_size) / "best.ckpt"
        copy.parent.mkdir()
        shutil.copy(best, copy)
        data = shapes(batch_size=batch_size)
        values += trainer(tmp_path).test(ClassificationTask.load(copy), datamodule=data)
    assert values[0] == pytest.approx(values[1], rel=1e-5)
    assert set(values[0]) == {"test/loss", "test/accuracy", "test/macro_f1"}
