"""Training that is stopped and resumed sees the same samples and ends at the same weights."""

import shutil
import warnings
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from vfm.data import SyntheticData
from vfm.data.dataset import ImageDataset, collate
from vfm.data.loader import Position, ResumableLoader
from vfm.data.sampler import EpochSampler
from vfm.preprocess import Preprocess

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers")
SIZE = Preprocess(size=(16, 16))
NUM_BATCHES = 5
START = Position(epoch=0, batches=0)


class Toy(LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(768), nn.Linear(768, 2))
        self.seen = []

    def training_step(self, batch):
        self.seen.append((self.current_epoch, batch["index"].tolist()))
        logits = self.net(batch["image"].float() / 255)
        return nn.functional.cross_entropy(logits, batch["target"].label)

    def validation_step(self, batch):
        return None

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def fit(tmp_path, *, workers=0, checkpoint=None, save=None, **trainer):
    data = SyntheticData(
        num_classes=2, num_images=40, image_size=20, batch_size=4, num_workers=workers, seed=5
    )
    data.preprocess = SIZE
    model = Toy()
    options = {"filename": "{epoch}-{step}", "save_top_k": -1, **(save or {})}
    callback = ModelCheckpoint(tmp_path / "saved", **options)
    runner = Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[callback],
        **({"max_epochs": 2} | trainer),
    )
    runner.fit(model, data, ckpt_path=checkpoint, weights_only=checkpoint is not None)
    return model


def assert_same(resumed, straight, step):
    assert resumed.seen == straight.seen[step:]
    for name, value in straight.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


EVERY_STEP = {"every_n_train_steps": 1}
EPOCH_END = {"save_on_train_epoch_end": True, "every_n_epochs": 1}
AFTER_VALIDATION = {"save_on_train_epoch_end": False, "every_n_epochs": 1}


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    tmp_path = tmp_path_factory.mktemp("straight")
    return tmp_path / "saved", fit(tmp_path, save=EVERY_STEP)


def indices(seen):
    return sorted(index for _, batch in seen for index in batch)


def test_order_and_augmentation_differ_between_epochs(straight):
    _, model = straight
    first, second = model.seen[:NUM_BATCHES], model.seen[NUM_BATCHES:]
    assert [epoch for epoch, _ in model.seen] == [0] * NUM_BATCHES + [1] * NUM_BATCHES
    assert indices(first) == indices(second) == list(range(20))
    assert [i for _, i in first] != [i for _, i in second]


def test_workers_change_nothing(tmp_path, straight):
    assert_same(fit(tmp_path, workers=2), straight[1], 0)


@pytest.mark.parametrize(
    ("step", "workers"), [(1, 0), (3, 0), (3, 2), (5, 0), (6, 0), (8, 0), (8, 2), (9, 0)]
)
def test_resume_after_any_step(tmp_path, straight, step, workers):
    saved, model = straight
    checkpoint = saved / f"epoch={(step - 1) // NUM_BATCHES}-step={step}.ckpt"
    assert_same(fit(tmp_path, workers=workers, checkpoint=checkpoint), model, step)


@pytest.mark.parametrize("save", [EPOCH_END, AFTER_VALIDATION], ids=["train", "validation"])
@pytest.mark.parametrize("workers", [0, 2])
def test_resume_at_the_end_of_an_epoch(tmp_path, straight, save, workers):
    fit(tmp_path, save=save, max_epochs=1)
    (checkpoint,) = (tmp_path / "saved").glob("*.ckpt")
    resumed = fit(tmp_path, workers=workers, checkpoint=checkpoint)
    assert_same(resumed, straight[1], NUM_BATCHES)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stop", [3, 5, 7])
def test_resume_of_training_counted_in_steps(tmp_path, straight, stop, workers):
    fit(tmp_path, save=EVERY_STEP, max_epochs=-1, max_steps=stop)
    (checkpoint,) = (tmp_path / "saved").glob(f"*step={stop}.ckpt")
    resumed = fit(tmp_path, workers=workers, checkpoint=checkpoint, max_epochs=-1, max_steps=10)
    assert_same(resumed, straight[1], stop)


