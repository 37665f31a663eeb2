"""What several tests of this folder need once."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import pytest

from tests.tasks.tiny import fit, vit


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained model: its folder, made by plain Python."""
    root = tmp_path_factory.mktemp("run")
    L.seed_everything(5)
    fit(root, vit(), max_epochs=4)
    return root


@pytest.fixture(scope="session")
def best(run: Path) -> Path:
    return run / "checkpoints" / "best.ckpt"
