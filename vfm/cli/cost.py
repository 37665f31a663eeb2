"""`vfm cost train`: what a training takes, before it starts."""

from __future__ import annotations

import json as json_format
import math
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from vfm.cli.errors import UsageError
from vfm.cli.recipes import Recipe, read_recipe
from vfm.cli.resume import find_option
from vfm.cli.training import build_parts
from vfm.cost.prices import HERE, PriceTable, Row, describe_source
from vfm.cost.published import find_run
from vfm.cost.quote import Quote
from vfm.cost.steps import count_flops, time_steps
from vfm.cost.training import (
    NUM_SHARDS,
    MemoryRow,
    compute_device_seconds,
    compute_seconds,
    describe_rows,
    format_memory,
    make_builder,
    measure_memory,
)
from vfm.training.fine_tuning import FEW_IMAGES, MIN_STEPS
from vfm.training.meter import EnergyMeter

_SYNTHETIC = {
    "class_path": "SyntheticData",
    "init_args": {"num_classes": 10, "num_images": 256, "augment": "none"},
}
"""Data of a recipe that names none; half of the images are to train."""


def estimate_training(
    recipe: Sequence[str],
    *,
    data: int,
    device: str = HERE,
    num_devices: int = 1,
    like: str | None = None,
    efficiency: float | None = None,
    prices: Path | None = None,
    grid: str = "world",
    json: bool = False,
) -> None:
    """Estimate what a training takes: memory, time, money, energy and CO2, by steps that are measured on this machine.

    The images are generated where the recipes name no data. Validation, and reading images, are not in the time: with
    your own data vfm fit --estimate measures them too.

    Args:
        recipe: Recipes of vfm fit, the later ones before the earlier.
        data: Number of training images.
        device: Device of the price table, such as a100-40gb; here is this machine, whose steps are measured.
        num_devices: Number of devices that share each batch, without loss.
        like: Published run, such as florence, whose efficiency another device is assumed to reach.
        efficiency: Fraction of its peak speed that another device reaches, in place of --like.
        prices: YAML file of your own prices, which go before those of vfm.
        grid: Carbon intensity of the price table.
        json: Print JSON, one object.

    Raises:
        UsageError: A number is out of range, or the time on another device cannot be told.
    """
    table = PriceTable.read(prices)
    row = table.find("devices", device)
    _check_numbers(data, num_devices, efficiency)
    working: list[str] = []
    if like is not None:
        implied, working = find_run(like).compute_efficiency(table)
        efficiency = implied if efficiency is None else efficiency
    if device != HERE and efficiency is None:
        raise UsageError(
            f"How fast {device} trains this cannot be measured here. Give --efficiency, the fraction of its peak that "
            "is reached, such as 0.3, or --like florence for that of a published run."
        )
    table.find("grids", grid)
    recipes = _read_recipes(recipe)
    with redirect_stdout(sys.stderr):  # standard output is for the estimate, which may be JSON
        task, images, resolved = build_parts(recipes, [])
    images.preprocess = task.preprocess
    images.setup("fit")
    trainer = resolved["trainer"]
    precision, batch = trainer["precision"] or "32-true", images.batch_size
    starts_at_random = find_option(recipes, [], "model", "pretrained") is False
    floor = 0 if starts_at_random or not task.follows_data_size else MIN_STEPS
    num_steps = _count_steps(resolved, data, batch, floor * (data < FEW_IMAGES))
    rows = measure_memory(task, images, math.ceil(batch / num_devices), precision)
    builder = make_builder(task)
    meter = EnergyMeter()
    times = time_steps(builder, images, batch, precision)
    joules = meter.read()
    taken = sum(sum(seconds) for _, seconds in (times.small, times.large))
    watts = None if joules is None else joules / taken
    flops = count_flops(builder, images)
    if device == HERE:
        seconds = compute_seconds(times, batch, num_steps, num_devices=num_devices)
    else:
        assert efficiency is not None  # asked for above
        total = flops * batch * num_steps
        seconds = compute_device_seconds(total, row, device, efficiency, num_devices)
    quote = Quote.compute(
        seconds.scale(1 / 3600),
        table,
        device=device,
        num_devices=num_devices,
        grid=grid,
        measured=(watts, meter.source) if device == HERE else (None, "no watts in the table"),
    )
    content: dict[str, Any] = {
        "backbone": task.backbone.name,
        "image_size": list(task.preprocess.size),
        "parameters": sum(p.numel() for p in task.backbone.parameters()),
        "gflop_per_image": flops / 1e9,
        "batch_size": batch,
        "steps": num_steps,
        "memory": describe_rows(rows),
        "seconds_per_step_here": times.predict(batch),
        "measured": {"small": times.small, "large": times.large},
        "device": device,
        "efficiency": efficiency,
        "working": working,
        "quote": quote.to_dict(),
    }
    if json:
        print(json_format.dumps(content, indent=2))
        return
    print("\n".join(_format(content, rows, quote, row)))


