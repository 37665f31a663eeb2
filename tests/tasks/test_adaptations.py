"""Adaptations in training: adapter files, stored features, the head first, and settings without effect."""

from __future__ import annotations

import os
import re
import shutil
import time
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler

import vfm
from tests.image_folders import write_image_folder
from tests.tasks.tiny import VIT, fit, require_equal, shapes, stored, vit
from vfm.data import FolderData
from vfm.data.feature_dataset import StoredFeatures
from vfm.models.adapt import AdaptOptions
from vfm.models.backbone import Backbone
from vfm.models.heads import AttentionPoolHead, ClassificationHead, LinearHead, MLPHead
from vfm.tasks import BaseTask, Optim
from vfm.training.checkpoint import CheckpointError
from vfm.training.feature_cache import CacheError, Ranks, _reserve_partial, load_features
from vfm.training.lp_ft import ProbeError
from vfm.types import Features


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VFM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "features"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(7)
    path = tmp_path_factory.mktemp("base") / "base.safetensors"
    made = Backbone("vit_tiny_patch16_224", pretrained=False, image_size=32, arguments=VIT)
    save_file(made.model.state_dict(), path)
    return path


def pixels(number: int = 6) -> torch.Tensor:
    return torch.randint(0, 256, (number, 32, 32, 3), dtype=torch.uint8)


@pytest.mark.parametrize("how", ["lora", "effort", "ln", "linear", "partial"])
def test_an_adapter_and_its_base_are_the_checkpoint(tmp_path: Path, base: Path, how: Any) -> None:
    options = AdaptOptions(blocks=1) if how == "partial" else AdaptOptions()
    task = vit(weights=base, adapt=how, adapt_options=options, optim=Optim(lr=1e-2))
    fit(tmp_path, task, max_epochs=2)
    best = tmp_path / "checkpoints" / "best.ckpt"
    adapter = best.with_name("adapter.safetensors")
    images = pixels()
    with torch.no_grad():
        expected = BaseTask.load(best)(images)["logits"]
        assert torch.equal(BaseTask.load(adapter)(images)["logits"], expected)
    frozen = {"lora": "qkv.base_layer.weight", "effort": "qkv.weight"}.get(how, "qkv.weight")
    assert not any(name.endswith("blocks.0.attn." + frozen) for name in load_file(adapter))
    assert vfm.load(adapter).predict([np.zeros((32, 32, 3), np.uint8)])[0].label
    # As the weights of a plain model of its own.
    plain = Backbone("vit_tiny_patch16_224", weights=str(best), image_size=32, arguments=VIT)
    task = BaseTask.load(best)
    with torch.no_grad():
        x = task.preprocess.normalize(images)
        assert torch.allclose(plain.eval()(x).pooled, task.backbone(x).pooled, atol=1e-5)


def test_an_adapter_refuses_another_base(tmp_path: Path, base: Path) -> None:
    fit(tmp_path, vit(weights=base, adapt="lora"))
    adapter = tmp_path / "checkpoints" / "adapter.safetensors"
    other = tmp_path / "other.safetensors"
    save_file({k: v + 1 for k, v in load_file(base).items()}, other)
    with pytest.raises(
        CheckpointError, match=r"was learned on weights with checksum \w{16} .*--base FILE"
    ):
        BaseTask.load(adapter, base=other)
    moved = shutil.copy(base, tmp_path / "moved.safetensors")
    assert BaseTask.load(adapter, base=moved).labels


def test_what_is_no_adapter_is_said(tmp_path: Path, base: Path) -> None:
    with pytest.raises(CheckpointError, match="There is no adapter"):
        BaseTask.load(tmp_path / "adapter.safetensors")
    with pytest.raises(CheckpointError, match=r"is no adapter of vfm.*--model\.weights"):
        BaseTask.load(base)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(base.read_bytes()[:50])
    with pytest.raises(CheckpointError, match=r"\(50 bytes\) cannot be read as an adapter"):
        BaseTask.load(cut)


def test_no_adapter_of_a_random_start(tmp_path: Path) -> None:
    fit(tmp_path, vit(adapt="lora"))
    assert not (tmp_path / "checkpoints" / "adapter.safetensors").exists()


