"""Pack the head that recipes/detection/objects.yaml has trained: its file and its card, as the package carries them.

    python tests/benchmarks/object_head.py CKPT SCENES --backbones tf_efficientnet_lite0 [--gains FILE]

CKPT is a checkpoint of that recipe, SCENES the folder that object_scenes.py wrote for it. The class layer is left out,
all else is stored in half precision. The backbones are those for which the head becomes the default: those with which a
gain was measured; FILE is what `detection_heads.py --only objects` printed of it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from object_scenes import PHOTOS
from safetensors.torch import save_file

from vfm.models.heads.head_weights import OBJECTS
from vfm.models.tensors import compute_checksum
from vfm.tasks import BaseTask
from vfm.training.checkpoint import read_checkpoint


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("scenes", type=Path)
    parser.add_argument("--backbones", nargs="+", required=True)
    parser.add_argument("--gains", type=Path)
    options = parser.parse_args()
    task = BaseTask.load(options.checkpoint)
    head: Any = task.head
    tensors = {
        name: value.half().contiguous()
        for name, value in head.state_dict().items()
        if not name.startswith("classes.")
    }
    save_file(tensors, OBJECTS)
    content = read_checkpoint(options.checkpoint)
    scenes = json.loads((options.scenes / "train/_annotations.coco.json").read_text("utf-8"))
    batch = content["vfm"]["recipe"]["data"]["init_args"]["batch_size"]
    cost = json.loads((options.checkpoint.parent / "cost.json").read_text("utf-8"))
    lines = options.gains.read_text("utf-8").splitlines() if options.gains else []
    gains = [row for row in map(json.loads, lines) if row["unit"] == "AP"]
    card = {
        "about": "Pyramid, towers and boxes of a DenseHead that learned on generated scenes, without its classes.",
        "license": "Apache-2.0",
        "made_by": "recipes/detection/objects.yaml",
        "width": head.width,
        "depth": head.depth,
        "backbones": options.backbones,
        "checksum": compute_checksum(tensors),
        "scenes": len(scenes["images"]),
        "objects": len(scenes["annotations"]),
        "labels": len(scenes["categories"]),
        "images_seen": content["global_step"] * batch,
        "hours": round(cost["meter"]["hours"], 2),
        "font": "Noto Color Emoji, SIL Open Font License 1.1; the glyphs by their code points",
        "glyphs": json.loads((options.scenes / "glyphs.json").read_text("utf-8")),
        "photos": "scikit-image, public domain or CC0, by the function that returns them",
        "photo_names": list(PHOTOS),
        "gains": gains,
    }
    text = json.dumps(card, indent=1) + "\n"
    OBJECTS.with_suffix(".json").write_text(text, encoding="utf-8")
    print(f"{OBJECTS}: {OBJECTS.stat().st_size:,} bytes, {card['images_seen']:,} images seen")


if __name__ == "__main__":
    main()
