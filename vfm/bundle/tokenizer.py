"""Tokenizer of a bundle: open_clip's as a `tokenizer.json` that gives the same tokens without torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from vfm_runtime.text import TextSpec, tokenize

from vfm.bundle.errors import ExportError

PROBES = (
    "",
    "   ",
    "a photo of a cat.",
    "A Photo of THE Cat!",
    "don't  YOU'LL it's we've I'm 'tis",
    "&lt;p&gt; fish &amp;amp; chips <br>",
    "schÃ¶n, cafe\u0301, na\u00efve \u201cquotes\u201d \ufb01ne",
    "\u65e5\u672c\u8a9e \u0440\u0443\u0441 \u0627\u0644\u0639\u0631\u0628\u064a\u0629 \ud55c\uad6d\uc5b4",
    "\U0001f600\U0001f44d\U0001f3fd \u2728 x\u200dy",
    "1,234.50 \u00bd \u2167 \u0664\u0662 a1b2",
    "tab\tline\nfeed\r\n \x1f \u3000 wide",
    "under_score {curly} (round) #hash @at a/b\\c",
    "\u0130stanbul \u1e9e \u01c5 \u017f \u212a",
    "supercalifragilisticexpialidocious" * 20,
    "one two three four five six seven " * 60,
)
"""Texts that a tokenizer is tried on: empty and over-long ones, other scripts, mojibake, HTML, marks and numbers."""

_CONTRACTIONS = "'s|'t|'re|'ve|'m|'ll|'d"
_PATTERN = _CONTRACTIONS + r"|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def convert_tokenizer(tokenizer: Any, scale: float, bias: float | None) -> tuple[Any, TextSpec]:
    """Return a tokenizer of the package tokenizers, and what goes with it, that gives the tokens of open_clip's.

    Args:
        tokenizer: Tokenizer of a pair, that `open_clip.get_tokenizer` has made.
        scale: What cosines of images and texts are multiplied by to be logits.
        bias: What is then added; None for nothing.

    Raises:
        ExportError: It does what no such file can say, or the tokens of a probe differ.
    """
    from open_clip import tokenizer as known

    cleanings = {
        known._clean_lower: "lower",
        known._clean_whitespace: "whitespace",
        known._clean_canonicalize: "canonicalize",
    }
    options: dict[str, Any] = {"length": tokenizer.context_length, "scale": scale, "bias": bias}
    if isinstance(tokenizer, known.SigLipTokenizer):
        options["clean"] = "canonicalize"
    elif tokenizer.clean_fn in cleanings:
        options["clean"] = cleanings[tokenizer.clean_fn]
    else:
        raise _refuse(f"it cleans texts by {tokenizer.clean_fn!r}")
    if isinstance(tokenizer, known.SimpleTokenizer):
        converted = _convert_clip(tokenizer)
        start, end = tokenizer.all_special_ids[:2]
        options["marks"] = tuple(t for t, i in tokenizer.encoder.items() if i in (start, end))
    else:
        if getattr(tokenizer, "tokenizer_mode", ""):
            raise _refuse(f"its mode is '{tokenizer.tokenizer_mode}'")
        # The first call tells the tokenizer how texts are cut and filled up.
        tokenizer(["a"])
        converted = getattr(tokenizer.tokenizer, "backend_tokenizer", None)
        if converted is None:
            raise _refuse(
                f"{type(tokenizer.tokenizer).__name__} has no file of the package tokenizers"
            )
        if getattr(tokenizer, "strip_sep_token", False):
            options["blanked"] = tokenizer.tokenizer.sep_token_id
    spec = TextSpec(**options)
    compare_tokens(tokenizer, converted, spec, PROBES)
    return converted, spec


def compare_tokens(
    expected: Callable[[list[str]], Any], converted: Any, spec: TextSpec, texts: Sequence[str]
) -> None:
    """Compare the tokens of texts.

    Raises:
        ExportError: They differ for one.
    """
    right, ours = expected(list(texts)).numpy(), tokenize(converted, spec, texts)
    different = np.flatnonzero((right != ours).any(axis=1))
    if len(different):
        raise _refuse(
            f"the tokens of {texts[int(different[0])]!r:.60} are others, as of {len(different)} of {len(texts)} texts"
        )


def _convert_clip(tokenizer: Any) -> Any:
    """Convert the tokenizer of CLIP: pairs of bytes are joined within words that a pattern finds."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors

    start, end = (
        next(text for text, token in tokenizer.encoder.items() if token == index)
        for index in tokenizer.all_special_ids[:2]
    )
    if tokenizer.reduction_fn is not None or tokenizer.pat.pattern != f"{start}|{end}|{_PATTERN}":
        raise _refuse("it has tokens of its own, or drops some at random")
    letters, numbers, others = map(_list_ranges, (r"[\p{L}]", r"[\p{N}]", r"[^\s\p{L}\p{N}]"))
    # The characters themselves, not their Unicode classes: which there are depends on the version of each package.
    pattern = f"(?i:{start}|{end}|{_CONTRACTIONS})|[{letters}]+|[{numbers}]|[{others}]+"
    converted = Tokenizer(
        models.BPE(
            vocab=tokenizer.encoder, merges=list(tokenizer.bpe_ranks), end_of_word_suffix="</w>"
        )
    )
    converted.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    special = [(start, tokenizer.sot_token_id), (end, tokenizer.eot_token_id)]
    converted.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}", special_tokens=special
    )
    converted.enable_truncation(tokenizer.context_length)
    filler = next(text for text, token in tokenizer.encoder.items() if token == 0)
    converted.enable_padding(length=tokenizer.context_length, pad_id=0, pad_token=filler)
    return converted


def _list_ranges(characters: str) -> str:
    """Return the characters that a pattern of the package regex takes, in any case, as ranges of a pattern."""
    import regex

    ranges = []
    for first, last in ((0, 0xD800), (0xE000, 0x110000)):
        text = "".join(map(chr, range(first, last)))
        for one in regex.finditer(f"{characters}+", text, regex.IGNORECASE):
            ranges.append(rf"\x{{{first + one.start():X}}}-\x{{{first + one.end() - 1:X}}}")
    return "".join(ranges)


def _refuse(cause: str) -> ExportError:
    return ExportError(
        f"The tokenizer of this pair cannot be written for a bundle: {cause}. Leave --text out: labels as words are "
        "then made vectors before, by vfm classify."
    )
