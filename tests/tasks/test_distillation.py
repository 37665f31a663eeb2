"""DistillationTask: every loss learns from every kind of teacher; outputs kept on disk; licences; errors in words."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from vfm_runtime.errors import OptionError

import vfm
from tests.image_folders import write_image_folder
from tests.tasks.tiny import VIT, Spoil, shapes, trainer
from vfm.bundle.export import export
from vfm.bundle.lineage import list_licenses, require_commercial
from vfm.losses.distillation import Standardize, resample_tokens
from vfm.tasks import DistillationTask, Optim
from vfm.tasks.checkpoint import Checkpoint
from vfm.tasks.distillation.cache import TeacherCache
from vfm.tasks.distillation.teacher import BundleTeacher, open_teacher
from vfm.training.checkpoint import CheckpointError
from vfm.training.nonfinite import NonFiniteLossError, replay


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VFM_CACHE", str(tmp_path / "cache"))


def build(teacher, **changes):
    settings = {"image_size": 32, "backbone_args": VIT, "optim": Optim(lr=3e-3)}
    return DistillationTask("vit_tiny_patch16_224", teacher=str(teacher), **(settings | changes))


def fit(root, task, epochs=1, **changes):
    made = trainer(root, max_epochs=epochs)
    made.fit(task, datamodule=shapes(**changes))
    return made


def measure_loss(made):
    return float(made.callback_metrics["val/loss"])


@pytest.mark.parametrize(
    "loss",
    [
        vfm.FeatureDistillation(tokens=0.5),
        vfm.LogitDistillation(),
        vfm.RelationDistillation(queue_size=32),
    ],
    ids=lambda loss: type(loss).__name__,
)
def test_a_student_comes_closer_to_a_checkpoint(best, tmp_path, loss):
    task = build(best, loss=loss)
    first = measure_loss(fit(tmp_path, task, epochs=4))
    untrained = build(best, loss=type(loss)(**loss.spec["init_args"]))
    before = trainer(tmp_path / "before").validate(untrained, datamodule=shapes(), verbose=False)
    assert first < before[0]["val/loss"]
    parts = set(torch.load(tmp_path / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"])
    assert any(name.startswith("training_parts.loss.") for name in parts)
    assert not any("teacher" in name for name in parts)
    assert {p.requires_grad for p in task.__dict__["teacher"].task.parameters()} == {False}


def test_the_student_needs_no_teacher_any_more(best, tmp_path):
    fit(tmp_path, build(best))
    file = tmp_path / "checkpoints" / "best.ckpt"
    stored = torch.load(file, weights_only=True)["vfm"]["teacher"]
    assert stored["name"] == str(best)
    assert len(stored["checksum"]) >= 16
    task = DistillationTask.load(file)
    assert task.__dict__["teacher"] is None
    vector = task.answer(torch.zeros((1, 32, 32, 3), dtype=torch.uint8))["embedding"]
    assert vector.shape == (1, 32)


@pytest.mark.slow
def test_a_bundle_teaches_without_torch(best, tmp_path):
    images = write_image_folder(
        tmp_path / "images", num_classes=2, images_per_class=2, size=[(32, 32)]
    )
    bundle = export(best, out=tmp_path / "bundle", images=images, num_images=4, embedding="pooled")
    teacher, torch_teacher = open_teacher(str(bundle)), open_teacher(str(best))
    assert isinstance(teacher, BundleTeacher)
    pixels = torch.randint(0, 255, (5, 32, 32, 3), dtype=torch.uint8)
    one, other = teacher.answer(pixels), torch_teacher.answer(pixels)
    cosine = torch.cosine_similarity(one["embedding"], other["embedding"])
    assert cosine.min() > 0.9999
    assert torch.allclose(one["logits"].softmax(-1), other["logits"].softmax(-1), atol=1e-4)
    with pytest.raises(
        OptionError,
        match=r"compares tokens, and the teacher .* gives embedding, logits",
    ):
        fit(tmp_path, build(bundle, loss=vfm.FeatureDistillation(tokens=1.0)))


def test_later_epochs_do_not_run_the_teacher(best, tmp_path):
    task = build(best, cache_views=2)
    made = trainer(tmp_path, max_epochs=1)
    data = shapes(augment="light")
    made.fit(task, datamodule=data)
    teacher = task.__dict__["teacher"]
    seen = []
    again = build(best, cache_views=2)
    compute = type(teacher).compute

    def count(self, pixels):
        seen.append(len(pixels))
        return compute(self, pixels)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(teacher), "compute", count)
        trainer(tmp_path, max_epochs=5).fit(again, datamodule=shapes(augment="light"))
    # Its shapes are asked for by one image; view 0 and val are on disk from the run before; view 1 is computed once.
    assert sum(seen) - 1 == 48


def test_statistics_that_are_no_numbers_are_named_and_the_step_is_done_again(best, tmp_path):
    task = build(best, cache_views=1)

    def change(batch, position):
        task.training_parts["loss"].statistics["embedding"].mean[position] = float("nan")

    with pytest.raises(
        NonFiniteLossError,
        match=r"1 statistics of the model are no numbers .*\(training_parts\.loss\.statistics\.embedding\.mean\)",
    ):
        trainer(tmp_path, callbacks=[Spoil(change)]).fit(task, datamodule=shapes())
    again = replay(tmp_path / "nonfinite")
    assert again.step.keys() == {"features"}
    assert np.isnan([*again.step.values(), *again.images.values()]).all()


def test_kept_outputs_are_those_of_the_view(best, tmp_path):
    data = shapes(augment="light")
    data.preprocess = build(best).preprocess
    data.num_views = 2
    data.setup("fit")
    dataset = data.train_dataloader().dataset
    views = [dataset[epoch, 3].image for epoch in range(4)]
    assert np.array_equal(views[0], views[2])
    assert np.array_equal(views[1], views[3])
    assert not np.array_equal(views[0], views[1])


def test_int8_rows_are_close_and_missing_ones_are_none(tmp_path):
    kept = TeacherCache(["key"], {"embedding": (64,)}, views=2, count=10)
    rows = torch.randn(4, 64) * torch.tensor([[0.01], [1.0], [100.0], [0.0]])
    index = np.array([1, 5, 7, 9])
    assert kept.read(1, index) is None
    kept.write(1, index, {"embedding": rows})
    # Another process, or a run that goes on, maps the same files.
    same = TeacherCache(["key"], {"embedding": (64,)}, views=2, count=10)
    read = same.read(1, index)["embedding"]
    assert ((read - rows).abs().amax(1) <= rows.abs().amax(1) / 127).all()
    assert same.read(0, index) is None
    assert same.read(1, np.array([1, 2])) is None


def test_data_that_augments_in_a_way_of_its_own_has_no_views(best, tmp_path):
    task = build(best, cache_views=1)
    with pytest.raises(
        OptionError, match="SyntheticScenes augments images in a way that is new in every epoch"
    ):
        trainer(tmp_path).fit(task, datamodule=vfm.SyntheticScenes(num_workers=0))


def test_another_size_is_said_and_met(best, tmp_path, caplog):
    task = build(best, image_size=48)
    fit(tmp_path, task)
    assert (
        "The student sees 48 x 48 pixels; the teacher is given the same, brought to 32 x 32"
        in caplog.text
    )


def test_a_licence_of_the_teacher_limits_the_student(best, tmp_path):
    task = build(best)
    made = fit(tmp_path, task)
    # A teacher from a random start is free; one with weights has their licence.
    file = tmp_path / "checkpoints" / "best.ckpt"
    assert list_licenses({"": Checkpoint.open(file)}) == {}
    task._teacher_entry["licenses"] = {"big model": "cc-by-nc-4.0"}
    made.save_checkpoint(file)
    licenses = list_licenses({"": Checkpoint.open(file)})
    assert licenses == {"teacher big model": "cc-by-nc-4.0"}
    with pytest.raises(vfm.bundle.ExportError, match="teacher big model"):
        require_commercial(licenses)
    # The licence follows the weights into the next task.
    tuned = vfm.ClassificationTask(
        "vit_tiny_patch16_224", image_size=32, backbone_args=VIT, weights=file, min_steps=0
    )
    trainer(tmp_path / "tuned").fit(tuned, datamodule=shapes())
    opened = Checkpoint.open(tmp_path / "tuned" / "checkpoints" / "last.ckpt")
    assert list_licenses({"": opened})["teacher big model"] == "cc-by-nc-4.0"


def test_what_cannot_teach_is_refused(best, tmp_path):
    with pytest.raises(CheckpointError, match=r"There is no checkpoint nowhere\.ckpt"):
        open_teacher("nowhere.ckpt")
    with pytest.raises(
        OptionError, match="teacher_weights and teacher_size are for backbones of timm by name"
    ):
        open_teacher(str(best), image_size=64)
    with pytest.raises(OptionError, match=r"cache_views is -1\. Give the number of views"):
        build(best, cache_views=-1)
    with pytest.raises(OptionError, match=r"tokens is 101\. Give a number from 0 to 100"):
        vfm.FeatureDistillation(tokens=101)
    with pytest.raises(OptionError, match=r"temperature is 0\. Give a number from 0\.01 to 100"):
        vfm.LogitDistillation(temperature=0)
    with pytest.raises(OptionError, match=r"queue_size is 1\. Give 2 or more images"):
        vfm.RelationDistillation(queue_size=1)
    with pytest.raises(
        OptionError, match="gives 6 patch tokens and the student 4, and grids that are not square"
    ):
        resample_tokens(torch.zeros(1, 6, 2), 4)


def test_a_resumed_training_with_another_teacher_says_so(best, tmp_path):
    fit(tmp_path, build(best))
    other = tmp_path / "other"
    fit(other, build(best))
    task = build(other / "checkpoints" / "best.ckpt")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer(tmp_path / "again", max_epochs=2).fit(
            task, datamodule=shapes(), ckpt_path=tmp_path / "checkpoints" / "last.ckpt"
        )
    assert any("losses before and after cannot be compared" in str(w.message) for w in caught)


def test_statistics_make_dimensions_alike():
    values = torch.randn(200, 3) * torch.tensor([1.0, 10.0, 0.1]) + torch.tensor([5.0, 0.0, -1.0])
    module = Standardize(3)
    for part in values.split(50):
        module(part)
    module.eval()
    result = module(values)
    assert result.mean(0).abs().max() < 0.1
    assert (result.std(0) - 1).abs().max() < 0.1
