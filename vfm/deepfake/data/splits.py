"""Splits of real and fake videos in which no video, person or source is in two of them; leaks between splits."""

from __future__ import annotations

import math
import warnings
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Literal, get_args

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from vfm_runtime.errors import DataError

from vfm.data.splits import SPLITS, draw_folds, split_by_key
from vfm.deepfake.data.record import LABELS, DeepfakeDataError, Item, split_digits

GroupBy = Literal["identity", "video"]
"""What must stay in one split: all of one person, or only a real video and the fakes that were made from it."""

Node = tuple[str, ...]


def name_components(items: Sequence[Item], group_by: GroupBy = "identity") -> list[str]:
    """Name the group of each item: videos that share persons or sources, directly or through other videos.

    Returns:
        For each item the name of its group, that of its first video; it depends on the set of items, not their order.
    """
    _check_group_by(group_by)
    if not items:
        return []
    rows = {key: row for row, key in enumerate(dict.fromkeys(item.key for item in items))}
    numbers: dict[Node, int] = {}
    edges = [
        (rows[item.key], numbers.setdefault(node, len(numbers)))
        for item in items
        for node in _list_nodes(item, group_by)
    ]
    first, second = np.array(edges).T
    size = len(rows) + len(numbers)
    graph = coo_array((np.ones(len(edges)), (first, second + len(rows))), (size, size))
    component = connected_components(graph, directed=False)[1]
    names: dict[int, str] = {}
    for key in sorted(rows, key=lambda key: [split_digits(part) for part in key]):
        names.setdefault(component[rows[key]], "/".join(key))
    return [names[component[rows[item.key]]] for item in items]


