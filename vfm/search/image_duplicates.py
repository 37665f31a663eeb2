"""Duplicates of images: equal files, and near-copies that were encoded anew, resized, cropped or mirrored.

Near-copies are proposed by thumbnails (and, with a model, by embeddings), a window of one against the whole of another,
and confirmed by aligning the two (ECC: Evangelidis and Psarakis, 2008) and comparing their details.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from vfm.search.image_scan import COLOR_SIDE, SIDE, Scan
from vfm.search.neighbor_graph import build_graph

MOST_CROPPED = 8000
"""Images up to which windows are compared; among more, whole images and mirrored ones alone."""
MOST_CONFIRMED = 30_000
"""Proposed pairs that are aligned, the most alike first."""

_GRID = 16
_LEAST_SIDE = 48
"""Side in pixels of the smallest image whose windows say something."""
_PROPOSED = 0.8
_PROPOSED_WHOLE, _PROPOSED_MANY = 0.9, 0.97
_PER_ROW = 4
_BLOCK = 2048
_WINDOWS = ((0.9, 3), (0.8, 3), (0.7, 4))
"""Sides of windows as fractions of the image's, and the number of their positions in each direction."""
_LEAST_WHOLE, _LEAST_CROP = 0.98, 0.95
"""Correlation of aligned thumbnails: shapes of one kind on a plain ground come near to it."""
_LEAST_TINY = 0.99
"""The same of images smaller than a thumbnail, in which fewer pixels tell one thing from another of its kind."""
_LEAST_DETAIL, _LEAST_LOCAL = 0.7, 0.5
"""Correlation of their details, the mean over blocks, and in the worst fifth of them."""
_FLAT, _FLAT_DIFFERENCE = 2.5, 1.25
"""Spread of details, in gray levels, below which only nearly equal pixels make a copy, and their mean difference."""
_COLOR_DIFFERENCE = 20.0
_GROUND, _LEAST_STANDING = 12.0, 0.05
"""Distance from the median color of what stands on a ground, and the fraction of an image that is enough to compare."""
_COVERED = 0.25
"""Fraction of an image that details must cover for it to be called a crop."""
_RIM = 4
"""Pixels of a thumbnail's edge that are not compared, since they may lie outside of the other."""
_CRITERIA = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 40, 1e-4)

Float = NDArray[np.float32]
Window = tuple[float, float, float]
"""Top, left and side, as fractions of the image."""
Proposal = tuple[float, int, int, Window, bool]
_WHOLE: Window = (0.0, 0.0, 1.0)


class DuplicatePair(NamedTuple):
    """Two images that are one."""

    first: int
    """Index of an image; of a crop and its whole, the whole."""
    second: int
    how: str
    """`same file`, `near-copy`, `crop`, or one of the two with `mirrored `."""
    similarity: float
    """Correlation of the aligned thumbnails; 1 of equal files."""


def find_duplicate_images(
    scan: Scan,
    vectors: Float | None = None,
    *,
    progress: Callable[[str], None] = lambda _: None,
) -> tuple[list[DuplicatePair], list[str]]:
    """Find pairs of images that are one, the most similar first, with notes on what was not compared.

    Args:
        scan: Images that were opened.
        vectors: Embeddings of the images, [N, D], whose nearest neighbors are proposed too; None for none.
        progress: Told what is being done.
    """
    readable = scan.readable
    groups: defaultdict[str, list[int]] = defaultdict(list)
    for index in np.flatnonzero(readable).tolist():
        groups[scan.files[index].sha256].append(index)
    pairs = [
        DuplicatePair(members[0], other, "same file", 1.0)
        for members in groups.values()
        for other in members[1:]
    ]
    rows = np.array([members[0] for members in groups.values()], np.int64)
    notes: list[str] = []
    if len(rows) < 2:
        return pairs, notes
    progress(f"comparing {len(rows):,} different files")
    proposals = _propose_pairs(scan, rows, notes, progress)
    if vectors is not None:
        proposals += _propose_neighbors(vectors[rows], rows)
    return pairs + _confirm_proposals(scan, proposals, notes), notes


def find_near_copies(scan: Scan, start: int) -> tuple[list[DuplicatePair], list[str]]:
    """Find near-copies, mirrored ones too but no crops, among the images before a position of those from it on.

    Args:
        scan: Images that were opened.
        start: Index of the first image that is compared with all before it.

    Returns:
        Pairs, the most similar first, and notes on what was not compared.
    """
    targets = _describe(scan.gray[:start])
    chosen = np.arange(start, len(scan.files))
    proposals: list[Proposal] = []
    for mirrored in (False, True):
        queries = _describe(_cut(scan.gray[start:], _WHOLE, mirrored))
        for one, other, similarity in _compare(queries, chosen, targets, _PROPOSED_WHOLE):
            proposals.append((similarity, one, other, _WHOLE, mirrored))
    notes: list[str] = []
    return _confirm_proposals(scan, proposals, notes), notes