def _check_numbers(data: int, num_devices: int, efficiency: float | None) -> None:
    for name, value in (("data", data), ("num-devices", num_devices)):
        if value < 1:
            raise UsageError(f"--{name} is {value}. Give 1 or more.")
    if efficiency is not None and not 0 < efficiency <= 1:
        raise UsageError(f"--efficiency is {efficiency}. Give a fraction above 0, at most 1.")


def _read_recipes(paths: Sequence[str]) -> list[Recipe]:
    """Read recipes; generated images join those that name no data."""
    missing = [path for path in paths if not Path(path).is_file()]
    if missing:
        raise UsageError(
            f"There is no recipe {missing[0]}. Give files such as recipes/classification/finetune.yaml."
        )
    recipes = [read_recipe(path) for path in paths]
    if not any("data" in recipe for recipe in recipes):
        recipes.append({"data": _SYNTHETIC})
    return recipes


def _count_steps(recipe: Recipe, num_images: int, batch_size: int, floor: int) -> int:
    """Count the batches of a training as vfm fit does: those of its epochs, or more where steps have a floor."""
    trainer = recipe["trainer"]
    accumulated = trainer["accumulate_grad_batches"]
    asked = recipe["model"]["init_args"]["min_steps"]
    epochs = trainer["max_epochs"] * math.ceil(num_images / (batch_size * accumulated))
    steps = trainer["max_steps"]
    count = max(epochs, floor if asked == "auto" else asked) if steps in (None, -1) else steps
    return int(count * accumulated)


def _format(content: dict[str, Any], rows: list[MemoryRow], quote: Quote, device: Row) -> list[str]:
    width, height = content["image_size"]
    small, large = (content["measured"][name][0] for name in ("small", "large"))
    name, batch = content["device"], content["batch_size"]
    here = name == HERE
    lines = [
        f"{content['backbone']}, {width} x {height} pixels: {content['parameters'] / 1e6:.2f}M parameters, "
        f"{content['gflop_per_image']:.2f} GFLOP an image of a training step, attention counted",
        "",
        f"Memory in MB, {batch} images a step; DDP and FSDP2 on {NUM_SHARDS} devices are computed, not checked:",
        format_memory(rows, device.get("memory_gb")),
        *(
            []
            if device.get("memory_gb") is None
            else [f"* more than the {device['memory_gb']} GB of {name}"]
        ),
        "",
        f"A step here: {content['seconds_per_step_here']:.3g} s, from steps of {small} and {large} images; "
        f"{content['steps']} steps of {batch} images, without reading images and without validation",
        *content["working"],
    ]
    if not here:
        lines.append(
            f"On {describe_source(name, device)}: at {content['efficiency']:.1%} of its {device['tflops']} TFLOPS, "
            "assumed, not measured"
        )
    return [*lines, *quote.format_lines()]
