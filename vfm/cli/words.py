"""Words of a command line in one form: options with underscores, each joined to its value."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from vfm.cli.errors import UsageError


def join_values(
    words: list[str], *, switches: Collection[str] = (), short: Mapping[str, str] | None = None
) -> list[str]:
    """Return `--max-drop 0.1` as `--max_drop=0.1`; what is no option stays as it is.

    Args:
        words: Words after the command, as typed.
        switches: Options that alone mean `true`, such as `--json`.
        short: Long name of each short option.
    """
    joined: list[str] = []
    lacks_value = False
    for word in words:
        if lacks_value and _is_value(word, joined[-1] in switches):
            joined[-1] += f"={word}"
            lacks_value = False
            continue
        name, equals, value = word.partition("=")
        name = (short or {}).get(name, name)
        lacks_value = name.startswith("--") and not equals
        if name.startswith("--"):
            name = f"--{name[2:].replace('-', '_')}"
        joined.append(f"{name}{equals}{value}")
    return [f"{word}=true" if word in switches else word for word in joined]


def _is_value(word: str, of_switch: bool) -> bool:
    """Whether a word after an option is its value, as argparse decides: a negative number is."""
    if of_switch:
        return word in ("true", "false")
    return not word.startswith("-") or word == "-" or " " in word or word[1:2].isdigit()


def pop_option(words: list[str], option: str) -> tuple[list[str], list[str]]:
    """Split an option that may stand several times from the words of `join_values`: the other words, and its values.

    Raises:
        UsageError: The option has no value.
    """
    if option in words:
        raise UsageError(f"{option}: expected one argument.")
    rest = [word for word in words if not word.startswith(f"{option}=")]
    return rest, [word.partition("=")[2] for word in words if word.startswith(f"{option}=")]
