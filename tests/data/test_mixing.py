from __future__ import annotations

import pytest
import torch

from vfm.data.mixing import Mixing

# Image k is filled with k and has label k, so that a target can be read off the pixels.
IMAGES = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 16, 24).contiguous()
TARGET = torch.eye(4)


def labels_seen(images: torch.Tensor) -> torch.Tensor:
    return torch.stack([(images == k).float().mean((1, 2, 3)) for k in range(4)], dim=1)


def test_nothing_by_default():
    images, target = Mixing()(IMAGES, TARGET, (0,))
    assert images is IMAGES
    assert target is TARGET


def test_mixup_blends_images_and_labels_alike():
    for step in range(20):
        images, target = Mixing(mixup=0.8)(IMAGES, TARGET, (0, step))
        torch.testing.assert_close(target.sum(1), torch.ones(4))
        # The mean grey of a blend is the mean of its labels' numbers.
        torch.testing.assert_close(images.mean((1, 2, 3)), target @ torch.arange(4.0))


def test_cutmix_target_is_the_area():
    shares = []
    for step in range(50):
        images, target = Mixing(cutmix=1.0)(IMAGES, TARGET, (0, step))
        torch.testing.assert_close(labels_seen(images), target)
        shares.append(float(target[0, 0]))
    assert min(shares) < 0.3
    assert max(shares) > 0.7


def test_the_key_decides():
    mixing = Mixing(mixup=0.8, cutmix=1.0)
    first = mixing(IMAGES, TARGET, (1, 2, 3))[0]
    torch.manual_seed(9)
    assert torch.equal(first, mixing(IMAGES, TARGET, (1, 2, 3))[0])
    assert not torch.equal(first, mixing(IMAGES, TARGET, (1, 2, 4))[0])


def test_both_kinds_come_and_some_batches_are_left():
    mixing = Mixing(mixup=0.8, cutmix=1.0, probability=0.75)
    kinds = {"none": 0, "mixup": 0, "cutmix": 0}
    for step in range(200):
        images, _ = mixing(IMAGES, TARGET, (step,))
        whole = bool((images == images.round()).all())
        kinds["none" if torch.equal(images, IMAGES) else "cutmix" if whole else "mixup"] += 1
    assert 30 < kinds["none"] < 75
    assert abs(kinds["mixup"] - kinds["cutmix"]) < 45


def test_input_is_left_as_it_is():
    before = IMAGES.clone()
    Mixing(cutmix=1.0)(IMAGES, TARGET, (0, 1))
    assert torch.equal(IMAGES, before)


def test_one_image_stays():
    images, target = Mixing(mixup=1.0)(IMAGES[:1], TARGET[:1], (0,))
    assert torch.equal(images, IMAGES[:1])
    assert torch.equal(target, TARGET[:1])


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"mixup": -0.1}, r"mixing\.mixup is -0\.1\. Give a number from 0 to 10"),
        ({"probability": 1.2}, r"mixing\.probability is 1\.2\. Give a number from 0 to 1 "),
    ],
)
def test_values_out_of_range(values, text):
    with pytest.raises(ValueError, match=text):
        Mixing(**values)
