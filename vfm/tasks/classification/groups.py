"""Rules by group of classifiers: thresholds for equal rates or equally precise sure answers, and temperatures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from vfm_runtime.errors import suggest
from vfm_runtime.tasks.confidence import ConfidenceRules, soften_scores
from vfm_runtime.tasks.groups import GroupRules

from vfm.metrics.calibration import (
    find_precision_cut,
    fit_score_temperature,
    measure_score_error,
)
from vfm.metrics.group_thresholds import GroupCutoff, count_needed, fit_cutoff, fit_group_cutoffs
from vfm.tasks.calibration import MIN_IMAGES, CalibrationError, CalibrationOptions
from vfm.tasks.group_fit import GroupFit

_LEVEL = 0.95
_RATES = {"tpr": "true positive rate", "fpr": "false positive rate"}
_APPLIES = 0.5

Floats = NDArray[np.floating[Any]]


def fit_label_groups(
    scores: Floats,
    truth: NDArray[Any],
    labels: Sequence[str],
    rules: ConfidenceRules,
    groups: Sequence[str],
    options: CalibrationOptions,
) -> GroupFit:
    """Fit rules by group to scores after the temperature.

    Args:
        scores: Probability of each label for each image, float [N, C].
        truth: True class of each image, int [N]; or [N, C] of zeros and ones where several may apply.
        labels: Name of each of C labels, in the order of the scores.
        rules: General rules, which were fitted on all images.
        groups: Group of each image, [N]; empty of one whose group is not known.
        options: Options of `vfm calibrate` that say what to hold to.

    Raises:
        CalibrationError: An option is missing or goes with another, or no group has enough images.
    """
    if truth.ndim == 1 and options.min_precision is not None:
        if options.equal or options.rate or options.positive:
            raise CalibrationError(
                "--min_precision asks for equally precise sure answers, --equal, --rate and --positive for equal "
                "rates of a label. Give one of the two."
            )
        return _fit_precision(scores, truth, rules, groups, options)
    equal = options.equal or "tpr"
    if equal == "calibration":
        return _fit_temperatures(scores, truth, rules, groups, options)
    if equal not in _RATES:
        raise CalibrationError(
            f"--equal is '{equal}'. Choices: tpr (of images with the label, equal fractions are found), fpr (of images "
            "without it, equal fractions are called so by mistake), calibration (a temperature for each group)."
        )
    if options.rate is not None and not 0 < options.rate < 1:
        raise CalibrationError(
            f"--rate is {options.rate:g}, but it is a fraction above 0 and below 1. For 90 % give 0.9."
        )
    if truth.ndim == 1:
        return _fit_single(scores, truth, labels, groups, options, equal)
    return _fit_several(scores, truth, labels, rules, groups, options, equal)


def _fit_single(
    scores: Floats,
    truth: NDArray[Any],
    labels: Sequence[str],
    groups: Sequence[str],
    options: CalibrationOptions,
    equal: str,
) -> GroupFit:
    positive = options.positive or (labels[1] if len(labels) == 2 else None)
    if positive is None or positive not in labels:
        near = "" if positive is None else suggest(positive, labels)
        asked = "not given" if positive is None else f"'{positive}'"
        raise CalibrationError(
            f"--positive is {asked}, the label whose rates shall be equal in each group.{near} Choices: "
            f"{', '.join(labels)}. Or give --min_precision, for equally precise sure answers of all labels."
        )
    index = list(labels).index(positive)
    is_true, names = truth == index, np.asarray(groups, dtype=object)
    called = scores.argmax(1) == index
    fit = _equalize(scores[:, index], is_true, called, names, (positive, equal, options.rate))
    if not 0 < fit.target < 1:
        raise CalibrationError(
            f"The {_RATES[equal]} of '{positive}' by the general rule is {fit.target:.0%} on these images, so there is "
            "nothing to make equal. Name the one to hold with --rate, or the other with --equal."
        )
    if options.rate is not None and fit.general is None:
        raise CalibrationError(
            f"There are {fit.num} images {'with' if equal == 'tpr' else 'without'} '{positive}', too few for a "
            f"{_RATES[equal]} of {fit.target:.1%}: it takes {count_needed(fit.target, at_most=equal == 'fpr')}. Add "
            "some, or ask for a rate nearer to a half."
        )
    _require_own(fit.rows, options, fit.target, equal)
    cutoffs, rows, target, general = fit.cutoffs, fit.rows, fit.target, fit.general

    def make_rule(cutoff: float) -> dict[str, Any]:
        return {"cutoff": {"label": positive, "score": cutoff}}

    rules = GroupRules(
        column=str(options.group_column),
        criterion=_describe(f"'{positive}'", equal, target, options.rate),
        general={} if general is None else make_rule(general),
        groups={g: None if c is None else make_rule(c.cutoff) for g, c in cutoffs.items()},
    )
    others = scores.copy()
    others[:, index] = -1
    instead = others.argmax(1)

    def measure(least: Floats) -> float:
        label = np.where(scores[:, index] >= least, index, instead)
        return float((label == truth).mean())

    plain = float((scores.argmax(1) == truth).mean())
    before = plain if general is None else measure(np.full(len(truth), general))
    least = np.array(
        [c.cutoff if (c := cutoffs.get(g)) is not None else (general or np.nan) for g in groups]
    )
    unset = np.isnan(least)  # by the highest score: beyond that of all other labels
    least[unset] = others.max(1)[unset]
    return GroupFit(rules, rows, "Accuracy", before, measure(least))


def _fit_several(
    scores: Floats,
    truth: NDArray[Any],
    labels: Sequence[str],
    rules: ConfidenceRules,
    groups: Sequence[str],
    options: CalibrationOptions,
    equal: str,
) -> GroupFit:
    if options.positive is not None:
        raise CalibrationError(
            f"--positive is '{options.positive}', but where several labels may apply each has thresholds of its own. "
            "Leave it out."
        )
    names = np.asarray(groups, dtype=object)
    plain = rules.get_thresholds(np.arange(len(labels)), _APPLIES)
    general = plain.copy()
    by_group = {group: plain.copy() for group in sorted(set(groups) - {""})}
    rows: list[dict[str, Any]] = []
    targets = []
    for index, label in enumerate(labels):
        is_true = truth[:, index] > 0
        called = scores[:, index] >= plain[index]
        fit = _equalize(scores[:, index], is_true, called, names, (label, equal, options.rate))
        rows += fit.rows
        targets.append(fit.target)
        general[index] = plain[index] if fit.general is None else fit.general
        for group, thresholds in by_group.items():
            cutoff = fit.cutoffs[group]
            thresholds[index] = general[index] if cutoff is None else cutoff.cutoff
    _require_own(rows, options, float(np.median(targets)), equal)
    with_own = {row["group"] for row in rows if row["own"]}
    fitted = GroupRules(
        column=str(options.group_column),
        criterion=_describe("each label", equal, None, options.rate),
        general={"thresholds": general.tolist()},
        groups={
            group: {"thresholds": values.tolist()} if group in with_own else None
            for group, values in by_group.items()
        },
    )

    def measure(least: Floats) -> float:
        return float(((scores >= least) == (truth > 0)).mean())

    least = np.stack([by_group.get(group, general) for group in groups])
    return GroupFit(fitted, rows, "Right labels", measure(general), measure(least))


def _fit_precision(
    scores: Floats,
    truth: NDArray[Any],
    rules: ConfidenceRules,
    groups: Sequence[str],
    options: CalibrationOptions,
) -> GroupFit:
    """Fit for each group the score from which on its answers are right often enough, whatever the label."""
    assert options.min_precision is not None
    assert rules.thresholds is not None  # fitted for this precision
    best, confidence = scores.argmax(1), scores.max(1)
    right, plain = best == truth, np.array(rules.thresholds)
    names = np.asarray(groups, dtype=object)
    by_group: dict[str, dict[str, Any] | None] = {}
    rows: list[dict[str, Any]] = []
    sure = confidence >= plain[best]
    after = sure.copy()
    for group in sorted(set(groups) - {""}):
        mine = names == group
        proved, closest = find_precision_cut(
            confidence[mine], right[mine], options.min_precision, _LEVEL
        )
        # Where too little is known to prove it, what comes closest: a group is never less sure than all together.
        least = np.maximum(plain, closest.threshold) if proved is None else None
        values = [proved.threshold] * len(plain) if proved else least.tolist()  # type: ignore[union-attr]
        by_group[group] = {"thresholds": values}
        after[mine] = confidence[mine] >= np.array(values)[best[mine]]
        chosen, previous = mine & after, mine & sure
        rows.append(
            {
                "group": group,
                "label": "sure answers",
                "num": int(mine.sum()),
                "cutoff": min(values),
                "own": True,
                "before": float(right[previous].mean()) if previous.any() else 1.0,
                "after": float(right[chosen].mean()) if chosen.any() else 1.0,
                "low": (proved or closest).bound,
                "high": 1.0,
            }
        )
    criterion = (
        f"Of the sure answers in each group {options.min_precision:.1%} or more are right, each threshold at a "
        "confidence of 95 %, so that abstaining does not hide that a group is served worse (Jones et al., Selective "
        "classification can magnify disparities across groups, 2021)."
    )
    fitted = GroupRules(
        column=str(options.group_column), criterion=criterion, general={}, groups=by_group
    )
    return GroupFit(fitted, rows, "Sure answers", float(sure.mean()), float(after.mean()))


def _fit_temperatures(
    scores: Floats,
    truth: NDArray[Any],
    rules: ConfidenceRules,
    groups: Sequence[str],
    options: CalibrationOptions,
) -> GroupFit:
    """Fit for each group the temperature at which its scores are probabilities; predicted labels stay."""
    multilabel = truth.ndim == 2
    for name in ("rate", "positive"):
        if (value := getattr(options, name)) is not None:
            raise CalibrationError(
                f"--{name} is {value}, for rates of a label, and --equal calibration fits temperatures. Leave one of "
                "the two out."
            )
    names = np.asarray(groups, dtype=object)
    by_group: dict[str, dict[str, Any] | None] = dict.fromkeys(sorted(set(groups) - {""}))
    rows: list[dict[str, Any]] = []
    for group in by_group:
        of_group, true = scores[names == group], truth[names == group]
        num = len(true)
        row = {"group": group, "label": "temperature", "num": num, "own": num >= MIN_IMAGES}
        row["before"] = row["after"] = measure_score_error(of_group, true)
        if row["own"]:
            further = fit_score_temperature(of_group, true)
            softened = soften_scores(of_group, further, multilabel=multilabel)
            row["temperature"] = further * rules.temperature
            row["after"] = measure_score_error(softened, true)
            rule: dict[str, Any] = {"temperature": row["temperature"]}
            if multilabel:
                # Thresholds go with the scores, so that the same labels apply.
                plain = rules.get_thresholds(np.arange(scores.shape[1]), _APPLIES)
                (moved,) = soften_scores(plain[None], further, multilabel=True)
                rule["thresholds"] = moved.tolist()
            by_group[group] = rule
        rows.append(row)
    if not any(row["own"] for row in rows):
        counts = ", ".join(f"{row['group']} {row['num']}" for row in rows[:5])
        raise CalibrationError(
            f"No group of '{options.group_column}' has the {MIN_IMAGES} images that a temperature takes (there are: "
            f"{counts}). Add images, or leave out --group_column."
        )
    meaning = "that a label applies" if multilabel else "of being right"
    criterion = (
        f"In each group scores are the probabilities {meaning}, by a temperature of its own (Guo et al., On "
        "calibration of modern neural networks, 2017); labels stay."
    )
    fitted = GroupRules(
        column=str(options.group_column), criterion=criterion, general={}, groups=by_group
    )
    return GroupFit.average_errors(fitted, rows)


class _LabelFit(NamedTuple):
    cutoffs: dict[str, GroupCutoff | None]
    """By group; None where the general rule stays."""
    rows: list[dict[str, Any]]
    target: float
    """Rate that all groups shall have; where it is 0 or 1 nothing is fitted."""
    general: float | None
    """Cutoff where no group is given; None where the general rule stays."""
    num: int
    """Images that count."""


def _equalize(
    scores: Floats,
    is_true: NDArray[np.bool_],
    called: NDArray[np.bool_],
    names: NDArray[Any],
    asked: tuple[str, str, float | None],
) -> _LabelFit:
    """Fit cutoffs of one label's score by group; asked are the label, `tpr` or `fpr`, and the rate or None."""
    label, equal, rate = asked
    counted = is_true if equal == "tpr" else ~is_true
    at_most = equal == "fpr"
    target = rate if rate is not None else float(called[counted].mean()) if counted.any() else 0.0
    grouped = counted & (names != "")
    cutoffs: dict[str, GroupCutoff | None] = dict.fromkeys(sorted(set(names.tolist()) - {""}))
    general = None
    if 0 < target < 1:
        fits = fit_group_cutoffs(scores[grouped], names[grouped].tolist(), target, at_most=at_most)
        cutoffs |= fits
        if rate is not None and counted.sum() >= count_needed(target, at_most=at_most):
            general = fit_cutoff(scores[counted], target, at_most=at_most).cutoff
    rows = []
    for group, fit in cutoffs.items():
        mine = counted & (names == group)
        row = {"group": group, "label": label, "num": int(mine.sum()), "own": fit is not None}
        if fit is not None:
            row |= {
                "cutoff": fit.cutoff,
                "before": float(called[mine].mean()),
                "after": float((scores[mine] >= fit.cutoff).mean()),
                "low": fit.low,
                "high": fit.high,
            }
        rows.append(row)
    return _LabelFit(cutoffs, rows, target, general, int(counted.sum()))


def _require_own(
    rows: Sequence[dict[str, Any]], options: CalibrationOptions, target: float, equal: str
) -> None:
    if any(row["own"] for row in rows):
        return
    counts = ", ".join(f"{row['group']} {row['num']}" for row in rows[:5])
    least = count_needed(target, at_most=equal == "fpr")
    raise CalibrationError(
        f"No group of '{options.group_column}' has enough images {'with' if equal == 'tpr' else 'without'} the label "
        f"for a {_RATES[equal]} of {target:.1%}: it takes {least} (there are: {counts}). Add images, or leave out "
        "--group_column."
    )


def _describe(label: str, equal: str, target: float | None, rate: float | None) -> str:
    source = (
        "equal opportunity: Hardt et al., Equality of opportunity in supervised learning, 2016"
        if equal == "tpr"
        else "predictive equality: Corbett-Davies et al., Algorithmic decision making and the cost of fairness, 2017"
    )
    share = "the fraction of all together" if target is None else f"{target:.1%}"
    share = share if rate is None else f"{rate:.1%}"
    if equal == "tpr":
        text = f"Of the images with {label}, {share} or more are called so in each group"
    else:
        text = f"Of the images without {label}, {share} at most are called so in each group"
    return f"{text} ({source}), on average over such fits."
