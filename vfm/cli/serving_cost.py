"""`vfm cost serve` and `vfm cost compare`: what answers cost, measured here, beside an API and beside other models."""

from __future__ import annotations

import json as json_format
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import vfm_runtime

from vfm.cli.errors import UsageError
from vfm.cost.prices import HERE, PriceTable, describe_source
from vfm.cost.serving import (
    count_replicas,
    describe_load,
    describe_machine,
    find_break_even,
    measure_serving,
    simulate_latency,
)
from vfm.cost.serving_page import build_serving_page, find_pareto, plot_pareto
from vfm.report import Page

SERVE_FILE = "serve.json"


def estimate_serving(
    bundle: Path,
    *,
    rps: float,
    p99: float,
    images: Path | None = None,
    utilization: float = 0.5,
    device: str = HERE,
    prices: Path | None = None,
    results: Path | None = None,
    metric: str = "accuracy",
    out: Path | None = None,
    json: bool = False,
) -> None:
    """Measure a bundle's latency here, and compute replicas and money for a rate, beside the price of an API.

    Args:
        bundle: Folder of a bundle.
        rps: Images in a second that are to be answered.
        p99: Most milliseconds from arrival to answer for 99 of 100 images.
        images: Folder of images like those to be served, in place of the bundle's golden ones.
        utilization: Most of its time that a replica works; the rest is idle, and paid.
        device: Row of the price table that this machine is rented as.
        prices: YAML file of your own prices, which go before those of vfm.
        results: The results.json of vfm test, for vfm cost compare.
        metric: Metric of the test split in the results.
        out: Folder for a page and serve.json; -o for short.
        json: Print JSON, one object.

    Raises:
        UsageError: A number is out of range, or the results lack the metric.
        ServingError: The limit cannot be kept.
    """
    for name, value, most in (
        ("rps", rps, math.inf),
        ("p99", p99, math.inf),
        ("utilization", utilization, 1),
    ):
        if not 0 < value <= most or value == math.inf:
            raise UsageError(
                f"--{name} is {value}. Give a number above 0{', at most 1' if most == 1 else ''}."
            )
    table = PriceTable.read(prices)
    row = table.find("devices", device)
    accuracy = None if results is None else _read_metric(results, metric)
    model = vfm_runtime.load(bundle)
    files = vfm_runtime.find_images(images) if images else sorted((bundle / "golden").glob("*.png"))
    times = measure_serving(model, files)
    replicas = count_replicas(times, rps, p99 / 1000, utilization)
    price = row.get("usd_per_hour")
    millions = None
    if price is not None:
        millions = price / (times.rate * utilization * 3600) * 1e6
    content: dict[str, Any] = {
        "bundle": bundle.resolve().name,
        "machine": describe_machine(),
        "num_timed": len(times.seconds),
        "warning": describe_load(),
        "images_per_second": times.rate,
        "p50_alone_ms": 1000 * times.compute_quantile(0.5),
        "p99_alone_ms": 1000 * times.compute_quantile(0.99),
        "rps": rps,
        "p99_ms": p99,
        "replicas": replicas,
        "p99_simulated_ms": 1000 * simulate_latency(times, rps, replicas),
        "utilization": utilization,
        "usd_per_hour": price,
        "usd_per_million": millions,
        "price_source": describe_source(device, row)
        if price is not None
        else f"no price: give usd_per_hour of the device '{device}', with source and date, in --prices FILE",
        "metric": None if accuracy is None else {"name": metric, "value": accuracy},
        "apis": [
            {
                "name": name,
                **api,
                "date": str(api["date"]),
                "break_even": None
                if price is None
                else find_break_even(times.rate, price, utilization, api["usd_per_1000_images"]),
            }
            for name, api in table.sections["apis"].items()
        ],
    }
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        text = json_format.dumps(content, indent=2) + "\n"
        (out / SERVE_FILE).write_text(text, encoding="utf-8")
        command = f"vfm cost serve {bundle.name} --rps {rps:g} --p99 {p99:g} --utilization {utilization:g}"
        build_serving_page(content, command).write(out / "report.html")
    print(json_format.dumps(content, indent=2) if json else _format(content, out))


def _read_metric(path: Path, metric: str) -> float:
    try:
        results = json_format.loads(path.read_text(encoding="utf-8"))["test"]
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(
            f"--results {path} has no results on a test split ({error}). Give the results.json that vfm test writes."
        ) from error
    value = results.get(metric)
    if isinstance(value, dict):
        value = value.get("value")
    if not isinstance(value, int | float):
        raise UsageError(f"--metric {metric} is not in {path}. Choices: {', '.join(results)}.")
    return float(value)