def test_stored_features_change_nothing_but_the_time(tmp_path: Path, own_cache: Path) -> None:
    found = []
    for cached in (True, False):
        L.seed_everything(0)
        task = vit(adapt="linear", cache_features=cached, head=AttentionPoolHead(num_heads=2))
        metrics = fit(tmp_path / str(cached), task, max_epochs=3).callback_metrics
        found.append((task.state_dict(), {k: v for k, v in metrics.items() if "val/" in k}))
    assert len(list(own_cache.iterdir())) == 2
    for name, value in found[0][0].items():
        assert torch.allclose(value, found[1][0][name], atol=1e-5), name
    for name, value in found[0][1].items():
        assert torch.allclose(value, found[1][1][name], atol=1e-5), name


class Counting(vfm.ClassificationTask):
    def on_fit_start(self) -> None:
        self.images = 0
        self.backbone.register_forward_hook(self._count)
        super().on_fit_start()

    def _count(self, module: Any, inputs: Any, output: Any) -> None:
        self.images += len(inputs[0])


def counting(**changes: Any) -> Counting:
    return Counting(
        "vit_tiny_patch16_224",
        pretrained=False,
        image_size=32,
        backbone_args=VIT,
        adapt="linear",
        head=MLPHead(hidden=8),  # a linear one would be solved
        min_steps=0,
        **changes,
    )


def test_the_backbone_sees_each_image_once_and_never_again(tmp_path: Path, base: Path) -> None:
    first = counting(weights=base)
    fit(tmp_path / "1", first, max_epochs=3)
    golden = 2  # images that the checkpoint's golden features are of
    assert first.images == 48 + 24 + 2 + golden  # and one each for the shape of the features
    again = counting(weights=base)
    fit(tmp_path / "2", again, max_epochs=3)
    assert again.images == golden


@pytest.mark.parametrize("change", ["weights", "size", "image", "order"])
def test_what_changes_the_features_changes_their_place(
    tmp_path: Path, base: Path, own_cache: Path, change: str
) -> None:
    images = write_image_folder(tmp_path / "images", images_per_class=8)
    data = {"batch_size": 8, "augment": "none", "num_workers": 0}
    fit(tmp_path, counting(weights=base), FolderData(images, **data))  # type: ignore[arg-type]
    before = len(list(own_cache.iterdir()))
    model: dict[str, Any] = {"weights": base}
    if change == "weights":
        changed = tmp_path / "changed.safetensors"
        save_file({k: v * 1.01 for k, v in load_file(base).items()}, changed)
        model["weights"] = changed
    elif change == "size":
        model["fit"] = "letterbox"
    elif change == "image":
        for path in images.rglob("*.png"):
            path.touch()
    else:
        data["seed"] = 1
    task = counting(**model)
    fit(tmp_path, task, FolderData(images, **data))  # type: ignore[arg-type]
    assert task.images > 0
    assert len(list(own_cache.iterdir())) == before + 2


def test_unreadable_images_are_skipped_from_the_store_too(tmp_path: Path) -> None:
    images = write_image_folder(tmp_path / "images", images_per_class=60)
    broken = next((images / "class_0").iterdir())
    data = FolderData(images, batch_size=8, augment="none", num_workers=0)
    data.setup("fit")
    name = data.records["train"][0].name
    broken = images / name
    broken.write_bytes(b"broken")
    for run in range(2):
        task = vit(adapt="linear")
        fit(
            tmp_path / str(run),
            task,
            FolderData(images, batch_size=8, augment="none", num_workers=0),
        )
        assert list(task.skipped.files["train"]) == [name]