def _confirm_proposals(
    scan: Scan, proposals: Iterable[Proposal], notes: list[str]
) -> list[DuplicatePair]:
    """Return the proposed pairs that are one, the most similar first."""
    best: dict[tuple[int, int], tuple[float, Window, bool]] = {}
    for similarity, whole, part, window, mirrored in proposals:
        if similarity > best.get((whole, part), (-2.0,))[0]:
            best[whole, part] = (similarity, window, mirrored)
    order = sorted(best, key=lambda pair: -best[pair][0])
    if len(order) > MOST_CONFIRMED:
        notes.append(
            f"{len(order):,} pairs of images look alike as thumbnails; the {MOST_CONFIRMED:,} most similar were "
            "aligned and compared."
        )
    done: set[tuple[int, int]] = set()
    near = []
    for whole, part in order[:MOST_CONFIRMED]:
        ends = (min(whole, part), max(whole, part))
        if ends in done:
            continue
        _, window, mirrored = best[whole, part]
        pair = _confirm_pair(scan, whole, part, window, mirrored)
        if pair is not None:
            near.append(pair)
            done.add(ends)
    return sorted(near, key=lambda pair: -pair.similarity)


def number_groups(pairs: Iterable[DuplicatePair], num_images: int) -> NDArray[np.int64]:
    """Return the group of each image, [N]: images that are one by any chain of pairs have one number."""
    ends = np.array([pair[:2] for pair in pairs], np.int64).reshape(-1, 2)
    links = coo_array((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), shape=(num_images,) * 2)
    numbers: NDArray[np.int64] = connected_components(links, directed=False)[1].astype(np.int64)
    return numbers


def list_leaks(pairs: Sequence[DuplicatePair], splits: Sequence[str]) -> list[DuplicatePair]:
    """Return pairs of images in different splits that are one, by any chain: one pair for each image beyond the first.

    Args:
        pairs: Duplicates of all images.
        splits: Split of each image; empty where the data states none.
    """
    groups = number_groups(pairs, len(splits))
    members: defaultdict[int, list[int]] = defaultdict(list)
    for index in sorted({end for pair in pairs for end in pair[:2]}):
        if splits[index]:
            members[int(groups[index])].append(index)
    direct = {frozenset(pair[:2]): pair for pair in pairs}
    leaks = []
    for group in members.values():
        for index in group:
            others = [other for other in group if splits[other] != splits[index] and other < index]
            linked = [direct[key] for o in others if (key := frozenset((o, index))) in direct]
            if linked:
                leaks += linked
            elif others:
                leaks.append(DuplicatePair(others[0], index, "by way of others", 0.0))
    return leaks


def _propose_pairs(
    scan: Scan, rows: NDArray[np.int64], notes: list[str], progress: Callable[[str], None]
) -> list[Proposal]:
    """Propose pairs by thumbnails: a window of one, perhaps mirrored, against the whole of another."""
    targets = _describe(scan.gray[rows])
    if len(rows) > MOST_CROPPED:
        notes.append(
            f"Among more than {MOST_CROPPED:,} images crops are not looked for by thumbnails, but copies, re-encoded, "
            "resized and mirrored ones are. With --model crops are proposed by its embeddings."
        )
        return _propose_among_many(scan, rows, targets, progress)
    large = np.array([min(scan.files[i].size) >= _LEAST_SIDE for i in rows.tolist()])
    windows = [_WHOLE, *(list_windows() if large.any() else [])]
    proposals: list[Proposal] = []
    for number, window in enumerate(windows):
        chosen = np.arange(len(rows)) if window == _WHOLE else np.flatnonzero(large)
        least = _PROPOSED_WHOLE if window == _WHOLE else _PROPOSED
        for mirrored in (False, True):
            queries = _describe(_cut(scan.gray[rows[chosen]], window, mirrored))
            for one, other, similarity in _compare(queries, chosen, targets, least):
                proposals.append((similarity, int(rows[one]), int(rows[other]), window, mirrored))
        if number % 10 == 9:
            progress(f"{number + 1} of {len(windows)} windows compared")
    return proposals


