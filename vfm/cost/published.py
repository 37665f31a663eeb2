"""Published training runs, and the efficiency (MFU) that each implies: how much of the devices' peak they used."""

from __future__ import annotations

from dataclasses import dataclass

from vfm_runtime.errors import OptionError

from vfm.cost.prices import PriceTable

_BACKWARD = 3
"""Cost of a training step in forward passes: a backward pass costs two."""


@dataclass(frozen=True)
class Stage:
    """A part of a training at one resolution."""

    steps: float
    batch: int
    image_size: int


@dataclass(frozen=True)
class PublishedRun:
    """What a paper says of a training of an image and a text tower."""

    source: str
    image_parameters: float
    text_parameters: float
    pairs: float
    """Distinct pairs of image and text."""
    stages: tuple[Stage, ...]
    stride: int
    """Pixels along a side of a token where most of the image tower's weights are used."""
    text_tokens: int
    device: str
    """Row of the price table."""
    num_devices: int
    days: float

    def count_flops(self) -> list[tuple[Stage, float]]:
        """Return the FLOPs of each stage's pairs, forward and backward: 2 per weight and token, three times."""
        counted = []
        for stage in self.stages:
            image = 2 * self.image_parameters * (stage.image_size / self.stride) ** 2
            text = 2 * self.text_parameters * self.text_tokens
            counted.append((stage, _BACKWARD * (image + text) * stage.steps * stage.batch))
        return counted

    def compute_efficiency(self, table: PriceTable) -> tuple[float, list[str]]:
        """Return the fraction of the devices' peak that the run used, and the working, line by line."""
        peak = table.find("devices", self.device)["tflops"] * 1e12
        stages = self.count_flops()
        flops = sum(value for _, value in stages)
        seen = sum(stage.steps * stage.batch for stage in self.stages)
        seconds = self.days * 86400
        available = self.num_devices * peak * seconds
        lines = [
            f"{self.source}: {(self.image_parameters + self.text_parameters) / 1e6:.0f}M parameters "
            f"({self.image_parameters / 1e6:.0f}M image, {self.text_parameters / 1e6:.0f}M text), "
            f"{self.pairs / 1e6:.0f}M pairs, {self.num_devices} {self.device}, {self.days:g} days",
            *(
                f"  {stage.steps:,.0f} steps of {stage.batch:,} pairs at {stage.image_size} px: "
                f"{_BACKWARD} x 2 x ({self.image_parameters / 1e6:.0f}M x {(stage.image_size / self.stride) ** 2:.0f} "
                f"image tokens + {self.text_parameters / 1e6:.0f}M x {self.text_tokens} text tokens) a pair = "
                f"{value:.2e} FLOP"
                for stage, value in stages
            ),
            f"  {seen / 1e9:.1f}G pairs seen, {seen / self.pairs:.0f} times each: {flops:.2e} FLOP, without what "
            "activation checkpointing computes again",
            f"  available: {self.num_devices} x {peak / 1e12:g} TFLOPS x {seconds:,.0f} s = {available:.2e} FLOP",
            f"  efficiency (MFU) {flops:.2e} / {available:.2e} = {flops / available:.1%}, at "
            f"{seen / seconds / self.num_devices:.0f} pairs/s a device",
        ]
        return flops / available, lines


PUBLISHED = {
    "florence": PublishedRun(
        source="Florence, CoSwin-H and a text tower (arXiv 2111.11432)",
        image_parameters=637e6,
        text_parameters=256e6,
        pairs=900e6,
        stages=(Stage(1.08e6, 24_576, 224), Stage(8e4, 12_288, 384)),
        stride=16,
        text_tokens=77,
        device="a100-40gb",
        num_devices=512,
        days=10,
    )
}


def find_run(name: str) -> PublishedRun:
    """Return a published run.

    Raises:
        OptionError: There is none of that name.
    """
    if name not in PUBLISHED:
        raise OptionError(
            f"--like {name} is no published run that vfm knows. Choices: {', '.join(PUBLISHED)}; or give "
            "--efficiency, such as 0.3."
        )
    return PUBLISHED[name]