def find_leaks(
    items: Iterable[Item], group_by: GroupBy = "identity"
) -> list[tuple[str, Item, Item]]:
    """Find what two splits share, such as "identity 'ff/003'", each with an item of either split."""
    _check_group_by(group_by)
    first: dict[Node, Item] = {}
    leaks: dict[Node, tuple[str, Item, Item]] = {}
    for item in items:
        if not item.split:
            continue
        for node in _list_nodes(item, group_by):
            other = first.setdefault(node, item)
            if other.split != item.split:
                leaks.setdefault(node, (_describe(node), other, item))
    return list(leaks.values())


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
        items: Images and videos of the whole data set.
        fractions: Fraction of train, val and test, adding up to 1.
        seed: Seed of the draw.
        group_by: `identity`, or `video` for published splits that show the same persons in training and test.

    Returns:
        The items with a split, in the order given.

    Raises:
        DeepfakeDataError: Given splits share something, or there are too few groups to draw from.
    """
    fraction = [fractions.get(split, 0.0) for split in SPLITS]
    if not set(fractions) <= set(SPLITS) or min(fraction) < 0 or not math.isclose(sum(fraction), 1):
        listed = ", ".join(f"{split} {share:g}" for split, share in fractions.items())
        raise DeepfakeDataError(
            f"The shares of the splits are {listed or 'not given'}. Give numbers from 0 for {', '.join(SPLITS)} "
            "that add up to 1."
        )
    _refuse_leaks(items, group_by)
    usable = _drop_tied_to_test(items, group_by)
    rest = [item for item in usable if item.split != "test"]
    group = dict(zip((item.key for item in rest), name_components(rest, group_by), strict=True))
    splits_of_group: dict[str, set[str]] = defaultdict(set)
    for item in rest:
        splits_of_group[group[item.key]].add(item.split)
    stated = {item.split for item in items} - {""}
    # A group is to be drawn that has no split, or that is to be trained on where a validation set is to be drawn.
    undrawn = {
        name
        for name, splits in splits_of_group.items()
        if splits == {""} or ("val" not in stated and splits <= {"", "train"})
    }
    videos = {i.key: (group[i.key], i.label) for i in rest if group[i.key] in undrawn}
    drawn = _draw_splits(list(videos.values()), _scale_fractions(fractions, stated), seed)
    placed: list[Item] = []
    between: list[Item] = []
    for item in usable:
        name = group.get(item.key, "")
        splits = splits_of_group[name] - {""}
        split = drawn.get(name) or item.split or (min(splits) if len(splits) == 1 else "")
        (placed if split else between).append(item._replace(split=split))
    if between:
        warnings.warn(
            f"{len(between)} images or videos without a split, such as {between[0].path}, are tied to train and to "
            "val. They are left out.",
            stacklevel=2,
        )
    return placed


def assign_folds(
    items: Sequence[Item],
    folds: int,
    fold: int | None,
    seed: int,
    group_by: GroupBy,
    *,
    splits: Collection[str],
) -> list[Item]:
    """Put one fold of the items of some splits into val, and train on the others; on all of them without one.

    Args:
        items: Images and videos with their splits.
        folds: Number of folds that the groups of videos are dealt to.
        fold: The fold for val, which takes the place of a val split that is not among `splits`.
        seed: Seed of the draw.
        group_by: What stays together, as for `assign_splits`.
        splits: Splits whose items are dealt.

    Raises:
        DeepfakeDataError: There are fewer groups than folds.
    """
    dealt = [item for item in items if item.split in splits]
    groups = name_components(dealt, group_by)
    videos = {item.key: (g, item.label) for item, g in zip(dealt, groups, strict=True)}
    names = [group for group, _ in videos.values()]
    labels = [(LABELS.index(label),) for _, label in videos.values()]
    try:
        drawn = draw_folds(names, labels, folds, seed)
    except DataError as error:
        raise DeepfakeDataError(
            f"{len(videos)} videos make {len(set(names))} groups that share no person and no source: {error} Or set "
            "group_by to 'video'."
        ) from error
    fold_of = dict(zip(videos, drawn, strict=True))
    placed = []
    for item in items:
        if item.split in splits:
            held_out = fold is not None and fold_of[item.key] == fold
            placed.append(item._replace(split="val" if held_out else "train"))
        elif item.split != "val" or fold is None:
            placed.append(item)
    return placed


def _refuse_leaks(items: Sequence[Item], group_by: GroupBy) -> None:
    leaks = find_leaks(items, group_by)
    if not leaks:
        return
    _, first, second = leaks[0]
    named = ", ".join(what for what, *_ in leaks[:5]) + (", ..." if len(leaks) > 5 else "")
    remedy = (
        " Or set group_by to 'video', if the data set's own split shows the same persons in training and test, and say "
        "so with the results."
        if group_by == "identity" and not find_leaks(items, "video")
        else ""
    )
    raise DeepfakeDataError(
        f"The splits share {named} ({len(leaks)} in all): {first.path} is in {first.split}, "
        f"{second.path} in {second.split}. What is trained on would be tested on. Put all that share a "
        f"video or a person in one split, or empty the column of splits to have them drawn.{remedy}"
    )


def _drop_tied_to_test(items: Sequence[Item], group_by: GroupBy) -> list[Item]:
    """The items less those without a split that share something with a test item."""
    tested = {
        node for item in items if item.split == "test" for node in _list_nodes(item, group_by)
    }
    usable: list[Item] = []
    tied: list[Item] = []
    for item in items:
        shares = not item.split and not tested.isdisjoint(_list_nodes(item, group_by))
        (tied if shares else usable).append(item)
    if tied:
        node = next(n for n in _list_nodes(tied[0], group_by) if n in tested)
        warnings.warn(
            f"{len(tied)} of the {len(items)} images or videos are in no split, but share something with the test set, "
            f"such as {tied[0].path} the {_describe(node)}. They are left out, since training on them would leak it.",
            stacklevel=3,
        )
    return usable


def _scale_fractions(fractions: Mapping[str, float], stated: set[str]) -> dict[str, float]:
    """Fractions of the splits that are still to be drawn; all goes to train where val and test are given."""
    left = {split: share for split, share in fractions.items() if split not in stated - {"train"}}
    if stated:
        left.pop("test", None)
    total = sum(left.values())
    return {split: share / total for split, share in left.items()} if total > 0 else {"train": 1.0}


def _draw_splits(
    videos: Sequence[tuple[str, str]], fractions: Mapping[str, float], seed: int
) -> dict[str, str]:
    """A split for each group of videos, given as (group, label), with both labels spread as evenly as that allows."""
    if not videos:
        return {}
    groups = [group for group, _ in videos]
    labels = [(LABELS.index(label),) for _, label in videos]
    try:
        splits = split_by_key(groups, labels, LABELS, fractions, seed)
    except ValueError as error:
        number = len(set(groups))
        wanted = ", ".join(split for split, share in fractions.items() if share)
        raise DeepfakeDataError(
            f"{len(videos)} videos make {number} group{'s' if number != 1 else ''} that share no person and no source, "
            f"too few to draw {wanted} from: {error} Or set group_by to 'video', which lets persons recur and keeps "
            "only a video and the fakes made from it together."
        ) from error
    return dict(zip(groups, splits, strict=True))


def _list_nodes(item: Item, group_by: GroupBy) -> Iterator[Node]:
    """What the item shares with others: its video, the video that it was made from, and its persons."""
    yield ("video", *item.key)
    if item.source:
        yield ("video", item.dataset, "", item.source)
    if group_by == "identity":
        for name in item.identities:
            yield ("identity", name)


def _describe(node: Node) -> str:
    kind, *names = node
    return f"{kind} '{'/'.join(name for name in names if name)}'"


def _check_group_by(group_by: str) -> None:
    if group_by not in get_args(GroupBy):
        raise DeepfakeDataError(
            f"group_by is '{group_by}'. Choices: {', '.join(get_args(GroupBy))}."
        )
