"""Class layer of a dense head, solved before the first step on what its tower sees in the training boxes."""

from __future__ import annotations

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor
from torch.nn import functional as F

from vfm.data import ImageData
from vfm.models.heads.dense import DenseHead
from vfm.training.checkpoint import CheckpointedModel
from vfm.types import Objects, require_target

_INSIDE, _NEAR = 0.25, 0.6
"""Distance to the middle of a box, as a fraction of its side, up to which a point is its own, and no background."""
_FEWEST_CELLS, _MOST_CELLS = 2, 10
"""Longer side of the boxes that a level of the pyramid learns, in its cells."""
_BACKGROUND = 20
"""Points without an object of each level and image."""
_MOST_POINTS = 20_000
_GOAL, _START = 0.6, -4.0
"""Score of a point in a box, since not all of them fit it well, and the bias to begin with."""
_STEPS, _DECAY = 60, 1e-2


@torch.no_grad()
def solve_classes(task: CheckpointedModel, data: ImageData) -> None:
    """Set the class layer of a DenseHead to a logistic regression on points inside and outside of the training boxes.

    So many points of images without augmentation as 20,000 allow are looked at, by the tower as it is; towers and boxes
    learn in training. Rows of classes that go on from a file stay. Rank 0 looks at its part of the images, and the
    other ranks take what it found.
    """
    head = task.head
    assert isinstance(head, DenseHead)
    if set(head.labels) == set(head.loaded_labels):
        return
    if task.trainer.is_global_zero:
        was_training = task.training
        task.eval()
        _set_classes(head, *_collect_points(task, head, data))
        task.train(was_training)
    if task.trainer.world_size > 1:
        for parameter in head.classes.parameters():
            torch.distributed.broadcast(parameter.data, src=0)


def _set_classes(head: DenseHead, inputs: Tensor, goals: Tensor) -> None:
    """Set the new classes by what their layer sees of M points, [M, 9 D], and the scores it should give, [M, C]."""
    if not (goals > 0).any():
        rank_zero_warn("No point lies within a training box: the class layer starts at random.")
        return
    weight, bias = _minimize_loss(inputs, goals)
    rows = [k for k, label in enumerate(head.labels) if label not in head.loaded_labels]
    layer = head.classes
    assert layer.bias is not None
    layer.weight[rows] = weight[rows].view_as(layer.weight[rows]).to(layer.weight)
    layer.bias[rows] = bias[rows].to(layer.bias)
    in_boxes = goals.sum(1) > 0
    right = (inputs[in_boxes] @ weight.T + bias).argmax(1) == goals[in_boxes].argmax(1)
    rank_zero_info(
        f"Class layer solved on {len(goals):,} points, {int(in_boxes.sum()):,} of them in boxes, of which "
        f"{100 * float(right.float().mean()):.0f} % have the right class."
    )


def _collect_points(
    task: CheckpointedModel, head: DenseHead, data: ImageData
) -> tuple[Tensor, Tensor]:
    """Return what the class layer sees of M points, [M, 9 D], and the scores that it should give, [M, C]."""
    generator = torch.Generator().manual_seed(data.seed)
    num_labels = head.classes.out_channels
    inputs, goals = [], []
    total = 0
    for batch in data.build_plain_loader("train"):
        if not len(batch["image"]):
            continue  # no file of it could be read
        objects = require_target(batch, Objects, task)
        images = task.preprocess.normalize(batch["image"].to(task.device))
        levels = head.pyramid(task.backbone(images).maps)
        for number, grid in enumerate(levels):
            # The finest level learns what is smaller too, the coarsest what is larger.
            least = _FEWEST_CELLS if number else 0
            most = _MOST_CELLS if number + 1 < len(levels) else max(grid.shape)
            goal, chosen = _choose_points(grid, objects, (least, most), num_labels, generator)
            seen = F.unfold(head.class_tower(grid), 3, padding=1).transpose(1, 2).cpu()
            inputs.append(seen[chosen].float())
            goals.append(goal[chosen])
            total += len(goals[-1])
        if total >= _MOST_POINTS:
            break
    return torch.cat(inputs), torch.cat(goals)


def _choose_points(
    grid: Tensor,
    objects: Objects,
    num_cells: tuple[int, int],
    num_labels: int,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Return the scores of the points of a level, [N, P, C], and which points to learn from, [N, P].

    Args:
        grid: The level, [N, D, h, w].
        objects: Objects of the N images.
        num_cells: Shortest and longest side, in cells, of the boxes that it learns.
        num_labels: Number of labels C.
        generator: Draws the points without an object.
    """
    count, (height, width) = len(grid), grid.shape[-2:]
    rows, columns = ((torch.arange(n) + 0.5) / n for n in (height, width))
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    points = torch.stack([x, y], -1).reshape(-1, 2)
    boxes, labels = objects.boxes.cpu(), objects.labels.cpu()
    owner = torch.repeat_interleave(torch.arange(count), objects.counts.cpu())
    # [T, P, 2]: how far points lie from the middle of each box, in its sides.
    distance = (points - boxes[:, None, :2]).abs() / boxes[:, None, 2:].clamp(min=1e-6)
    side = (boxes[:, 2:] * torch.tensor([width, height])).amax(1, keepdim=True)
    is_learned = (side >= num_cells[0]) & (side <= num_cells[1])
    box, point = ((distance < _INSIDE).all(-1) & is_learned).nonzero(as_tuple=True)
    goal = torch.zeros(count, len(points), num_labels)
    goal[owner[box], point, labels[box]] = _GOAL
    draws = torch.rand(count, len(points), generator=generator)
    box, point = (distance < _NEAR).all(-1).nonzero(as_tuple=True)
    draws[owner[box], point] = 2.0  # no background
    last = draws.sort(dim=1).values[:, min(_BACKGROUND, len(points)) - 1, None]
    return goal, (goal.sum(-1) > 0) | ((draws <= last) & (draws <= 1))


@torch.enable_grad()
def _minimize_loss(inputs: Tensor, goals: Tensor) -> tuple[Tensor, Tensor]:
    """Return weights [C, 9 D] and biases [C] of a logistic regression for each class."""
    mean, spread = inputs.mean(0), inputs.std(0) + 1e-5
    scaled = (inputs - mean) / spread
    weight = torch.zeros(goals.shape[1], inputs.shape[1], requires_grad=True)
    bias = torch.full((goals.shape[1],), _START, requires_grad=True)
    solver = torch.optim.LBFGS([weight, bias], max_iter=_STEPS, line_search_fn="strong_wolfe")

    def compute_loss() -> Tensor:
        solver.zero_grad()
        errors = F.binary_cross_entropy_with_logits(scaled @ weight.T + bias, goals)
        loss = goals.shape[1] * errors + _DECAY * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    solver.step(compute_loss)  # type: ignore[no-untyped-call]
    unscaled = (weight / spread).detach()
    return unscaled, bias.detach() - unscaled @ mean
