"""Options of `vfm predict` that write pre-labels for an annotation tool: `--to` and `--threshold`."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from lightning.pytorch import Trainer

from vfm.cli.errors import UsageError
from vfm.cli.words import pop_option


class PreLabels(NamedTuple):
    """Pre-labels to write of a prediction, as the command line asks for them."""

    to: str
    threshold: float | None

    @classmethod
    def pop(cls, words: list[str], command: str) -> tuple[list[str], PreLabels | None]:
        """Split `--to` and `--threshold` from the words of a call.

        Raises:
            UsageError: They do not go with the command or with each other, or there is no such threshold.
        """
        words, to = pop_option(words, "--to")
        if command != "predict" and to:
            raise UsageError(f"--to writes the predictions of vfm predict, not of {command}.")
        if not to:
            return words, None
        words, stated = pop_option(words, "--threshold")
        try:
            threshold = float(stated[-1]) if stated else None
        except ValueError:
            threshold = -1.0
        if threshold is not None and not 0 <= threshold <= 1:
            raise UsageError(f"--threshold is {stated[-1]}. Give the least score, from 0 to 1.")
        return words, cls(to[-1], threshold)

    def name_folder(self, trainer: Trainer) -> Path:
        """Return the folder to write."""
        return Path(trainer.default_root_dir) / f"prelabels_{self.to}"
