"""Attribution maps: Grad-CAM of convolutional nets and transformers, and patch contributions of linear heads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from vfm_runtime.tasks.detection import compute_iou

from vfm.models.heads.detection import to_corners
from vfm.tasks.base import BaseTask
from vfm.types import Raw

Map = NDArray[np.float32]
_TOLERANCE = 1e-4


def compute_grad_cam(task: BaseTask, pixels: NDArray[np.uint8], label: int) -> Map:
    """Return where the logit of a label comes from, [h, w], 0 and above: gradient-weighted activations (Grad-CAM).

    Selvaraju et al., Grad-CAM: visual explanations from deep networks via gradient-based localization, 2017. The
    activations are those of the last stage; of a transformer the tokens before its last block, since after it the
    places have no part in the class token any more.

    Args:
        task: Task whose head gives logits, in evaluation mode.
        pixels: Picture at the model's size, uint8 [1, H, W, 3].
        label: Index of the label; 0 of a head with one logit.
    """
    model = task.backbone.model
    module = model.get_submodule(model.feature_info[-1]["module"])
    with torch.enable_grad(), keep_activations(module) as activations:
        images = task.preprocess.normalize(torch.from_numpy(pixels).to(task.device))
        # Of a frozen backbone nothing else would ask for gradients.
        features = task.backbone(images.detach().requires_grad_(True))
        logit = task.head(features)["logits"].flatten()[label]
        before, after = activations
        used = after if after.ndim == 4 else before
        (gradient,) = torch.autograd.grad(logit, used)
    size = tuple(features.maps[-1].shape[-2:])
    values, slopes = (_arrange_places(each.detach(), size) for each in (used, gradient))
    weights = slopes.mean(dim=(0, 1))
    return _to_array((values @ weights).clamp(min=0))


def compute_box_map(
    task: BaseTask, pixels: NDArray[np.uint8], corners: NDArray[np.floating], label: int
) -> Map:
    """Return what each place adds to the logit of a box, [h, w], 0 and above: gradient times activation.

    Zhao et al., Gradient-based instance-specific visual explanations for object specification and object
    discrimination, 2024. Summed over the feature maps that the head reads, on the grid of the finest.

    Args:
        task: Task whose head finds boxes, in evaluation mode.
        pixels: Picture at the model's size, uint8 [1, H, W, 3].
        corners: Left, top, right, bottom of the box as fractions of the picture, [4].
        label: Index of its class.
    """
    with torch.enable_grad():
        images = task.preprocess.normalize(torch.from_numpy(pixels).to(task.device))
        # Of a frozen backbone nothing else would ask for gradients.
        features = task.backbone(images.detach().requires_grad_(True))
        raw = task.head(features)
        candidate = int(_compare_candidates(raw, corners, label)[0].argmax())
        logit = raw["logits"][0, candidate, label]
        gradients = torch.autograd.grad(logit, features.maps, allow_unused=True)
    total = torch.zeros(features.maps[0].shape[-2:], device=task.device)
    for values, slopes in zip(features.maps, gradients, strict=True):
        if slopes is not None:
            parts = (values.detach() * slopes).sum(dim=1, keepdim=True).float()
            enlarged = F.interpolate(parts, total.shape, mode="bilinear")[0, 0]
            # What one place of a coarse map adds is dealt out to all that it covers.
            total += enlarged * (parts.numel() / total.numel())
    return _to_array(total.clamp(min=0))


def score_box(
    task: BaseTask, corners: NDArray[np.floating], label: int, pixels: NDArray[np.uint8]
) -> NDArray[np.floating]:
    """Return how well a box is found in each of N pictures, [N]: the highest score of its class times the IoU with it.

    Petsiuk et al., Black-box explanation of object detectors via saliency maps (D-RISE), 2021.

    Args:
        task: Task whose head finds boxes, in evaluation mode.
        corners: Left, top, right, bottom of the box as fractions of the picture, [4].
        label: Index of its class.
        pixels: Pictures at the model's size, uint8 [N, H, W, 3].
    """
    with torch.inference_mode():
        raw = task(torch.from_numpy(pixels).to(task.device))
    best: NDArray[np.floating] = _compare_candidates(raw, corners, label).max(axis=1)
    return best


def _compare_candidates(
    raw: Raw, corners: NDArray[np.floating], label: int
) -> NDArray[np.floating]:
    """Return the score of each candidate for a box times its IoU with one, [N, Q]."""
    boxes = to_corners(raw["boxes"].detach().float()).cpu().numpy()
    scores = raw["logits"][..., label].detach().float().sigmoid().cpu().numpy()
    similarity: NDArray[np.floating] = scores * compute_iou(
        corners[None], boxes.reshape(-1, 4)
    ).reshape(scores.shape)
    return similarity


@contextmanager
def keep_activations(module: torch.nn.Module) -> Iterator[list[Tensor]]:
    """Keep what goes into a module and what comes out of it."""
    captured: list[Tensor] = []

    def keep(_: Any, inputs: Any, output: Any) -> None:
        captured[:] = [inputs[0], output]

    handle = module.register_forward_hook(keep)
    try:
        yield captured
    finally:
        handle.remove()


def _arrange_places(values: Tensor, size: tuple[int, ...]) -> Tensor:
    """Return activations of one picture by place, [h, w, D]: of maps with channels first or last, or of tokens."""
    if values.ndim == 3:
        height, width = size
        # Class and register tokens come first.
        return values[0, values.shape[1] - height * width :].reshape(height, width, -1)
    is_last = tuple(values.shape[1:3]) == size and tuple(values.shape[2:]) != size
    return values[0] if is_last else values[0].permute(1, 2, 0)


def split_logit(task: BaseTask, pixels: NDArray[np.uint8], label: int) -> Map | None:
    """Return what each place adds to the logit of a label, [h, w]: with the bias they sum to it.

    That is exact where the head is linear and the vector that it reads is the mean over the places; where features are
    brought to norm 1 first, their norm is taken as given.

    Args:
        task: Task whose head gives logits, in evaluation mode.
        pixels: Picture at the model's size, uint8 [1, H, W, 3].
        label: Index of the label; 0 of a head with one logit.

    Returns:
        None where the head is not linear, or reads no mean.
    """
    linear = task.head.get_linear()
    if linear is None:
        return None
    with torch.inference_mode():
        images = task.preprocess.normalize(torch.from_numpy(pixels).to(task.device))
        unpooled = task.backbone.model.forward_features(images).float()
        features = task.backbone(images)
        pooled = features.pooled[0].float()
        for values in list_arrangements(unpooled, tuple(features.maps[-1].shape[-2:])):
            mean = values.mean(dim=(0, 1))
            if mean.shape == pooled.shape and torch.allclose(mean, pooled, _TOLERANCE, _TOLERANCE):
                break
        else:
            return None
        weight = linear.weight[label].float()
        if linear.center is not None:
            values, pooled = values - linear.center, pooled - linear.center
        if linear.normalizes:
            weight = weight / pooled.norm()
        return _to_array(values @ weight / (values.shape[0] * values.shape[1]))


def list_arrangements(values: Tensor, size: tuple[int, ...]) -> Iterator[Tensor]:
    """Yield the ways in which features of one picture may lie in places, [h, w, D]."""
    if values.ndim == 3:
        if values.shape[1] >= size[0] * size[1]:
            yield _arrange_places(values, size)
    elif values.ndim == 4:
        yield values[0].permute(1, 2, 0)
        yield values[0]


def _to_array(values: Tensor) -> Map:
    return np.asarray(values.float().cpu().numpy(), np.float32)
