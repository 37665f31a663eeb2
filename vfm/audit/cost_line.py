"""Cost line of an audit: seconds and energy an image, measured while it predicted, and on which machine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from vfm.cost.serving import describe_machine
from vfm.training.meter import EnergyMeter


class MeasuredPass(NamedTuple):
    """How fast images were predicted."""

    num_images: int
    seconds: float
    """Time from the first file to the last answer."""
    model_seconds: float
    """Part of it that the model itself took."""


def describe_cost(
    predicted: MeasuredPass,
    energy: EnergyMeter,
    before: float | None,
    *,
    batch_size: int,
    device: str,
) -> dict[str, Any]:
    """Return what the predictions of an audit cost on this machine, ready for JSON.

    Args:
        predicted: Number of images, and how long they took.
        energy: Meter, which is read once they are there.
        before: Joules on the meter when they began; None where nothing counts them.
        batch_size: Images in a batch.
        device: Device that the model runs on.
    """
    after, number = energy.read(), predicted.num_images
    return {
        "images_per_second": number / predicted.seconds,
        "model_seconds_per_image": predicted.model_seconds / number,
        "batch_size": batch_size,
        "joules_per_image": None if after is None or before is None else (after - before) / number,
        "energy_source": energy.source,
        "device": device,
        "machine": describe_machine(),
    }


def list_costs(cost: Mapping[str, Any]) -> list[str]:
    """Return sentences on what the predictions cost, and on which machine."""
    machine, joules = cost["machine"], cost["joules_per_image"]
    energy = (
        cost["energy_source"]
        if joules is None
        else f"{joules:.3g} J an image ({cost['energy_source']})"
    )
    return [
        f"The model: {1000 * cost['model_seconds_per_image']:.3g} ms an image, in batches of {cost['batch_size']}. "
        f"With opening and resizing: {cost['images_per_second']:.1f} images a second. The whole audit: "
        f"{cost['seconds']:.1f} s.",
        f"Energy of the predictions: {energy}.",
        f"Measured by this audit on {cost['device']}, on a machine of {machine['cores']} cores of {machine['cpu']} "
        f"({machine['system']}), with whatever else ran there; vfm cost serve measures latencies under load.",
    ]
