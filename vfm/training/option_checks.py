"""Option checks: settings that have no effect together, as a user who gave one expects it to do something."""

from __future__ import annotations

from vfm.models.adapt import AdaptOptions
from vfm.models.adaptation import Adaptation
from vfm.training.optim import Optim


def without_effect(
    adapt: Adaptation | str,
    options: AdaptOptions,
    frozen: bool,
    optim: Optim,
    drop_path: float,
    grad_checkpointing: bool,
    lp_ft: bool,
) -> list[str]:
    """A sentence for each setting that the adaptation leaves without effect.

    Args:
        adapt: The adaptation, or its short name.
        options: Options of a short name.
        frozen: Whether no weight of the backbone learns.
        optim: Of the optimiser.
        drop_path: Rate of stochastic depth.
        grad_checkpointing: Whether activations are computed anew.
        lp_ft: Whether the head is solved before the backbone learns.
    """
    idle = [f"adapt_options.{name}" for name in options.without_effect(adapt)]
    if frozen:
        given = {
            "drop_path": drop_path > 0,
            "grad_checkpointing": grad_checkpointing,
            "lp_ft": lp_ft,
            "optim.layer_decay": optim.layer_decay is not None,
        }
        idle += [name for name, is_given in given.items() if is_given]
    reason = ": the backbone stays frozen" if frozen else ""
    return [
        f"--model.{name} has no effect with --model.adapt {adapt}{reason}. Leave it out, or take another adaptation."
        for name in idle
    ]
