"""Extensions of a contract: optional keys of bundle format 2."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from vfm_runtime.errors import ContractError, DataError, OptionError
from vfm_runtime.tasks.embedding import EmbeddingSpec
from vfm_runtime.tasks.groups import GroupRules
from vfm_runtime.tasks.tiling import Tiling
from vfm_runtime.text import TextSpec
from vfm_runtime.validation import is_deep

EXTENSIONS = {
    "embedding": "an output of the graph with an embedding of each image: {'output': name}, and maybe 'source' and "
    "'fingerprint', texts, and 'normalize', true or false",
    "box_embedding": "an output of a detector's graph with an embedding of each box, by which it is taught classes (of "
    "boxes of a trained and a taught class that overlap by more than a half and are both shown, the one of the higher "
    "score stays): an object as 'embedding' is",
    "class_matrix": "an input of the graph with a saved default, a row for each class, which can be replaced to teach "
    "classes: {'input': name}",
    "tiles": "large images are cut into tiles: {'side': pixels, 'overlap': fraction, 'max_tiles': count}",
    "value_range": "values of images of more than 8 bits: {'low': black, 'high': white}, numbers, low below high",
    "group_thresholds": "rules by group of images: {'column': name, 'criterion': text, 'general': rules where no group "
    "is given, 'groups': {group: rules, or null for the general ones}}",
    "tokenizer": "a text tower beside that of images: {'file': name in the bundle, 'clean': way, 'length': tokens, "
    "'scale': number}, and maybe 'bias', a number, 'marks', texts, and 'blanked', a token",
}
"""Optional keys, and what they hold."""

_PORTS = {"class_matrix": "input"}
_READERS: dict[str, Callable[[Any], object]] = {
    "tiles": Tiling.from_dict,
    "embedding": EmbeddingSpec.from_dict,
    "box_embedding": EmbeddingSpec.from_dict,
    "tokenizer": TextSpec.from_dict,
    "group_thresholds": GroupRules.from_dict,
}
_NEEDED = {"tokenizer": "embedding"}
"""Extension that another one means nothing without."""
_NAME = r"[A-Za-z0-9_]+"


def check_extensions(extensions: Mapping[str, Any], bundle_format: int) -> None:
    """Refuse extensions that this version cannot heed: left unheeded, they would change answers without a word.

    Raises:
        ContractError: With what to upgrade, or what a value may be.
    """
    for name, value in extensions.items():
        if (other := _NEEDED.get(name, name)) not in extensions:
            raise ContractError.of(name, value, f"'{other}' beside it")
        if bundle_format < 2:
            raise ContractError(
                f"The contract has the key '{name}', which there is from format 2 on; its format is {bundle_format}. "
                "Export the bundle anew."
            )
        if name == "value_range":
            if not _is_range(value):
                raise ContractError.of(name, value, EXTENSIONS[name])
            continue
        if name in _READERS:
            try:
                _READERS[name](value)
            except (OptionError, DataError) as error:
                raise ContractError.of(name, value, EXTENSIONS[name]) from error
            continue
        port = value.get(_PORTS[name]) if isinstance(value, dict) and len(value) == 1 else None
        if not isinstance(port, str) or is_deep(value) or not re.fullmatch(_NAME, port):
            raise ContractError.of(name, value, EXTENSIONS[name])


def _is_range(value: Any) -> bool:
    if not isinstance(value, dict) or set(value) != {"low", "high"}:
        return False
    numbers = [value["low"], value["high"]]
    if not all(isinstance(n, int | float) and not isinstance(n, bool) for n in numbers):
        return False
    return all(abs(n) < 2**53 for n in numbers) and numbers[0] < numbers[1]