def _propose_among_many(
    scan: Scan, rows: NDArray[np.int64], targets: Float, progress: Callable[[str], None]
) -> list[Proposal]:
    """Propose whole images and mirrored ones by cells of k-means, where every two would be too many."""
    mirrored = _describe(_cut(scan.gray[rows], _WHOLE, True))
    both = np.concatenate([targets, mirrored])
    # Without a neighbor of its own half an image would be its own mirror's.
    graph = build_graph(both, _PER_ROW + 1, least=_PROPOSED_MANY, progress=progress)
    count = len(rows)
    proposals: list[Proposal] = []
    for index in range(count):
        for end, similarity in zip(
            graph.neighbors[index].tolist(), graph.similarity[index].tolist(), strict=True
        ):
            if end >= 0 and end % count != index:
                ends = (int(rows[end % count]), int(rows[index]))
                proposals.append((similarity, *ends, _WHOLE, end >= count))
    return proposals


def _compare(
    queries: Float, chosen: NDArray[np.int64], targets: Float, least: float
) -> Iterator[tuple[int, int, float]]:
    """Yield the nearest targets of each query above a similarity, but itself."""
    for start in range(0, len(chosen), _BLOCK):
        part = chosen[start : start + _BLOCK]
        similarity = queries[start : start + _BLOCK] @ targets.T
        has_itself = part < len(targets)
        similarity[np.flatnonzero(has_itself), part[has_itself]] = -1
        hit = np.flatnonzero(similarity.max(axis=1) >= least)
        count = min(_PER_ROW, similarity.shape[1])
        nearest = np.argpartition(-similarity[hit], count - 1, axis=1)[:, :count]
        for row, others in zip(hit.tolist(), nearest.tolist(), strict=True):
            for other in others:
                if similarity[row, other] >= least:
                    yield int(part[row]), other, float(similarity[row, other])


def _propose_neighbors(vectors: Float, rows: NDArray[np.int64]) -> list[Proposal]:
    """Propose the nearest neighbors by an embedding, each as a near-copy and as the middle of the other."""
    units = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    graph = build_graph(units.astype(np.float32), min(_PER_ROW, len(rows) - 1), least=0.8)
    proposals: list[Proposal] = []
    for index, (others, cosines) in enumerate(
        zip(graph.neighbors.tolist(), graph.similarity.tolist(), strict=True)
    ):
        for other, cosine in zip(others, cosines, strict=True):
            if other >= 0:
                ends = (int(rows[index]), int(rows[other]))
                proposals.append((cosine - 1, *ends, (0.1, 0.1, 0.8), False))
    return proposals


def list_windows() -> list[Window]:
    """Return windows of three sizes, spread evenly over an image."""
    return [
        (float(top), float(left), side)
        for side, count in _WINDOWS
        for top in np.linspace(0, 1 - side, count)
        for left in np.linspace(0, 1 - side, count)
    ]


def _cut(gray: NDArray[np.uint8], window: Window, mirrored: bool) -> NDArray[np.uint8]:
    top, left, side = (round(value * SIDE) for value in window)
    part = gray[:, top : top + side, left : left + side]
    return part[:, :, ::-1] if mirrored else part


def _describe(gray: NDArray[np.uint8]) -> Float:
    """Return small thumbnails without their mean, of norm 1, float32 [N, 256]."""
    small = np.stack(
        [
            cv2.resize(np.ascontiguousarray(g), (_GRID, _GRID), interpolation=cv2.INTER_AREA)
            for g in gray
        ]
    )
    rows = small.reshape(len(small), -1).astype(np.float32)
    rows -= rows.mean(axis=1, keepdims=True)
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)
    return rows


def _confirm_pair(
    scan: Scan, whole: int, part: int, window: Window, mirrored: bool
) -> DuplicatePair | None:
    """Align the window of one image with the whole of another, and tell whether they show the same in detail."""
    template = scan.gray[part]
    image = np.ascontiguousarray(scan.gray[whole][:, ::-1] if mirrored else scan.gray[whole])
    top, left, side = window
    if mirrored:
        left = 1 - side - left
    warp = np.array([[side, 0, left * SIDE], [0, side, top * SIDE]], np.float32)
    # As proposed first: smooth images, which nothing but their shades can align, would drift apart.
    similarity = _compare_aligned(image, template, warp, window != _WHOLE)
    is_tiny = min(min(scan.files[end].size) for end in (whole, part)) < _LEAST_SIDE
    if similarity is None and not is_tiny:
        try:
            _, moved = cv2.findTransformECC(template, image, warp, cv2.MOTION_AFFINE, _CRITERIA)
            warp = np.asarray(moved, np.float32)
        except cv2.error:  # the two do not converge: they show different things
            return None
        similarity = _compare_aligned(image, template, warp, True)
    if similarity is None or not _have_like_colors(scan, whole, part, warp, mirrored):
        return None
    is_crop = min(warp[0, 0], warp[1, 1]) <= 0.97
    if similarity < (_LEAST_TINY if is_tiny else _LEAST_CROP if is_crop else _LEAST_WHOLE):
        return None
    how = "crop" if is_crop else "near-copy"
    return DuplicatePair(whole, part, "mirrored " * mirrored + how, similarity)


