"""`vfm pretrain`: a backbone from images without labels, within a budget of time that is spent only while it pays."""

from __future__ import annotations

import json
import shlex
import shutil
import time
from dataclasses import asdict
from pathlib import Path

from vfm.data.auto import open_labels
from vfm.data.records import Record
from vfm.pretrain.leaks import MOST_OPENED, describe_leaks, find_leaks
from vfm.pretrain.options import PretrainOptions, TimeBudgetError, format_time, parse_budget
from vfm.pretrain.page import describe_run, write_page
from vfm.pretrain.probe import LabeledProbe, Point
from vfm.pretrain.rounds import FEWEST_STEPS, Pretrainer, open_images
from vfm.pretrain.run import Run
from vfm.training.log_filters import filter_logs, silence_trainers

MODEL_FILE = "model.ckpt"
PILOT = 0.05
"""Fraction of the budget that the pilot trains each method for."""
NUM_ROUNDS = 10
_FEWEST_OPENED, _OPENED_A_SECOND = 1000, 10
"""Images opened to find near-copies: at least, and for each second of the budget."""
_RESERVE = 3.0
"""Seconds for the page."""
_DEFAULTS = PretrainOptions()


@silence_trainers()
def pretrain(
    data: Path,
    *,
    probe: Path,
    test: Path | None = None,
    budget: str = "1h",
    options: PretrainOptions = _DEFAULTS,
    out: Path = Path("pretrain"),
    seed: int = 0,
) -> None:
    """Train a backbone on images without labels, for as long as it pays: a pilot picks the method, a probe judges.

    The pilot trains each method for a twentieth of the budget, and kNN on the probe picks one. Then rounds follow, each
    with a learning rate that falls to near zero, so that its point is what training would be worth if it ended there. A
    line of kNN over the logarithm of the hours says what more of them would give; training ends when the gain of the
    next round is within the noise of a point, or the budget is spent. The same command goes on with a run that was
    killed, or with a larger budget, after its last finished round.

    Args:
        data: Images to train on: a folder, a table of paths, or IDX files, of which the train split is taken where one
            is stated. Labels are not read.
        probe: Labelled images that judge: a folder of class folders, a table, or IDX files. Of train and val splits,
            val is voted on by train; else each image by all others. A test split is left alone.
        test: Images of a later test, of which none should be trained on, nor a near-copy: said where there are. What
            the probe states as its test split is looked at likewise.
        budget: Time for all of it, such as 90s, 30m, 2h or 1.5d.
        options: What is trained, and how.
        out: Folder for model.ckpt (the best round), curve.png, report.html and results.json.
        seed: Seed of the start, of the order and of the draw of the probe.

    Raises:
        TimeBudgetError: The budget is no time, or too short for the pilot.
    """
    seconds = parse_budget(budget)
    methods = options.list_methods()
    filter_logs()
    settings = json.loads(json.dumps({**asdict(options), "methods": methods}, default=str))
    settings |= {"data": str(data.absolute()), "probe": str(probe.absolute()), "seed": seed}
    judge = LabeledProbe(probe, options.num_probe, seed)
    images = open_images(data, options.batch_size, seed).records["train"]
    (out / "rounds").mkdir(parents=True, exist_ok=True)
    run = Run.open(out, settings)
    if run.rounds:
        print(f"Going on after {run.rounds[-1].name}, {format_time(run.spent)} of {budget} spent.")
    report_leaks(run, judge, test, images, seconds)
    print(
        f"{len(images)} images to train on; probe: {judge.num_judged} images of {len(judge.labels)} classes, "
        f"{judge.kind}.",
        flush=True,
    )
    trainer = run_pilot(run, judge, data, seconds, options)
    run_rounds(run, trainer, judge, seconds)
    trend = run.fit_trend(judge.num_judged)
    shutil.copyfile(run.find_checkpoint(run.best), out / MODEL_FILE)
    lines = describe_run(run, trend, judge.num_judged)
    module = type(open_labels(probe)).__name__
    words = {
        "--model": "ClassificationTask",
        "--model.backbone": options.backbone,
        "--model.backbone_args": json.dumps(options.backbone_args) if options.backbone_args else "",
        "--model.image_size": str(options.image_size or ""),
        "--model.fit": options.fit or "",
        "--model.weights": str(out / MODEL_FILE),
        "--data": module,
        "--data.root": str(probe),
    }
    command = "vfm fit " + " ".join(f"{k} {shlex.quote(v)}" for k, v in words.items() if v)
    subtitle = (
        f"vfm pretrain {data}: {len(images)} images, {options.backbone}, {run.method}, budget {budget}; probe {probe}: "
        f"{judge.num_judged} images, {judge.kind}"
    )
    write_page(out, run, trend, lines, subtitle, command)
    run.save(trend=trend._asdict() if trend else None, summary=lines)
    print("", *lines, "", sep="\n")
    print(f"Model: {out / MODEL_FILE}, of '{run.best.name}'\nPage: {out / 'report.html'}")
    print(f"Time: {format_time(run.spent)} of {budget}\nNext: {command}")


