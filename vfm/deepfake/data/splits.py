"""Splits of real and forged videos in which no video, person or source is in two of them."""

from __future__ import annotations

import math
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple, get_args

from vfm.data.splits import SPLITS, split_by_key
from vfm.deepfake.data.record import LABELS, DeepfakeDataError, Item, natural

GroupBy = Literal["identity", "video"]
"""What must stay in one split: all of one person, or only a real video and the fakes that were made from it."""

Node = tuple[str, ...]
Key = tuple[str, str, str]


class Leak(NamedTuple):
    """Something that two splits show."""

    what: str
    """Such as: identity 'ff/003'."""
    first: Item
    second: Item


def components(items: Sequence[Item], group_by: GroupBy = "identity") -> list[str]:
    """Name the group of each item: videos that share persons or sources, directly or through other videos.

    Returns:
        Of each item the name of its group, that of its first video; it depends on the set of items, not their order.
    """
    _check_group_by(group_by)
    keys = list({item.key: None for item in items})
    parent = list(range(len(keys)))
    index = {key: i for i, key in enumerate(keys)}
    holder: dict[Node, int] = {}
    for item in items:
        own = index[item.key]
        for node in _nodes(item, group_by):
            _join(parent, own, holder.setdefault(node, own))
    members: dict[int, list[Key]] = defaultdict(list)
    for key in keys:
        members[_root(parent, index[key])].append(key)
    name = {root: "/".join(sorted(found, key=_by_name)[0]) for root, found in members.items()}
    return [name[_root(parent, index[item.key])] for item in items]


def leaks(items: Iterable[Item], group_by: GroupBy = "identity") -> list[Leak]:
    """What two splits share, of the items that have a split: one entry for each video, source or identity."""
    _check_group_by(group_by)
    first: dict[Node, Item] = {}
    found: dict[Node, Leak] = {}
    for item in items:
        if not item.split:
            continue
        for node in _nodes(item, group_by):
            other = first.setdefault(node, item)
            if other.split != item.split:
                found.setdefault(node, Leak(_called(node), other, item))
    return list(found.values())


def assign_splits(
    items: Sequence[Item],
    fractions: Mapping[str, float],
    seed: int,
    group_by: GroupBy = "identity",
) -> list[Item]:
    """Give every item a split, where it has none, so that no video, source or person is in two splits.

    Splits that the data set gives come first. What is tied to its test set without being in it would leak into
    training: it is left out, with a warning. The rest is drawn by hash, group by group. Where the data set gives
    splits, only a missing `val` is drawn, out of what there is to train on; a test set is drawn where nothing is given.

    Args:
        items: Images and videos.
        fractions: Share of train, val and test, adding up to 1.
        seed: Of the draw.
        group_by: `identity`, or `video` for published splits that show the same persons in training and test.

    Returns:
        The items with a split, in the order given.

    Raises:
        DeepfakeDataError: Given splits share something, or there are too few groups to draw from.
    """
    _check_fractions(fractions)
    _check_given(items, group_by)
    kept = _without_test_ties(items, group_by)
    rest = [item for item in kept if item.split != "test"]
    group = components(rest, group_by)
    of_group: dict[str, set[str]] = defaultdict(set)
    for item, name in zip(rest, group, strict=True):
        of_group[name].add(item.split)
    given = {item.split for item in items} - {""}
    free = {name for name, splits in of_group.items() if _is_open(splits, given)}
    drawn = _draw(
        [item for item, name in zip(rest, group, strict=True) if name in free],
        [name for name in group if name in free],
        _shares(fractions, given),
        seed,
    )
    return _placed(kept, dict(zip((i.key for i in rest), group, strict=True)), of_group, drawn)


def _placed(
    kept: Sequence[Item],
    group: Mapping[Key, str],
    of_group: Mapping[str, set[str]],
    drawn: Mapping[str, str],
) -> list[Item]:
    placed: list[Item] = []
    between: list[Item] = []
    for item in kept:
        if item.split == "test":
            placed.append(item)
            continue
        name = group[item.key]
        splits = of_group[name] - {""}
        split = drawn.get(name) or item.split or (min(splits) if len(splits) == 1 else "")
        placed.append(item._replace(split=split)) if split else between.append(item)
    if between:
        warnings.warn(
            f"{len(between)} images or videos without a split, such as {between[0].path}, are tied to train and to "
            "val. They are left out.",
            stacklevel=3,
        )
    return placed