def _compare_aligned(
    image: NDArray[np.uint8], template: NDArray[np.uint8], warp: Float, is_moved: bool
) -> float | None:
    """Return the correlation of a thumbnail with the part of another that it may show; None where it shows another.

    Where the two were moved to fit (`is_moved`), a single edge proves nothing: details must cover some of the image.
    """
    skew = float(max(abs(warp[0, 1]), abs(warp[1, 0])))
    corners = warp @ np.array([[0, SIDE, 0, SIDE], [0, 0, SIDE, SIDE], [1, 1, 1, 1]], np.float32)
    outside = max(float(-corners.min()), float(corners.max()) - SIDE)
    if skew > 0.06 or outside > 4 or min(warp[0, 0], warp[1, 1]) < 0.4:
        return None
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    aligned = np.asarray(cv2.warpAffine(image, warp, (SIDE, SIDE), flags=flags), np.uint8)
    inside = (slice(_RIM, -_RIM),) * 2
    one, other = aligned[inside], template[inside]
    details = [take_details(values)[inside] for values in (aligned, template)]
    if is_moved and min(float((abs(detail) > 1).mean()) for detail in details) < _COVERED:
        return None
    if min(float(detail.std()) for detail in details) < _FLAT:
        alike = float(cv2.absdiff(one, other).mean()) < _FLAT_DIFFERENCE
        return 1 - float(cv2.absdiff(one, other).mean()) / 255 if alike else None
    correlation = float(np.corrcoef(one.ravel(), other.ravel())[0, 1])
    # Block by block: two photos with one bright frame agree as a whole, and in no block.
    blocks = [detail.reshape(4, 14, 4, 14).swapaxes(1, 2).reshape(16, 196) for detail in details]
    centered = [block - block.mean(axis=1, keepdims=True) for block in blocks]
    spreads = np.stack([block.std(axis=1) for block in centered])
    norms = np.prod([np.linalg.norm(block, axis=1) for block in centered], axis=0)
    local = (centered[0] * centered[1]).sum(axis=1) / np.maximum(norms, 1e-6)
    # A block that is plain in one and full of details in the other tells the two apart.
    tells = (spreads.min(axis=0) > 1) | (spreads.max(axis=0) > _FLAT)
    local = local[tells] if tells.any() else local
    is_same = float(local.mean()) > _LEAST_DETAIL and float(np.quantile(local, 0.2)) > _LEAST_LOCAL
    return correlation if correlation > _LEAST_CROP and is_same else None


def take_details(gray: NDArray[np.uint8]) -> Float:
    """Return an image without its coarse shades, float32."""
    values = gray.astype(np.float32)
    smooth = cv2.GaussianBlur(values, (0, 0), 1.0)
    details: Float = smooth - cv2.GaussianBlur(values, (0, 0), 4.0)
    return details


def _have_like_colors(scan: Scan, whole: int, part: int, warp: Float, mirrored: bool) -> bool:
    """Whether the part of one image that another may show has the colors of the other."""
    colors = scan.colors[whole][:, ::-1] if mirrored else scan.colors[whole]
    scaled = warp * np.array([1, 1, COLOR_SIDE / SIDE], np.float32)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    moved = cv2.warpAffine(
        np.ascontiguousarray(colors), scaled, (COLOR_SIDE, COLOR_SIDE), flags=flags
    )
    inside = (slice(1, -1),) * 2
    both = np.stack([moved[inside], scan.colors[part][inside]]).astype(np.float32).reshape(2, -1, 3)
    # A plain ground, which is more than half of an image, would hide the colors of what stands on it.
    ground = np.median(both[1], axis=0)
    stands = (np.abs(both - ground).max(axis=2) > _GROUND).any(axis=0)
    chosen = both[:, stands] if stands.mean() > _LEAST_STANDING else both
    return bool(np.abs(chosen[0] - chosen[1]).mean() < _COLOR_DIFFERENCE)
