"""Text tower: words to vectors that are compared with those of images, by a tokenizer and a graph of their own."""

import html
import math
import re
import string
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from vfm_runtime.errors import (
    BundleError,
    DataError,
    MissingPackageError,
    OptionError,
    format_value,
)
from vfm_runtime.validation import is_whole

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TEXT_FILE = "text.onnx"
TEXT_WEIGHTS_FILE = "text.onnx.data"
TOKENIZER_FILE = "tokenizer.json"
TOKENS = "tokens"
"""Input of the graph, int64 [N, length]."""
TEXT_OUTPUT = "text_embedding"
"""Output of the graph, float32 [N, D]."""
CLEANINGS = ("lower", "whitespace", "canonicalize")
"""How a text is cleaned before it is cut into tokens."""

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_BATCH = 32


@dataclass(frozen=True, kw_only=True)
class TextSpec:
    """How words become tokens, and what cosines mean: the extension `tokenizer` of a contract."""

    file: str = TOKENIZER_FILE
    """Name of the tokenizer's file in the bundle, as the package `tokenizers` reads it."""
    clean: str
    """How a text is cleaned before, one of `CLEANINGS`."""
    length: int
    """Number of tokens of each text; longer ones are cut, shorter ones filled up."""
    scale: float
    """What cosines of images and texts are multiplied by to be logits."""
    bias: float | None = None
    """What is then added, where each label has a probability of its own (SigLIP); None where all share one (CLIP)."""
    marks: tuple[str, ...] = ()
    """Texts that stand for tokens of their own; a text that holds one is refused."""
    blanked: int | None = None
    """Token that becomes 0; None where none does."""

    @classmethod
    def from_dict(cls, values: Any) -> Self:
        """Read the plain values of a contract.

        Raises:
            OptionError: They are not those of a text tower.
        """
        names = set(cls.__dataclass_fields__)
        try:
            spec = cls(**{**values, "marks": tuple(values.get("marks", ()))})
            numbers = [spec.scale, 0.0 if spec.bias is None else spec.bias]
            is_sound = (
                set(values) <= names
                and isinstance(spec.file, str)
                and re.fullmatch(r"[A-Za-z0-9_.-]+", spec.file) is not None
                and spec.clean in CLEANINGS
                and is_whole(spec.length)
                and 0 < spec.length <= 1 << 16
                and all(isinstance(n, int | float) and not isinstance(n, bool) for n in numbers)
                and all(map(math.isfinite, numbers))
                and all(isinstance(mark, str) and mark for mark in spec.marks)
                and (spec.blanked is None or is_whole(spec.blanked))
            )
        except (TypeError, AttributeError, OverflowError):
            is_sound = False
        if not is_sound:
            raise OptionError(f"A text tower is described by {format_value(values)}.")
        return spec


def clean_text(text: str, clean: str) -> str:
    """Mend and simplify a text as open_clip does before it is cut into tokens.

    Args:
        text: Text of any length and script.
        clean: `lower` (broken Unicode and HTML mended, spaces made one, lower case), `whitespace` (the same in its own
            case) or `canonicalize` (lower case without punctuation).

    Raises:
        MissingPackageError: ftfy, which mends Unicode, is not installed.
    """
    try:
        from ftfy import fix_text
    except ImportError as error:
        raise _explain_missing("ftfy") from error
    mended = html.unescape(html.unescape(fix_text(text))).strip()
    if clean == "canonicalize":
        mended = mended.replace("_", " ").translate(_PUNCTUATION).lower()
    joined = " ".join(mended.split())
    return joined.lower() if clean == "lower" else joined


class TextTower:
    """Tokenizer and graph that make vectors of texts."""

    def __init__(self, folder: Path, spec: TextSpec, session: Any) -> None:
        """Read the tokenizer.

        Args:
            folder: Folder of the bundle.
            spec: How words become tokens.
            session: Graph of the text tower, open in ONNX Runtime.

        Raises:
            MissingPackageError: The package tokenizers is not installed.
            BundleError: The tokenizer is none.
        """
        self.session = session
        self._spec = spec
        self._tokenizer = open_tokenizer(folder / spec.file)

    def tokenize(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """Return the tokens of texts, int64 [N, length]; errors are those of `tokenize`."""
        return tokenize(self._tokenizer, self._spec, texts)

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return the vectors of texts, float32 [N, D], of norm 1."""
        tokens = self.tokenize(texts)
        parts = [
            self.session.run(None, {TOKENS: tokens[start : start + _BATCH]})[0]
            for start in range(0, len(tokens), _BATCH)
        ]
        return np.concatenate(parts)


def open_tokenizer(path: Path) -> "Tokenizer":
    """Read a tokenizer's file.

    Raises:
        MissingPackageError: The package tokenizers is not installed.
        BundleError: The file is no tokenizer.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise _explain_missing("tokenizers") from error
    try:
        return Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # the package raises no other type
        raise BundleError(
            f"{path} is no tokenizer ({str(error)[:200]}). Copy the bundle again or export anew."
        ) from error


def tokenize(tokenizer: "Tokenizer", spec: TextSpec, texts: Sequence[str]) -> NDArray[np.int64]:
    """Return the tokens of texts, int64 [N, length], as the model was trained on them.

    Args:
        tokenizer: Tokenizer of the model.
        spec: How texts are cleaned before, and what is refused.
        texts: Texts of any length; what goes beyond that of the model is cut.

    Raises:
        OptionError: There are no texts, one is none, or holds a mark of the tokenizer.
        DataError: The tokenizer gives another number of tokens.
    """
    if not texts:
        raise OptionError("There are no texts to embed. Give one, or a list of at least one.")
    rows = []
    for text in texts:
        if not isinstance(text, str):
            raise OptionError(f"A text is {format_value(text)}. Give words, such as 'a red cup'.")
        cleaned = clean_text(text, spec.clean)
        if marks := [mark for mark in spec.marks if mark in cleaned]:
            raise OptionError(
                f"The text {format_value(text)} holds '{marks[0]}', a mark of the tokenizer that words cannot be. "
                "Leave it out."
            )
        # One by one: many at once would go through threads, which do not survive a fork.
        rows.append(tokenizer.encode(cleaned).ids)
    widths = {len(row) for row in rows}
    if widths != {spec.length}:
        raise DataError(
            f"The tokenizer gives {', '.join(map(str, sorted(widths)))} tokens a text, and the model takes "
            f"{spec.length}. Export the bundle anew."
        )
    tokens = np.array(rows, np.int64)
    return tokens if spec.blanked is None else np.where(tokens == spec.blanked, 0, tokens)


def _explain_missing(package: str) -> MissingPackageError:
    return MissingPackageError(
        f"Texts take the package {package}, which is not installed. Run: pip install 'vfm-runtime[text]'."
    )