def test_two_jobs_may_compute_the_same_features(own_cache: Path) -> None:
    backbone = Backbone("vit_tiny_patch16_224", pretrained=False, image_size=32, arguments=VIT)
    data = shapes(num_workers=0)
    said: list[str] = []

    def features(ranks: Ranks) -> StoredFeatures:
        return load_features(
            backbone,
            backbone.preprocess,
            data,
            "val",
            ["pooled"],
            ranks=ranks,
            progress=said.append,
        )

    def another_job() -> None:
        if not said:
            features(Ranks())

    data.preprocess = backbone.preprocess
    data.setup("fit")
    first = features(Ranks(barrier=another_job))
    (folder,) = own_cache.iterdir()  # and nothing half done beside it
    assert len(said) == 2
    assert all("computed once and kept in" in text for text in said)
    np.testing.assert_array_equal(first.arrays["pooled"], np.load(folder / "pooled.npy"))


def test_what_a_killed_job_left_is_deleted_in_time(own_cache: Path) -> None:
    folder = own_cache / "key"
    for name, days in (("key.1.partial", 8), ("key.2.partial", 6), ("other.1.partial", 8)):
        (own_cache / name).mkdir(parents=True)
        changed = time.time() - days * 24 * 3600
        os.utime(own_cache / name, (changed, changed))
    new = _reserve_partial(folder)
    assert new.parent == own_cache
    assert {path.name for path in own_cache.iterdir()} == {"key.2.partial", "other.1.partial"}


