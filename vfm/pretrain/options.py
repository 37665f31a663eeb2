"""Options of `vfm pretrain`, and its budget of time."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vfm_runtime.errors import OptionError, VfmError, suggest

from vfm.data.multi_crop import MultiCrop
from vfm.preprocess import Fit
from vfm.tasks.self_supervised.methods import DINO, MAE, LeJEPA, SelfSupervisedMethod, SwAV, VISReg

METHODS: dict[str, type[SelfSupervisedMethod]] = {
    "VISReg": VISReg,
    "LeJEPA": LeJEPA,
    "SwAV": SwAV,
    "DINO": DINO,
    "MAE": MAE,
}
DISTILLATION = "Distillation"
"""Name of the method that follows a teacher."""
_UNITS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}


class TimeBudgetError(VfmError, ValueError):
    """The budget is none, or too short for what it shall pay for."""


@dataclass(frozen=True, kw_only=True)
class PretrainOptions:
    """What is trained, and how.

    Args:
        backbone: A name of timm, which starts at random unless weights are given.
        pretrained: Fetch the weights that timm names for it, and go on from them.
        weights: A local file of its weights, to go on from.
        backbone_args: More arguments for timm's create_model, such as dynamic_img_size for views of a smaller side.
        image_size: Side of the square input in pixels; null for the backbone's own.
        fit: How other aspect ratios are met: crop, squash or letterbox.
        methods: Self-supervised methods that the pilot compares, with commas between: VISReg, LeJEPA, SwAV, DINO, MAE,
            whose vectors its authors fine-tune before they are of use.
        teacher: Backbone in timm, checkpoint or ONNX bundle, which the pilot compares as the method Distillation.
        teacher_weights: File of weights of a teacher by name, in place of timm's.
        teacher_size: Side of the input of a teacher by name in pixels; null for its own.
        views: Crops of each image that self-supervised methods compare.
        lr: Highest learning rate, from which each round falls to near zero.
        batch_size: Images in a batch.
        num_probe: Most images of each split of the probe that are looked at; of more, as many of each class are drawn.
    """

    backbone: str = "vit_small_patch16_224"
    pretrained: bool = False
    weights: Path | None = None
    backbone_args: dict[str, Any] | None = None
    image_size: int | None = None
    fit: Fit | None = None
    methods: str = "VISReg,LeJEPA"
    teacher: str | None = None
    teacher_weights: Path | None = None
    teacher_size: int | None = None
    views: MultiCrop = field(default_factory=MultiCrop)
    lr: float = 5e-4
    batch_size: int = 128
    num_probe: int = 2000

    def list_methods(self) -> list[str]:
        """Return the names of the methods of the pilot.

        Raises:
            OptionError: There is none, or no such method.
        """
        names = list(
            dict.fromkeys(name.strip() for name in self.methods.split(",") if name.strip())
        )
        for name in names:
            if name not in METHODS:
                raise OptionError(
                    f"--methods names '{name}'.{suggest(name, list(METHODS))} Choices: {', '.join(METHODS)}; a teacher "
                    "is named by --teacher."
                )
        names += [DISTILLATION] * (self.teacher is not None)
        if not names:
            raise OptionError(
                f"--methods is empty, and there is no --teacher. Give one or more of {', '.join(METHODS)}."
            )
        return names


def parse_budget(text: str) -> float:
    """Return the seconds of a budget such as 90s, 30m, 2h, 1.5d.

    Raises:
        TimeBudgetError: It is no time above 0.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(s|m|min|h|d)\s*", text)
    if match is None or not float(match[1]):
        raise TimeBudgetError(
            f"--budget is '{text}'. Give a number above 0 with its unit: 90s, 30m, 2h or 1.5d."
        )
    return float(match[1]) * _UNITS[match[2]]


def format_time(seconds: float) -> str:
    """Return seconds as text that `parse_budget` reads."""
    for unit in ("d", "h", "m"):
        if seconds >= 2 * _UNITS[unit]:
            return f"{seconds / _UNITS[unit]:.3g}{unit}"
    return f"{seconds:.0f}s"