def report_leaks(
    run: Run, judge: LabeledProbe, test: Path | None, images: list[Record], seconds: float
) -> None:
    """Raise the alarms of images of the probe and of test sets that are trained on, and print them.

    A run that goes on keeps the leaks that it has named, unless there are other images to compare by now.

    Args:
        run: The run, which keeps the alarms.
        judge: The probe, perhaps with a test split.
        test: Images of a later test; None for none.
        images: Images to train on.
        seconds: Budget of the whole run; a short one looks at fewer images.
    """
    judging = {
        "the probe": [record for part in judge.parts for record in part],
        "the probe's test split": judge.held_out,
    }
    if test is not None:
        splits = open_labels(test).records
        whole = [record for part in splits.values() for record in part]
        judging[f"--test {test}"] = splits.get("test") or whole
    most = max(_FEWEST_OPENED, min(MOST_OPENED, int(_OPENED_A_SECOND * seconds)))
    compared = {what: len(records) for what, records in judging.items()}
    opened = min(most, max(len(images), sum(compared.values())))
    compared |= {"images to train on": len(images), "images to open": opened}
    if run.compared == compared:
        return
    run.leaks, notes = find_leaks(judging, images, most)
    run.compared = compared
    run.alarms = {name: text for name, text in run.alarms.items() if not name.startswith("leak")}
    for what, records in judging.items():
        if leaks := [leak for leak in run.leaks if leak.set == what]:
            run.alarms[f"leak of {what}"] = describe_leaks(leaks, what, len(records))
            print(run.alarms[f"leak of {what}"])
    print(*notes, sep="\n", end="\n" * bool(notes), flush=True)
    run.save()


def run_pilot(
    run: Run, judge: LabeledProbe, data: Path, seconds: float, options: PretrainOptions
) -> Pretrainer:
    """Train each method for an equal time, and return the one of the highest kNN, ready to go on.

    Args:
        run: The run, which keeps what is done.
        judge: The probe, which is brought to the size of the model.
        data: Images to train on.
        seconds: Budget of the whole run.
        options: What is trained, and how.

    Raises:
        TimeBudgetError: The budget is too short.
        OptionError: A step needs more memory than is free.
    """
    seed = run.settings["seed"]
    names = [run.method] if run.method is not None else run.settings["methods"]
    trainer: Pretrainer | None = None
    for name in names:
        trainer = Pretrainer(data, name, options, seed)
        if not judge.pixels:
            run.step_bytes = trainer.check_memory(run.step_bytes)
            judge.prepare(trainer.task)
            if run.start is None:
                begun = time.perf_counter()
                run.start = judge.measure(trainer.task, "start", hours=0.0, kwh=0.0, steps=0)
                run.judged_in = time.perf_counter() - begun
                print(format_point(run.start), flush=True)
                run.save()
        if name in [point.name for point in run.pilot]:
            continue
        length = PILOT * seconds
        require_budget(run, trainer, seconds, len(names))
        point = train_round(run, trainer, judge, name, length)
        run.pilot.append(point)
        run.save()
    assert trainer is not None  # there is at least one method
    if run.method is None:
        best = max(run.pilot, key=lambda point: point.knn)
        run.method = best.name
        print(describe_choice(run.pilot, judge.num_judged), flush=True)
        left = seconds - run.elapsed - _RESERVE
        run.round_seconds = max(left / NUM_ROUNDS - run.judged_in, PILOT * seconds / 2)
    if trainer.method != run.method:
        trainer = Pretrainer(data, run.method, options, seed)
    trainer.restore(run.find_checkpoint(run.trained[-1]), len(run.trained))
    run.save()
    return trainer


