"""SelfSupervisedTask: views, methods that lower their loss, the anchor, refusals in words."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from lightning.pytorch import Callback
from vfm_runtime.errors import MissingPackageError, OptionError

import vfm
from tests.tasks.tiny import VIT, require_report, shapes, trainer
from vfm.data.multi_crop import Views
from vfm.tasks import Optim, SelfSupervisedTask
from vfm.tasks.self_supervised import methods

METHODS = {
    "VISReg": lambda: vfm.VISReg(num_slices=32, hidden_width=32, output_width=16),
    "LeJEPA": lambda: vfm.LeJEPA(num_slices=32, hidden_width=32, output_width=16),
    "SwAV": lambda: vfm.SwAV(num_prototypes=8, hidden_width=32, output_width=16),
    "DINO": lambda: vfm.DINO(output_width=64, hidden_width=32, momentum=0.9),
    "MAE": lambda: vfm.MAE(decoder_width=16, decoder_depth=1),
}


def build(**changes):
    settings = {"image_size": 32, "backbone_args": VIT, "optim": Optim(lr=3e-3)}
    return SelfSupervisedTask("vit_tiny_patch16_224", **(settings | changes))


class Losses(Callback):
    """Keeps the mean loss of each epoch."""

    def __init__(self):
        self.values = []

    def on_train_epoch_end(self, run, task):
        self.values.append(float(run.callback_metrics["train/loss_epoch"]))


@pytest.mark.parametrize("name", METHODS)
def test_a_method_lowers_its_loss(tmp_path, name):
    torch.manual_seed(0)
    task = build(method=METHODS[name](), views=vfm.MultiCrop(num_local=2, jitter=0.1, gray=0))
    losses = Losses()
    made = trainer(tmp_path, max_epochs=16, callbacks=[losses], limit_val_batches=0)
    made.fit(task, datamodule=shapes(batch_size=24))
    assert sum(losses.values[-2:]) < sum(losses.values[:2])
    loaded = SelfSupervisedTask.load(tmp_path / "checkpoints" / "last.ckpt")
    assert loaded.answer(torch.zeros((1, 32, 32, 3), dtype=torch.uint8))["embedding"].shape == (
        1,
        32,
    )


class Brittle(vfm.MAE):
    """A method that an image of one color breaks."""

    values: ClassVar[list[float]] = []

    def compute(self, views, backbone):
        losses = super().compute(views, backbone)
        if self.training:
            self.values.append(float(losses["MAELoss"].detach() * views.count))
        spread = views.images.large.flatten(2).std(2).amax(1)
        return {**losses, "spread": torch.where(spread < 1e-3, torch.nan, 0.0).mean()}


def blacken(batch, position):
    batch["image"][position] = 0


def test_a_step_that_is_no_number_is_done_again_on_the_same_views(tmp_path):
    trainer(tmp_path / "first").fit(build(method=METHODS["MAE"]()), datamodule=shapes())
    start = tmp_path / "first" / "checkpoints" / "last.ckpt"
    task = build(method=Brittle(decoder_width=16), weights=start, anchor=1.0)
    step = require_report(tmp_path, task, shapes(), blacken, trust=["tests"])
    assert step["MAELoss"] == Brittle.values[-1] == pytest.approx(Brittle.values[1])
    assert 0 < step["anchor"] < 16


@pytest.mark.parametrize("name", METHODS)
def test_a_last_batch_of_one_and_no_small_views_have_a_loss(name):
    task = build(method=METHODS[name](), views=vfm.MultiCrop(num_local=0))
    task.take_labels(vfm.SyntheticData())
    task.eval()
    batch = next(iter(shapes_of_one()))
    loss = task.compute_image_losses({}, batch)
    assert loss.shape == (1,)
    assert loss.isfinite().all()


def test_lejepa_without_small_views_is_refused():
    method, backbone = METHODS["LeJEPA"](), build().backbone
    method.prepare(backbone)
    views = methods.EmbeddedViews(Views(torch.zeros(8, 3, 32, 32), None), [[0]] * 4, lambda _: None)
    with pytest.raises(
        OptionError, match=r"takes small views, and num_local is 0\. Give 1 or more"
    ):
        method.compute(views, backbone)


def shapes_of_one():
    data = shapes(batch_size=1)
    data.preprocess = build().preprocess
    data.setup("fit")
    return data.val_dataloader()


def test_training_goes_on_with_teacher_and_center(tmp_path):
    def make():
        return build(method=METHODS["DINO"](), views=vfm.MultiCrop(num_local=0))

    task = make()
    trainer(tmp_path).fit(task, datamodule=shapes())
    again = make()
    last = tmp_path / "checkpoints" / "last.ckpt"
    trainer(tmp_path / "again").fit(again, datamodule=shapes(), ckpt_path=last)
    for key, value in again.state_dict().items():
        assert torch.equal(value, task.state_dict()[key]), key


def test_a_validation_with_dino_waits_for_no_other_rank(monkeypatch):
    center = pytest.importorskip("lightly.models.modules.center")
    calls: list[torch.Tensor] = []
    ranks = SimpleNamespace(
        is_available=lambda: True,
        is_initialized=lambda: True,
        get_world_size=lambda: 2,
        all_reduce=calls.append,
    )
    monkeypatch.setattr(center, "dist", ranks)
    method, backbone = METHODS["DINO"](), build().backbone
    method.prepare(backbone)
    images = Views(torch.randn(8, 3, 32, 32), None)
    views = methods.EmbeddedViews(images, [[0]] * 4, lambda crops: backbone(crops).pooled)
    before = method.loss.center.clone()
    method.eval().compute(views, backbone)
    assert not calls
    assert torch.equal(method.loss.center, before)
    method.train().compute(views, backbone)
    assert len(calls) == 1


def test_the_teacher_of_dino_follows_slowly(tmp_path):
    task = build(method=METHODS["DINO"]())
    trainer(tmp_path).fit(task, datamodule=shapes())
    teacher = task.training_parts["method"].teacher
    assert not any(p.requires_grad for p in teacher.parameters())
    pairs = zip(teacher["backbone"].parameters(), task.backbone.parameters(), strict=True)
    assert any(not torch.equal(a, b) for a, b in pairs)


def test_views_are_those_of_the_key_and_differ_from_each_other():
    images = torch.randn(3, 3, 32, 32)
    crop = vfm.MultiCrop(num_local=3, local_size=16)
    keys = [(0, 1, i) for i in range(3)]
    views = crop.cut(images, keys)
    assert views.large.shape == (6, 3, 32, 32)
    assert views.small.shape == (9, 3, 16, 16)
    alone = crop.cut(images[1:2], keys[1:2])
    torch.testing.assert_close(views.large[1::3], alone.large)
    torch.testing.assert_close(views.small[1::3], alone.small)
    assert not torch.equal(alone.large, crop.cut(images[1:2], keys[2:]).large)
    assert not torch.equal(views.large[:3], views.large[3:])
    whole = vfm.MultiCrop(num_local=0, global_scale=(1, 1), flip=0, jitter=0, gray=0)
    same = whole.cut(images[:1] * 0 + 2, [(0,)])
    assert same.small is None
    assert torch.allclose(same.large, torch.full((2, 3, 32, 32), 2.0), atol=1e-5)


def test_an_anchor_holds_features_near_their_start(tmp_path):
    trainer(tmp_path).fit(build(method=METHODS["VISReg"]()), datamodule=shapes())
    weights = tmp_path / "checkpoints" / "last.ckpt"
    far = []
    images = torch.randint(0, 255, (16, 32, 32, 3), dtype=torch.uint8)
    for anchor in (0.0, 100.0):
        torch.manual_seed(0)
        task = build(method=METHODS["VISReg"](), weights=weights, anchor=anchor)
        start = task.eval().answer(images)["embedding"].detach()
        task.train()
        trainer(tmp_path / str(anchor), limit_val_batches=0).fit(task, datamodule=shapes())
        now = task.eval().answer(images)["embedding"].detach()
        far.append(float((1 - (now * start).sum(1)).mean()))
    assert far[1] < far[0] / 2


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: build(anchor=-1), r"anchor is -1\. Give a number from 0 to 100"),
        (lambda: vfm.MultiCrop(num_global=1), r"views\.num_global is 1\. Give 2 to 8"),
        (lambda: vfm.MultiCrop(local_scale=(0.5, 0.1)), r"views\.local_scale is \(0\.5, 0\.1\)"),
        (lambda: vfm.VISReg(regularization=2), r"regularization is 2\. Give 0 to 1"),
        (lambda: vfm.SwAV(num_prototypes=1), r"num_prototypes is 1\. Give 2 or more"),
        (lambda: vfm.DINO(momentum=1), r"momentum is 1\. Give 0 to below 1"),
        (lambda: vfm.MAE(mask_ratio=1), r"mask_ratio is 1\. Give above 0, below 1"),
        (lambda: vfm.MAE(decoder_width=18), r"width is 18\. Give a multiple of 4 and of decoder_h"),
    ],
)
def test_options_out_of_range_are_refused(make, text):
    with pytest.raises(OptionError, match=text):
        make()


def test_what_cannot_be_trained_is_refused(tmp_path):
    with pytest.raises(OptionError, match="the backbone starts at random, where nothing is known"):
        trainer(tmp_path).fit(build(anchor=1.0), datamodule=shapes())
    views = vfm.MultiCrop(local_size=24)
    with pytest.raises(OptionError, match="does not take small views of 24 pixels"):
        trainer(tmp_path).fit(build(views=views), datamodule=shapes())


def test_a_masked_autoencoder_takes_plain_vits_alone(tmp_path):
    for name, kind in (("test_efficientnet", "EfficientNet"), ("eva02_tiny_patch14_224", "Eva")):
        task = SelfSupervisedTask(name, image_size=28, method=vfm.MAE())
        with pytest.raises(OptionError, match=f"'{name}' is {kind}. Take such a ViT"):
            trainer(tmp_path).fit(task, datamodule=shapes())


def test_hidden_pixels_are_all_that_counts():
    torch.manual_seed(0)
    task = build(method=vfm.MAE(mask_ratio=0.5, decoder_width=16, decoder_depth=1))
    backbone, method = task.backbone.eval(), task.__dict__["method"]
    method.prepare(backbone)
    images = torch.rand(2, 3, 32, 32)  # four patches, of which two are seen
    views = methods.EmbeddedViews(Views(images, None), [[3], [4]], lambda _: None)
    seen = method._choose_patches(1, [[3], [4]])
    assert seen.shape == (2, 2)
    loss = method.compute(views, backbone)["MAELoss"]
    # Another scale or brightness of a hidden patch is the same target, and changes nothing that is seen.
    changed = images.clone()
    hidden = next(i for i in range(4) if i not in seen[0])
    row, column = 16 * (hidden // 2), 16 * (hidden % 2)
    changed[0, :, row : row + 16, column : column + 16] *= 3
    views.images = Views(changed, None)
    assert torch.allclose(method.compute(views, backbone)["MAELoss"], loss, atol=1e-5)
    changed[0, :, row : row + 16, column : column + 16] = torch.rand(3, 16, 16)
    assert not torch.allclose(method.compute(views, backbone)["MAELoss"], loss, atol=1e-3)


def test_without_lightly_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "lightly.loss", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'vfm\[ssl\]'"):
        methods.load_lightly()


@pytest.mark.slow
def test_lightly_is_imported_without_the_network():
    code = (
        "import socket\n"
        "def refuse(*a, **k): raise SystemExit('it opened a socket')\n"
        "socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse\n"
        "import lightly.loss\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
