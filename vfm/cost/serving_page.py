"""Pages of serving costs: where own replicas cost less than an API, and accuracy against cost of several models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vfm.cost.serving import compute_own_cost
from vfm.report import Page
from vfm.report.plots import COLORS, FONT_SIZE, choose_style, encode_png, make_figure, style_axes


def plot_break_even(content: Mapping[str, Any]) -> bytes:
    """Plot dollars a month against images a month, of own replicas and of each API, both on logarithmic scales.

    Args:
        content: JSON of `vfm cost serve`, with a price of an hour.
    """
    rate, price = content["images_per_second"], content["usd_per_hour"]
    drawing = make_figure(7.0, 4.2)
    axes = drawing.subplots()
    images = np.geomspace(1e4, 1e10, 400)
    replicas = [compute_own_cost(n, rate, price, content["utilization"]) for n in images]
    axes.plot(
        images, replicas, color="#000000", linewidth=2.2, label="this bundle on its own replicas"
    )
    for index, api in enumerate(content["apis"]):
        style = choose_style(index)
        per_image = api["usd_per_1000_images"] / 1000
        axes.plot(images, images * per_image, label=f"{api['name']}, {api['date']}", **style)
        if api["break_even"] is not None:
            point = api["break_even"]
            axes.plot([point], [point * per_image], "o", color=style["color"], markersize=6)
    at = content["rps"] * 730 * 3600
    axes.axvline(
        at,
        color="#888888",
        linewidth=1,
        linestyle=":",
        label=f"{content['rps']:g} images/s all month",
    )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("images a month", fontsize=FONT_SIZE)
    axes.set_ylabel("dollars a month", fontsize=FONT_SIZE)
    axes.legend(fontsize=FONT_SIZE - 1, frameon=False)
    style_axes(axes)
    return encode_png(drawing)


def build_serving_page(content: Mapping[str, Any], command: str) -> Page:
    """Return the page of `vfm cost serve` from its JSON."""
    machine = content["machine"]
    page = Page(f"Cost of serving {content['bundle']}", command)
    millions = content["usd_per_million"]
    page.add_facts(
        {
            "images/s of a replica": (
                content["images_per_second"],
                "one at a time, file to answer",
            ),
            "p99 alone, ms": content["p99_alone_ms"],
            "replicas": (
                content["replicas"],
                f"for {content['rps']:g} images/s, p99 {content['p99_ms']:g} ms",
            ),
            "p99 with these, ms": (content["p99_simulated_ms"], "simulated, random arrivals"),
            "$ a million images": (
                "no price" if millions is None else millions,
                content["price_source"],
            ),
        }
    )
    page.add_text(
        f"Measured on {machine['cpu']}, {machine['cores']} cores, {content['num_timed']} requests. A replica works at "
        f"most {content['utilization']:.0%} of its time; people, storage and network are not in the figures."
    )
    if content["warning"] is not None:
        page.add_text(content["warning"])
    if content["usd_per_hour"] is not None:
        page.add_heading("Break-even")
        caption = (
            "Dots: from here on own replicas cost less than that API. A replica is paid for all month, "
            "whatever it does."
        )
        page.add_figure(plot_break_even(content), caption)
    page.add_table(
        [
            {
                "API": api["name"],
                "$ a million": 1000 * api["usd_per_1000_images"],
                "own from, images a month": api["break_even"],
                "source": f"{api['source']}, {api['date']}",
            }
            for api in content["apis"]
        ]
    )
    return page


def find_pareto(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Return for each pair of cost and accuracy whether no other is cheaper and better at once."""
    return [
        not any(c <= cost and a >= accuracy and (c, a) != (cost, accuracy) for c, a in points)
        for cost, accuracy in points
    ]


def plot_pareto(rows: Sequence[Mapping[str, Any]], cost: str, metric: str) -> bytes:
    """Plot accuracy against cost, with a line through the models that no other beats in both.

    Args:
        rows: Models with `name`, `cost`, `value` and `pareto`.
        cost: Label of the cost, with its unit.
        metric: Name of the accuracy.
    """
    drawing = make_figure(6.4, 4.0)
    axes = drawing.subplots()
    best = sorted((r["cost"], r["value"]) for r in rows if r["pareto"])
    axes.plot(*zip(*best, strict=True), color=COLORS[0], linewidth=1.5, zorder=1)
    for row in rows:
        color = COLORS[0] if row["pareto"] else "#888888"
        axes.plot([row["cost"]], [row["value"]], "o", color=color, markersize=7)
        axes.annotate(
            row["name"],
            (row["cost"], row["value"]),
            xytext=(6, 6),
            textcoords="offset points",
            fontsize=FONT_SIZE,
            parse_math=False,
        )
    axes.margins(0.2)
    axes.set_xlabel(cost, fontsize=FONT_SIZE)
    axes.set_ylabel(metric, fontsize=FONT_SIZE, parse_math=False)
    style_axes(axes)
    return encode_png(drawing)
