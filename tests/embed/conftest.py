from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from vfm.models.backbone import Backbone


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of `test_vit`, drawn at random."""
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("weights") / "vit.safetensors"
    save_file(Backbone("test_vit", pretrained=False).model.state_dict(), path)
    return path