def require_budget(run: Run, trainer: Pretrainer, seconds: float, num_methods: int) -> None:
    """Refuse a budget whose share for a pilot is not enough for a few steps.

    Args:
        run: The run, which has spent some of it.
        trainer: The method, whose pace is measured.
        seconds: Budget of the whole run.
        num_methods: Number of methods of the pilot.

    Raises:
        TimeBudgetError: It is too short; it says how much would do.
    """
    before = run.elapsed
    pace = trainer.measure_pace()
    least = pace.startup + FEWEST_STEPS * pace.step
    # What is not training must not take more than half.
    apart = num_methods * (run.elapsed - before + run.judged_in) + before
    needed = max(least / PILOT, 2 * apart)
    if needed > seconds:
        raise TimeBudgetError(
            f"--budget {format_time(seconds)} is shorter than the pilot needs: {FEWEST_STEPS} steps of "
            f"{trainer.method} take {least:.1f} s, and {PILOT:.0%} of the budget are for it. Give --budget "
            f"{format_time(1.2 * needed)} or more, a smaller --batch-size, --image-size or --backbone, or "
            "fewer --methods."
        )


def train_round(
    run: Run, trainer: Pretrainer, judge: LabeledProbe, name: str, seconds: float
) -> Point:
    """Train for some seconds, judge, save the checkpoint, and return the point.

    Args:
        run: The run, which knows the points before.
        trainer: Method that is trained.
        judge: Probe that tells kNN.
        name: Name of the point.
        seconds: Time of the training.
    """
    before = run.trained[-1] if run.method is not None else run.start
    assert before is not None
    steps, meter, taken = trainer.train(seconds)
    kwh = meter.kwh
    run.energy_source = meter.source
    point = judge.measure(
        trainer.task,
        name,
        hours=before.hours + taken / 3600,
        kwh=None if kwh is None or before.kwh is None else before.kwh + kwh,
        steps=before.steps + steps,
    )
    trainer.save(run.find_checkpoint(point))
    print(format_point(point), flush=True)
    for text in run.check(point, run.trained, judge.num_judged):
        print(text, flush=True)
    return point


def run_rounds(run: Run, trainer: Pretrainer, judge: LabeledProbe, seconds: float) -> None:
    """Train on, round by round, until another one would not pay or the budget is spent; `run` says which.

    Args:
        run: The run, which keeps what is done.
        trainer: The chosen method, at its last point.
        judge: Probe that tells kNN.
        seconds: Budget of the whole run.
    """
    while True:
        length = run.round_seconds
        trend = run.fit_trend(judge.num_judged)
        if trend is not None and not trend.pays(length / 3600):
            gain = trend.expect(length / 3600)
            reason = (
                f"within the noise of a point, {100 * trend.residual:.1f}"
                if gain.points > 0
                else "which is no gain"
            )
            run.ended = (
                f"another round of {format_time(length)} is expected to give {gain.points:+.1f} "
                f"points, {reason}"
            )
            return
        left = seconds - run.elapsed - _RESERVE
        if left < length / 2:
            run.ended = "the budget is spent"
            return
        run.rounds.append(
            train_round(run, trainer, judge, f"round {len(run.rounds) + 1}", min(length, left))
        )
        run.save()


def format_point(point: Point) -> str:
    """Return a line of the table that grows while training goes on."""
    energy = "" if not point.kwh else f"  {point.kwh:.3g} kWh"
    return (
        f"{point.name:<13} {60 * point.hours:8.2f} min {point.steps:8d} steps  kNN {point.knn:.3f} "
        f"({point.low:.3f} to {point.high:.3f}){energy}"
    )


def describe_choice(pilot: list[Point], num_judged: int) -> str:
    """Return which method the pilot chose, and how sure that is.

    Args:
        pilot: A point for each method.
        num_judged: Images that kNN is of.
    """
    best, *others = sorted(pilot, key=lambda point: -point.knn)
    if not others:
        return f"{best.name} is the only method."
    error = (2 * best.knn * (1 - best.knn) / num_judged) ** 0.5
    lead = best.knn - others[0].knn
    doubt = ", which may be chance" if lead < 2 * error else ""
    return f"The pilot picks {best.name}, {100 * lead:.1f} points before {others[0].name}{doubt}."