def _check_given(items: Sequence[Item], group_by: GroupBy) -> None:
    found = leaks(items, group_by)
    if not found:
        return
    first = found[0]
    named = ", ".join(leak.what for leak in found[:5]) + (", ..." if len(found) > 5 else "")
    remedy = (
        " Or set group_by to 'video', if the data set's own split shows the same persons in training and test, and say "
        "so with the results."
        if group_by == "identity" and not leaks(items, "video")
        else ""
    )
    raise DeepfakeDataError(
        f"The splits share {named} ({len(found)} in all): {first.first.path} is in {first.first.split}, "
        f"{first.second.path} in {first.second.split}. What is trained on would be tested on. Put all that share a "
        f"video or a person in one split, or empty the column of splits to have them drawn.{remedy}"
    )


def _without_test_ties(items: Sequence[Item], group_by: GroupBy) -> list[Item]:
    """The items less those without a split that share something with a test item."""
    tested = {node for item in items if item.split == "test" for node in _nodes(item, group_by)}
    if not tested:
        return list(items)
    kept: list[Item] = []
    out: list[Item] = []
    for item in items:
        tied = not item.split and not tested.isdisjoint(_nodes(item, group_by))
        (out if tied else kept).append(item)
    if out:
        node = next(n for n in _nodes(out[0], group_by) if n in tested)
        warnings.warn(
            f"{len(out)} of the {len(items)} images or videos are in no split, but share something with the test set, "
            f"such as {out[0].path} the {_called(node)}. They are left out, since training on them would leak it.",
            stacklevel=3,
        )
    return kept


def _is_open(splits: set[str], given: set[str]) -> bool:
    """Whether a group is to be drawn: one without a split, or one to train on where a validation set is to be drawn."""
    return splits == {""} or ("val" not in given and splits <= {"", "train"})


def _shares(fractions: Mapping[str, float], given: set[str]) -> dict[str, float]:
    """Shares of the splits that are still to be drawn; all goes to train where val and test are given."""
    left = {split: share for split, share in fractions.items() if split not in given - {"train"}}
    if given:
        left.pop("test", None)
    total = sum(left.values())
    if total <= 0:
        return {"train": 1.0}
    return {split: share / total for split, share in left.items()}


def _draw(
    items: Sequence[Item], groups: Sequence[str], shares: Mapping[str, float], seed: int
) -> dict[str, str]:
    """A split for each group, with the videos of both labels spread as evenly as that allows."""
    videos = {item.key: (name, item.label) for item, name in zip(items, groups, strict=True)}
    if not videos:
        return {}
    names = [name for name, _ in videos.values()]
    labels = [(LABELS.index(label),) for _, label in videos.values()]
    try:
        splits = split_by_key(names, labels, LABELS, shares, seed)
    except ValueError as error:
        number = len(set(names))
        wanted = ", ".join(split for split, share in shares.items() if share)
        raise DeepfakeDataError(
            f"{len(videos)} videos make {number} group{'s' if number != 1 else ''} that share no person and no source, "
            f"too few to draw {wanted} from: {error} Or set group_by to 'video', which lets persons recur and keeps "
            "only a video and the fakes made from it together."
        ) from error
    return dict(zip(names, splits, strict=True))


def _nodes(item: Item, group_by: GroupBy) -> Iterator[Node]:
    """What the item shares with others: its video, the video that it was made from, and its persons."""
    yield ("video", *item.key)
    if item.source:
        yield ("video", item.dataset, "", item.source)
    if group_by == "identity":
        for name in item.identities:
            yield ("identity", name)


def _called(node: Node) -> str:
    kind, *names = node
    return f"{kind} '{'/'.join(name for name in names if name)}'"


def _by_name(key: Iterable[str]) -> tuple[tuple[tuple[int, int, str], ...], ...]:
    return tuple(natural(part) for part in key)


def _root(parent: list[int], index: int) -> int:
    while parent[index] != index:
        parent[index] = parent[parent[index]]
        index = parent[index]
    return index


def _join(parent: list[int], first: int, second: int) -> None:
    parent[_root(parent, first)] = _root(parent, second)


def _check_fractions(fractions: Mapping[str, float]) -> None:
    shares = [fractions.get(split, 0.0) for split in SPLITS]
    if not set(fractions) <= set(SPLITS) or min(shares) < 0 or not math.isclose(sum(shares), 1):
        given = ", ".join(f"{split} {share:g}" for split, share in fractions.items())
        raise DeepfakeDataError(
            f"The shares of the splits are {given or 'not given'}. Give numbers from 0 for {', '.join(SPLITS)} "
            "that add up to 1."
        )


def _check_group_by(group_by: str) -> None:
    if group_by not in get_args(GroupBy):
        raise DeepfakeDataError(
            f"group_by is '{group_by}'. Choices: {', '.join(get_args(GroupBy))}."
        )
