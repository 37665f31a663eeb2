"""Bundle of a pair of towers of open_clip: it embeds images, and where asked for words, as the pair does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from torch import nn
from vfm_runtime.bundle.contract import (
    CARD_FILE,
    MODEL_FILE,
    PARITY_FILE,
    PREPROCESS_FILE,
    Contract,
)
from vfm_runtime.bundle.manifest import write_manifest
from vfm_runtime.tasks.embedding import OUTPUT, EmbeddingType, measure_cosine
from vfm_runtime.text import TEXT_FILE, TEXT_OUTPUT, TOKENS, TextSpec
from vfm_runtime.zero_shot import TextModel

from vfm.bundle.drafts import load_draft, replace_folder, write_draft, write_json
from vfm.bundle.errors import ExportError
from vfm.bundle.golden import write_golden
from vfm.bundle.lineage import (
    BOM_FILE,
    WEIGHTS,
    describe_uses,
    describe_weights,
    make_bom,
    require_commercial,
)
from vfm.bundle.onnx_graphs import write_graph, write_preprocess
from vfm.bundle.options import ExportOptions
from vfm.bundle.parity import (
    LEAST_COSINE,
    Parity,
    ParityError,
    choose_images,
    compare,
    compare_embeddings,
    raise_disagreement,
)
from vfm.bundle.tokenizer import PROBES, convert_tokenizer
from vfm.models.text import TowerModel
from vfm.tasks.image_text import OpenClipModel, open_pair
from vfm.training.checkpoint import list_versions

_TAKEN = frozenset(
    (
        "images",
        "out",
        "text",
        "opset",
        "num_images",
        "tolerance",
        "overwrite",
        "base",
        "trust",
        "commercial",
    )
)
"""Options that say something of a pair."""
LICENSES: Mapping[str, str | None] = {WEIGHTS: None}
"""Licence of the parts of a pair: open_clip states none for its tags."""


class TextPart(NamedTuple):
    """The text tower of a bundle, and its tokenizer."""

    tower: nn.Module
    """Gives `text_embedding` of `tokens`."""
    tokenizer: Any
    """Tokenizer of the package tokenizers."""
    spec: TextSpec

    @classmethod
    def of_model(cls, model: TowerModel) -> Self:
        """Take the text tower of a trained model; its logits are those of its scale and bias."""
        module, scale, bias = model.text_tower.cpu().float().eval(), model.scale, model.bias
        assert scale is not None  # of what embeds texts
        tokenizer = module.tower.tokenizer
        if not hasattr(tokenizer, "to_str"):  # not of the package tokenizers
            return cls(module, *convert_tokenizer(tokenizer, scale, bias))
        return cls(module, tokenizer, replace(module.tower.text_spec, scale=scale, bias=bias))

    def describe(self) -> dict[str, Any]:
        """Return the extension `tokenizer` of a contract."""
        return {k: v for k, v in asdict(self.spec).items() if v not in (None, ())}

    def write(self, folder: Path, contract: Contract, opset: int) -> None:
        """Write tokenizer and graph into the folder of a bundle."""
        self.tokenizer.save(str(folder / self.spec.file), pretty=False)
        tokens = torch.zeros((2, self.spec.length), dtype=torch.int64)
        write_graph(
            folder / TEXT_FILE, self.tower, {TOKENS: tokens}, (TEXT_OUTPUT,), contract, opset
        )


def compare_texts(model: TextModel, runtime: TextModel) -> dict[str, Any]:
    """Compare the vectors of texts by a model and by its bundle; return what to say of it.

    Raises:
        ParityError: They differ.
    """
    cosines = measure_cosine(model.embed_text(PROBES), runtime.embed_text(PROBES))
    worst = float(cosines.min())
    if not worst >= LEAST_COSINE:
        raise ParityError(
            f"The bundle does not read as the model does: the cosine of the two vectors of "
            f"{PROBES[int(cosines.argmin())]!r:.60} is {worst:.6f}, and must be {LEAST_COSINE} or more. Export with "
            "another --opset."
        )
    return {"num_texts": len(PROBES), "least_cosine": worst}


def export_pair(name: str, options: ExportOptions) -> Parity:
    """Make a bundle of a pair, `open_clip:NAME/WEIGHTS`, and prove on real images and texts that it embeds alike.

    Args:
        name: Name of the pair.
        options: Options of the export.

    Returns:
        The comparison, which has passed.

    Raises:
        ParityError: The vectors differ; nothing is written to `out`.
        ExportError: The folder exists, an option makes no sense for a pair, or its tokenizer cannot be written.
    """
    options.check()
    for field in fields(options):
        if field.name not in _TAKEN and getattr(options, field.name) != field.default:
            raise ExportError(
                f"--{field.name} goes with a checkpoint, and {name} is a pair of towers, whose bundle embeds in 32 "
                "bits. Leave it out."
            )
    if options.commercial:
        require_commercial(LICENSES)
    paths = choose_images(options.images, options.num_images)
    model = open_pair(name, base=options.base, device="cpu")
    with write_draft(options.out) as draft:
        return _write(draft, model, paths, options)


def _write(
    folder: Path, model: OpenClipModel, paths: Sequence[Path], options: ExportOptions
) -> Parity:
    assert model.embedding is not None
    extensions: dict[str, Any] = {"embedding": asdict(model.embedding)}
    text = None
    if options.text:
        converted = convert_tokenizer(model.tokenizer, model.scale, model.bias)
        text = TextPart(model.text_tower, *converted)
        extensions["tokenizer"] = text.describe()
    preprocess = model.image_tower.preprocess
    contract = Contract(
        task=EmbeddingType.name,
        labels=model.labels,
        preprocess=preprocess.to_dict(),
        backbone=model.name,
        license=None,
        versions={**list_versions(), "open_clip_torch": version("open_clip_torch")},
        extensions=extensions,
    )
    write_preprocess(folder / PREPROCESS_FILE, contract, preprocess, options.opset)
    pixels = torch.zeros((2, *preprocess.size, 3), dtype=torch.uint8)
    inputs = {"pixels": pixels}
    write_graph(folder / MODEL_FILE, model.image_tower, inputs, (OUTPUT,), contract, options.opset)
    if text is not None:
        text.write(folder, contract, options.opset)
    runtime = load_draft(folder, contract)
    parity = compare(model, runtime, paths, options.tolerance)
    if not parity.passed:
        write_json(folder / PARITY_FILE, parity.to_dict())
        write_manifest(folder, contract)
        rejected = options.out.with_name(f"{options.out.name}.rejected")
        replace_folder(folder, rejected)
        raise_disagreement(parity, rejected)
    compare_embeddings(model, runtime, [Path(image.name) for image in parity.images])
    facts = parity.to_dict() | {"precisions": {}}
    note = "It has no text tower; with --text it embeds words too."
    if text is not None:
        # Which tokens they have was compared when the tokenizer was converted.
        facts["texts"] = compare_texts(model, runtime) | {"equal_tokens": True}
        worst = facts["texts"]["least_cosine"]
        note = f"{len(PROBES)} texts have the same tokens, and vectors of a cosine of {worst:.6f} or more."
    write_json(folder / PARITY_FILE, facts)
    write_golden(folder, model, parity, {})
    height, width = preprocess.size
    kind = "image-feature-extraction" if text is None else "zero-shot-image-classification"
    limits = "".join(f"- **{line}**\n" for line in describe_uses(LICENSES))
    card = f"""---
library_name: vfm
pipeline_tag: {kind}
tags: [vfm, onnx, embedding]
---

# {model.name}

- Licence of the weights: not stated; look at that of open_clip's tag
{limits}- Input: any image; brought to {height} x {width} pixels ({preprocess.fit}, {preprocess.interpolation})
- Fingerprint of weights and preprocessing: {model.embedding.fingerprint}

## Agreement of the bundle with the pair

{parity}; tolerance {parity.tolerance:.0e}. {note} One image from file to vector on the CPU: {parity.onnx_ms:.1f} ms, by
torch {parity.torch_ms:.1f} ms.
"""
    (folder / CARD_FILE).write_text(card, encoding="utf-8")
    bom = make_bom(
        folder,
        contract,
        [describe_weights(model.name, model.name, model.checksum, None)],
        versions=contract.versions,
        fingerprint=model.embedding.fingerprint,
        metrics={},
    )
    write_json(folder / BOM_FILE, bom)
    write_manifest(folder, contract)
    return parity