@pytest.mark.parametrize("save", [EPOCH_END, AFTER_VALIDATION], ids=["train", "validation"])
@pytest.mark.parametrize("workers", [0, 2])
def test_resume_at_the_end_of_an_epoch_counted_in_steps(tmp_path, straight, save, workers):
    steps = {"max_epochs": -1}
    fit(tmp_path, save=save, max_steps=NUM_BATCHES, **steps)
    (checkpoint,) = (tmp_path / "saved").glob("*.ckpt")
    resumed = fit(tmp_path, workers=workers, checkpoint=checkpoint, max_steps=10, **steps)
    assert_same(resumed, straight[1], NUM_BATCHES)


def test_resume_after_validation_within_an_epoch(tmp_path, straight):
    fit(tmp_path, save=AFTER_VALIDATION, val_check_interval=2)
    checkpoint = tmp_path / "saved" / "epoch=1-step=7.ckpt"
    resumed = fit(tmp_path / "again", checkpoint=checkpoint, val_check_interval=2)
    assert_same(resumed, straight[1], 7)


def test_overfitting_on_few_batches_still_works(tmp_path):
    model = fit(tmp_path, overfit_batches=2)
    assert len(model.seen) == 4
    assert model.seen[0][1] == model.seen[2][1]


def make_loader(*, num_images=10, batch_size=2, replicas=1, position=START):
    data = SyntheticData(num_classes=2, num_images=2 * num_images)
    records = data.read()["train"][:num_images]
    sampler = EpochSampler(num_images, shuffle=True, num_replicas=replicas)
    return ResumableLoader(
        ImageDataset(records, SIZE),
        position=lambda: position,
        sampler=sampler,
        batch_size=batch_size,
        collate_fn=collate,
    )


def order(loader):
    return [batch["index"].tolist() for batch in loader]


def test_position_is_saved_and_loaded():
    whole = make_loader()
    whole.sampler.set_epoch(3)
    loader = make_loader()
    loader.load_state_dict(make_loader(position=Position(3, 2)).state_dict())
    expected = order(whole)
    assert order(loader) == expected[2:]
    assert order(loader) == expected
    assert len(loader) == 5


def test_one_process_resumes_what_two_began():
    state = make_loader(batch_size=1, replicas=2, position=Position(0, 3)).state_dict()
    loader = make_loader(batch_size=2)
    expected = order(make_loader(batch_size=2))
    loader.load_state_dict(state)
    assert order(loader) == expected[3:]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"num_images": 8},
            r"since then have changed: num images \(10 to 8\)\. Resume with the same data",
        ),
        ({"batch_size": 4}, r"since then have changed: global batch size \(2 to 4\)\. Resume with"),
    ],
)
def test_what_changed_in_the_middle_of_an_epoch_is_told(changed, message):
    state = make_loader(position=Position(1, 2)).state_dict()
    with pytest.raises(ValueError, match=message):
        make_loader(**changed).load_state_dict(state)


def test_at_the_end_of_an_epoch_anything_may_change():
    state = make_loader(position=Position(1, 0)).state_dict()
    loader = make_loader(num_images=8, batch_size=4)
    loader.load_state_dict(state)
    assert loader.sampler.epoch == 1


def test_a_small_shared_memory_is_said(monkeypatch):
    data = SyntheticData(num_images=64, batch_size=16, num_workers=2)
    data.preprocess = Preprocess(size=(224, 224))
    usage = shutil.disk_usage("/")
    for size, warned in ((10**7, True), (10**9, False)):
        monkeypatch.setattr(
            shutil, "disk_usage", lambda path, size=size: usage._replace(total=size)
        )
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            data.train_dataloader()
        texts = [str(one.message) for one in caught if "/dev/shm" in str(one.message)]
        assert bool(texts) == (warned and Path("/dev/shm").is_dir())
        assert all("has 10 MB, and the batches of 2 workers take about 12 MB" in t for t in texts)
