"""Bundle with vectors: a copy of one that carries the rows of a store, which the runtime searches without torch."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from vfm_runtime.bundle.contract import CARD_FILE
from vfm_runtime.bundle.manifest import read_manifest, write_manifest
from vfm_runtime.errors import OptionError
from vfm_runtime.search import ROWS_FILE, VECTORS_FILE, VectorTable

from vfm.bundle.drafts import write_draft
from vfm.search.exact import load_block
from vfm.search.options import open_filtered


def write_vector_bundle(
    store: str, bundle: Path, out: Path, *, where: str | None = None
) -> VectorTable:
    """Write a copy of a bundle with the vectors, paths and columns of a store of its own embeddings.

    Args:
        store: Folder or address of a store whose rows the copy carries, in the order of their paths.
        bundle: Folder of a bundle that embeds as the store's model does.
        out: Folder to write, which is not there yet.
        where: Filter as `parse_filter` takes it; None for all rows.

    Returns:
        The vectors that the copy carries.

    Raises:
        StoreError: There is no such store, or it holds vectors of another model.
        OptionError: The bundle gives no embeddings, there are too many rows, or the folder is there.
        DataError: There are no rows, or one has a vector of zeros.
        FilterError: The filter is none.
    """
    manifest = read_manifest(bundle)
    embedding = manifest.contract.embedding
    if embedding is None or not embedding.fingerprint:
        raise OptionError(
            f"{bundle} gives no embeddings that say their fingerprint. Export it again with --embedding pooled."
        )
    opened, expression, columns = open_filtered(store, where)
    opened.require_model(embedding, str(bundle))
    if out.exists():
        raise OptionError(f"{out} is there already. Name a folder that is not.")
    block = load_block(opened, columns, expression)
    rows = block.rows.to_pydict()
    order = np.argsort(np.array(rows["path"]), kind="stable").tolist()
    cells = {name: [rows[name][row] for row in order] for name in rows}
    paths = cells.pop("path")
    table = VectorTable(embedding, block.vectors[order], paths, cells)
    with write_draft(out) as draft:
        for name in set(manifest.files) - {VECTORS_FILE, ROWS_FILE}:
            (draft / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(bundle / name, draft / name)
        table.write(draft)
        card = draft / CARD_FILE
        text = card.read_text(encoding="utf-8") if card.is_file() else ""
        note = f"\n## Search\n\nCarries the vectors of {len(paths):,} images, for `vfm-runtime search`.\n"
        card.write_text(text + note, encoding="utf-8")
        write_manifest(draft, manifest.contract)
    return table
