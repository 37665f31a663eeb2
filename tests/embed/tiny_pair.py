"""A pair of towers of open_clip that is small enough to be drawn at random."""

import json

import torch

_CONFIG = {
    "embed_dim": 32,
    "vision_cfg": {
        "image_size": 32,
        "layers": 1,
        "width": 64,
        "head_width": 32,
        "patch_size": 8,
    },
    "text_cfg": {
        "context_length": 16,
        "vocab_size": 49408,
        "width": 64,
        "heads": 2,
        "layers": 1,
    },
}


def write_tiny_pair(folder):
    """Make open_clip know `tiny_pair`, write its weights.pt, and return it with its transform."""
    import open_clip

    (folder / "tiny_pair.json").write_text(json.dumps(_CONFIG))
    open_clip.add_model_config(folder / "tiny_pair.json")
    torch.manual_seed(0)
    model, _, transform = open_clip.create_model_and_transforms("tiny_pair")
    torch.save(model.state_dict(), folder / "weights.pt")
    return model.eval(), transform
