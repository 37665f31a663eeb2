"""Load a model from its checkpoint, or from an adapter file and the weights that it was learned on."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from vfm.spec import build
from vfm.training.adapter_file import put_adapter
from vfm.training.checkpoint_file import ADAPTER_SUFFIX, KEY, read_any


def load_model(
    path: str | Path, cls: type, *, base: str | Path | None = None, trust: Collection[str] = ()
) -> Any:
    """Rebuild a model from nothing but its file, in evaluation mode.

    Args:
        path: A checkpoint, or an `adapter.safetensors`.
        cls: The class that the model must derive from.
        base: For an adapter, the file of the backbone's weights, where it is no longer at its old place.
        trust: Packages besides vfm whose code the checkpoint may name.

    Raises:
        CheckpointError: The file cannot be read.
        SpecError: It names code that is not trusted or not found.
    """
    return restore_model(read_any(path), Path(path), cls, base=base, trust=trust)


def restore_model(
    content: dict[str, Any],
    path: Path,
    cls: type,
    *,
    base: str | Path | None = None,
    trust: Collection[str] = (),
) -> Any:
    """`load_model` of a file that was read already.

    Args:
        content: Content of the file, as `read_any` gives it.
        path: Path of the file.
        cls: The class that the model must derive from.
        base: For an adapter, the file of the backbone's weights.
        trust: Packages besides vfm whose code the checkpoint may name.

    Raises:
        CheckpointError: The file does not fit.
        SpecError: It names code that is not trusted or not found.
    """
    entry = content[KEY]
    arguments = entry["model"]["init_args"]
    is_adapter = path.suffix == ADAPTER_SUFFIX
    changed: dict[str, Any] = {}
    if not is_adapter:
        # The weights are in the file: nothing is fetched, and the file that training began with need not be here.
        changed = {"pretrained": False, "weights": None}
    elif base is not None:
        changed = {"weights": str(base)}
    model = build({**entry["model"], "init_args": arguments | changed}, base=cls, trust=trust)
    model.__dict__["_init_args"] |= {key: arguments[key] for key in ("pretrained", "weights")}
    model.on_load_checkpoint(content)
    if is_adapter:
        put_adapter(model, model.backbone.report, content["state_dict"], entry, path)
    else:
        model.load_state_dict(content["state_dict"])
    model.source = path
    return model.eval()
