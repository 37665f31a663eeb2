"""Page and curve of `vfm pretrain`, and its summary in words."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vfm.pretrain.run import Run
from vfm.pretrain.trend import FEWEST_ROUNDS, Trend
from vfm.report import Page, plot_learning_curves

_FAR = 10
"""How many times the hours so far a forecast may look ahead before that is said."""
_MORE = 100.0


def describe_run(run: Run, trend: Trend | None, num_judged: int) -> list[str]:
    """Return sentences on what the run brought, and what more hours would.

    Args:
        run: The run, which has ended.
        trend: Line through its points; None of too few.
        num_judged: Images that kNN is of.
    """
    start, best = run.start, run.best
    assert start is not None
    error = 2 * (2 * best.knn * (1 - best.knn) / num_judged) ** 0.5
    lines = [
        f"kNN on the probe: {start.knn:.3f} at the start, {best.knn:.3f} after '{best.name}' ({run.method}, "
        f"{best.hours:.3g} hours of training)."
    ]
    if best.knn - start.knn < error:
        doubt = "less than at the start" if best.knn < start.knn else "a gain that may be chance"
        lines.append(
            f"That is {doubt}: of a probe of {num_judged} images, {100 * error:.1f} points are two standard errors."
        )
    if trend is None:
        lines.append(
            f"What more hours would give cannot be said: a line takes {FEWEST_ROUNDS} rounds, and there are "
            f"{len(run.rounds)}. Give a larger --budget."
        )
    elif trend.slope <= 0:
        lines.append(
            f"As long again ({trend.hours:.3g} hours): {trend.expect(trend.hours)}. kNN does not rise with the hours, "
            "so that nothing is said of many more of them: lower --lr, or another of --methods."
        )
    else:
        lines.append(
            f"As long again ({trend.hours:.3g} hours): {trend.expect(trend.hours)}. {_MORE:g} more hours: "
            f"{trend.expect(_MORE)}."
        )
        if _FAR * trend.hours < _MORE:
            lines.append(
                f"{_MORE:g} hours are {_MORE / trend.hours:,.0f} times what was measured: that figure supposes that "
                "the line goes on, which no curve does for long."
            )
    energy = run.trained[-1].kwh
    used = f"{energy:.3g} kWh ({run.energy_source})" if energy is not None else run.energy_source
    lines += [f"Ended because {run.ended}.", f"Energy of the training: {used}."]
    return lines


def write_page(
    folder: Path,
    run: Run,
    trend: Trend | None,
    lines: Sequence[str],
    subtitle: str,
    command: str,
) -> None:
    """Write `report.html`, and its figure as `curve.png`.

    Args:
        folder: Folder to write to.
        run: The run, which has ended.
        trend: Line through its points; None of too few.
        lines: Sentences that sum up the run.
        subtitle: Line under the title.
        command: Command to go on with.
    """
    start, best, last = run.start, run.best, run.trained[-1]
    assert start is not None
    page = Page("What pretraining gave", subtitle)
    more = "not known" if trend is None else str(trend.expect(trend.hours))
    page.add_facts(
        {
            "kNN": (f"{best.knn:.3f}", f"95 % interval {best.low:.3f} to {best.high:.3f}"),
            "At the start": (f"{start.knn:.3f}", "before any training"),
            "As long again": (more, "95 % interval of a line over log hours"),
            "Training": (f"{last.hours:.3g} hours", f"{last.steps} steps, {run.method}"),
        }
    )
    for text in run.alarms.values():
        page.add_text(f"Alarm. {text}")
    for text in lines:
        page.add_text(text)
    page.add_heading("Curve")
    unit, factor = ("minutes", 60) if last.hours < 2 else ("hours", 1)
    points = [start, *run.trained]
    series = {str(run.method): [(factor * p.hours, p.knn, p.low, p.high) for p in points]}
    for point in run.pilot:
        if point.name != run.method:
            series[point.name] = [(factor * p.hours, p.knn, p.low, p.high) for p in (start, point)]
    curve = plot_learning_curves({"kNN on the probe": series}, xlabel=f"{unit} of training")
    (folder / "curve.png").write_bytes(curve)
    page.add_figure(
        curve,
        f"kNN on the probe by the {unit} of training, with its 95 % interval over images. All points are of the same "
        "images, so that they scatter less than the band. Other methods of the pilot were trained once.",
    )
    if last.kwh is not None:
        energy = {str(run.method): [(p.kwh or 0.0, p.knn, p.low, p.high) for p in points]}
        page.add_figure(
            plot_learning_curves({"kNN on the probe": energy}, xlabel="kWh of training"),
            f"The same by energy: {run.energy_source}.",
        )
    rows = [{"method": p.name} | p.to_dict() for p in run.pilot]
    page.add_heading("Pilot")
    page.add_table([{k: v for k, v in row.items() if k != "name"} for row in rows])
    page.add_heading("Rounds")
    page.add_table([p.to_dict() for p in points])
    page.add_text(
        "The line: least squares of kNN over the logarithm of the hours of the rounds; its margin is Student's t "
        "on the standard error of the slope by the residuals. Each round starts with the full learning rate and ends "
        "near zero. The probe chose method and round, so that kNN here is a little too good; test on other images."
    )
    page.add_heading("Next")
    page.add_code(command)
    page.write(folder / "report.html")