def test_augmented_images_are_not_stored_and_the_user_hears_why(
    tmp_path: Path, own_cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        fit(tmp_path, vit(adapt="linear"), shapes(augment="light"))
    assert not own_cache.exists()
    assert "With --data.augment none its features are computed once" in caplog.text


def test_a_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil._ntuple_diskusage(100, 90, 10)  # type: ignore[attr-defined]
    monkeypatch.setattr("vfm.training.feature_cache.shutil.disk_usage", lambda path: usage)
    with pytest.raises(
        CacheError, match=r"The features would take .*--model\.cache_features false"
    ):
        fit(tmp_path, vit(adapt="linear"))


def test_a_later_run_on_the_same_data_reads_images_again(tmp_path: Path) -> None:
    data = shapes()
    fit(tmp_path / "a", vit(adapt="linear", head=MLPHead(hidden=8)), data)
    assert "features" not in next(iter(data.val_dataloader()))
    # Also after a run that broke off before it could tidy up.
    data.stored = {"train": StoredFeatures(data.records["train"], 0)}
    fit(tmp_path / "b", vit(), data)


def test_the_head_is_solved_first(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Keep(L.Callback):
        def on_train_start(self, run: Any, task: Any) -> None:
            self.head = {k: v.clone() for k, v in task.head.state_dict().items()}
            self.backbone = {k: v.clone() for k, v in task.backbone.state_dict().items()}

    keep, task = Keep(), vit(lp_ft=True, optim=Optim())
    before = {k: v.clone() for k, v in task.backbone.state_dict().items()}
    with caplog.at_level("INFO"):
        fit(tmp_path, task, callbacks=[keep])
    assert task.optim.lr == pytest.approx(1e-5)
    require_equal(before, keep.backbone)
    assert "Head solved on 48 images in" in caplog.text
    # Against scikit-learn on the same features, with the C that was chosen.
    c, scaling = re.findall(r"C ([0-9.e+-]+), scaling (\w+);", caplog.text)[0]
    data = shapes()
    data.preprocess = task.preprocess
    data.setup("fit")
    batch = next(iter(shapes_loader(data)))
    fresh = vit()
    fresh.backbone.load_state_dict(before)
    with torch.no_grad():
        x = fresh.eval().backbone(task.preprocess.normalize(batch["image"])).pooled.numpy()
    y = batch["target"].label.numpy()
    head = LinearHead().eval()
    head.prepare(fresh.backbone.info, data.labels)
    head.load_state_dict(keep.head)
    answers = head(Features.fill({"pooled": torch.from_numpy(x)}))["logits"].argmax(1).numpy()
    scalers = {"none": [], "l2": [Normalizer()], "standardized": [StandardScaler()]}
    reference = make_pipeline(*scalers[scaling], LogisticRegression(C=float(c), max_iter=9999))
    assert (answers == reference.fit(x, y).predict(x)).mean() > 0.95


def test_a_head_of_two_layers_is_solved_first_by_the_loss_of_the_task(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        fit(tmp_path, vit(lp_ft=True, head=MLPHead(hidden=8)))
    assert "Head solved on 48 images: loss 1." in caplog.text


def shapes_loader(data: Any) -> Any:
    data.batch_size = 1000
    return data.build_plain_loader("train")


class MapHead(ClassificationHead):
    def build(self, info: Any, num_labels: int) -> None:
        self.linear = torch.nn.Linear(info.token_width, num_labels)

    def forward(self, features: Any) -> Any:
        return {"logits": self.linear(features.maps[-1].mean((2, 3)))}


def test_a_head_that_reads_maps_is_trained_on_images(tmp_path: Path, own_cache: Path) -> None:
    fit(tmp_path, vit(adapt="linear", head=MapHead()))
    assert not own_cache.exists()
    with pytest.raises(ProbeError, match=r"needs a head that reads no feature maps; MapHead does"):
        fit(tmp_path, vit(lp_ft=True, head=MapHead()))


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ({"adapt": "linear", "drop_path": 0.1}, ["drop_path"]),
        ({"adapt": "linear", "grad_checkpointing": True}, ["grad_checkpointing"]),
        ({"adapt": "linear", "lp_ft": True}, ["lp_ft"]),
        ({"adapt": "linear", "optim": Optim(layer_decay=0.7)}, ["optim.layer_decay"]),
        ({"adapt": "full", "adapt_options": AdaptOptions(r=4)}, ["adapt_options.r"]),
        ({"adapt": "ln", "adapt_options": AdaptOptions(blocks=1)}, ["adapt_options.blocks"]),
        (
            {"adapt": "effort", "adapt_options": AdaptOptions(r=2, alpha=4, dropout=0.1)},
            ["adapt_options.alpha", "adapt_options.dropout"],
        ),
        ({"adapt": "lora", "adapt_options": AdaptOptions(r=4, targets=["qkv"])}, []),
        ({"adapt": "partial", "adapt_options": AdaptOptions(blocks=1)}, []),
        ({"adapt": "full", "drop_path": 0.1, "grad_checkpointing": True}, []),
    ],
)
def test_settings_without_effect_are_warned_of(arguments: Any, names: list[str]) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        vit(**arguments)
    texts = [str(w.message) for w in caught if "has no effect" in str(w.message)]
    assert len(texts) == len(names)
    for name, text in zip(names, texts, strict=True):
        how = arguments["adapt"]
        assert text.startswith(f"--model.{name} has no effect with --model.adapt {how}")


@pytest.mark.parametrize("number", [78, 84])
def test_accumulated_batches_weigh_every_image_alike(tmp_path: Path, number: int) -> None:
    """Also where the last step has fewer batches, and the last batch fewer images."""
    found = []
    for size, accumulate in ((16, 1), (4, 4)):
        L.seed_everything(0)
        data = shapes(num_images=number, batch_size=size)
        task = vit(optim=Optim(lr=1e-3))
        run = fit(tmp_path, task, data, accumulate_grad_batches=accumulate, max_epochs=2)
        found.append((task.state_dict(), run.global_step))
    assert found[0][1] == found[1][1]
    for name, value in found[0][0].items():
        if not name.endswith("qkv.bias"):  # the keys' part has no gradient but rounding
            assert torch.allclose(value, found[1][0][name], atol=2e-5), name


def test_the_licence_travels(tmp_path: Path) -> None:
    name = "vit_small_patch16_dinov3"
    plain = Backbone(name, pretrained=False, image_size=32, arguments=VIT)
    save_file(plain.model.state_dict(), tmp_path / "w.safetensors")
    with pytest.warns(UserWarning, match="Licence of the weights of .*: dinov3-license: .*"):
        task = vit(backbone=name + ".lvd1689m", weights=tmp_path / "w.safetensors")
    fit(tmp_path, task)
    best = tmp_path / "checkpoints" / "best.ckpt"
    assert stored(best)["vfm"]["license"] == "dinov3-license"
    with pytest.warns(UserWarning, match="dinov3-license"):
        again = vit(backbone=name, weights=best)
    assert again.license == "dinov3-license"