def _format(content: dict[str, Any], out: Path | None) -> str:
    machine, millions = content["machine"], content["usd_per_million"]
    lines = [
        f"{content['bundle']} on {machine['cpu']}, {machine['cores']} cores: "
        f"{content['images_per_second']:.3g} images/s, "
        f"p50 {content['p50_alone_ms']:.1f} ms, p99 {content['p99_alone_ms']:.1f} ms ({content['num_timed']} requests)",
        f"{content['rps']:g} images/s with p99 {content['p99_ms']:g} ms: {content['replicas']} replicas (simulated p99 "
        f"{content['p99_simulated_ms']:.1f} ms, each busy at most {content['utilization']:.0%})",
        f"Money: {content['price_source']}"
        if millions is None
        else f"Money: {millions:.3g} $ a million images at {content['utilization']:.0%} utilization, by "
        f"{content['price_source']}",
    ]
    for api in content["apis"]:
        text = f"  {api['name']}: {1000 * api['usd_per_1000_images']:,.0f} $ a million ({api['source']}, {api['date']})"
        if millions is not None:
            point = api["break_even"]
            text += (
                "; never dearer"
                if point is None
                else f"; own costs less from {point:,.0f} images a month"
            )
        lines.append(text)
    if content["warning"] is not None:
        lines.append(content["warning"])
    if out is not None:
        lines.append(f"Page: {out / 'report.html'}")
    return "\n".join(lines)


def compare_costs(runs: Sequence[str], *, out: Path | None = None, json: bool = False) -> None:
    """Compare accuracy and cost of models that vfm cost serve measured on one machine.

    Args:
        runs: Folders that vfm cost serve wrote with --out, of calls with --results.
        out: HTML page to write, with a plot of accuracy against cost; -o for short.
        json: Print JSON, one list of objects.

    Raises:
        UsageError: Figures are of different machines or metrics, or one is missing.
    """
    contents = {name: _read_run(name) for name in runs}
    if len(contents) < 2:
        raise UsageError(
            f"One model alone ({', '.join(contents)}) compares with nothing. Give two or more."
        )
    machines = {name: content["machine"] for name, content in contents.items()}
    first, *others = machines
    for other in others:
        if machines[other] != machines[first]:
            shown = [
                ", ".join(f"{k} {v}" for k, v in machines[name].items()) for name in (first, other)
            ]
            raise UsageError(
                f"{first} was measured on {shown[0]}, {other} on {shown[1]}: such figures do not compare. Measure both "
                "on one machine with vfm cost serve."
            )
    metrics = {content["metric"]["name"] for content in contents.values()}
    if len(metrics) > 1:
        raise UsageError(
            f"The accuracies are of different metrics: {', '.join(sorted(metrics))}. Give one --metric to vfm cost "
            "serve."
        )
    (metric,) = metrics
    is_priced = all(content["usd_per_million"] is not None for content in contents.values())
    label = "$ a million images" if is_priced else "ms of one core-bound answer"
    key = "usd_per_million" if is_priced else "p50_alone_ms"
    points = [(content[key], content["metric"]["value"]) for content in contents.values()]
    rows = [
        {"name": content["bundle"], "cost": cost, "value": value, "pareto": pareto}
        for content, (cost, value), pareto in zip(
            contents.values(), points, find_pareto(points), strict=True
        )
    ]
    if json:
        print(json_format.dumps(rows, indent=2))
    else:
        for row in sorted(rows, key=lambda row: row["cost"]):
            note = "" if row["pareto"] else "  (another is better and no dearer)"
            print(f"{row['name']:<30} {metric} {row['value']:.4f}  {row['cost']:.3g} {label}{note}")
    if out is not None:
        page = Page("Accuracy against cost", f"vfm cost compare {' '.join(runs)}")
        machine = ", ".join(f"{k} {v}" for k, v in machines[first].items())
        page.add_text(f"All measured on one machine: {machine}.")
        caption = "The line joins models that no other beats in both."
        page.add_figure(plot_pareto(rows, label, metric), caption)
        page.add_table([{"model": r["name"], metric: r["value"], label: r["cost"]} for r in rows])
        page.write(out)


def _read_run(name: str) -> dict[str, Any]:
    path = Path(name) / SERVE_FILE
    if not path.is_file():
        raise UsageError(
            f"{name} holds no {SERVE_FILE}. Give folders that vfm cost serve wrote: --out {name}."
        )
    content: dict[str, Any] = json_format.loads(path.read_text(encoding="utf-8"))
    if content["metric"] is None:
        raise UsageError(
            f"{name} states no accuracy. Measure it again with --results, the results.json of vfm test."
        )
    return content
