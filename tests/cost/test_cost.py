"""Memory traces, prices, published runs and quotes."""

from __future__ import annotations

import pytest
import torch
from vfm_runtime.errors import OptionError

from vfm.cost.memory import MemoryTrace, predict_peak
from vfm.cost.prices import PriceTable
from vfm.cost.published import find_run
from vfm.cost.quote import Quote, Span
from vfm.cost.steps import StepTimes
from vfm.cost.training import DeviceError, compute_device_seconds, compute_seconds


def test_a_trace_follows_what_is_made_and_freed():
    weights = torch.zeros(1000)
    with MemoryTrace() as trace:
        first = weights + 1  # 4,000 bytes
        weights.add_(1)  # nothing new
        view = first[:10]
        second = torch.cat([first, first])  # 8,000 bytes
        del first, view
        third = second * 2
    assert trace.timeline[0] == 4000
    assert max(trace.timeline) == 16_000  # the first is gone when the third is made
    assert trace.live == second.nbytes + third.nbytes


def test_the_operation_with_the_peak_may_change_with_the_batch():
    small, large = [100, 500, 900], [200, 700, 910]
    assert predict_peak((2, small), (4, large), 4) == 910
    # At 12 images: 600, 1500, 950.
    assert predict_peak((2, small), (4, large), 12) == 1500


def test_florence_implies_an_efficiency_with_its_working():
    efficiency, lines = find_run("florence").compute_efficiency(PriceTable.read())
    stage = 6 * (637e6 * 196 + 256e6 * 77) * 1.08e6 * 24_576
    last = 6 * (637e6 * 576 + 256e6 * 77) * 8e4 * 12_288
    assert efficiency == pytest.approx((stage + last) / (512 * 312e12 * 864_000))
    assert "893M parameters (637M image, 256M text), 900M pairs, 512 a100-40gb, 10 days" in lines[0]
    assert lines[-1].startswith("  efficiency (MFU) 2.53e+22 / 1.38e+23 = 18.3%")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("devices: [1]", "has no rows by name under devices, grids, apis, and nothing else"),
        ("phones: {a: {usd_per_hour: 1}}", "has no rows by name under devices, grids, apis"),
        (
            "devices: {a: {usd: 1}}",
            "devices.a is {'usd': 1}. Give numbers of 0 or more for some of memory_gb, ",
        ),
        ("devices: {a: {watts: -1}}", "Give numbers of 0 or more"),
        (
            "devices: {a: {watts: 1, source: x}}",
            "devices.a has no source or no date. Say where the figure comes from",
        ),
        ("devices: {", "cannot be read"),
    ],
)
def test_a_table_without_sources_is_refused(tmp_path, text, message):
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(OptionError) as error:
        PriceTable.read(path)
    assert message in str(error.value)


def test_every_row_of_the_package_has_a_source_and_a_date():
    rows = [r for rows in PriceTable.read().sections.values() for r in rows.values() if r]
    assert len(rows) >= 9
    assert all(row["source"] and row["date"].year >= 2021 for row in rows)


def test_a_quote_says_what_it_has_no_figure_for():
    table = PriceTable.read()
    quote = Quote.compute(
        Span(2, 1, 4), table, device="here", measured=(None, "not measurable here")
    )
    assert quote.usd is quote.kwh is quote.co2_kg is None
    assert quote.format_lines() == [
        "Time: 2 hours (1 to 4); device-hours: 2",
        "Money: no price: give usd_per_hour of the device 'here', with source and date, in --prices FILE",
        "Energy: not measurable here",
    ]
    quote = Quote.compute(Span(2, 1, 4), table, device="h100-80gb", num_devices=10)
    assert quote.kwh == Span(14, 7, 28)
    assert quote.co2_kg.value == pytest.approx(14 * 0.436)
    assert quote.to_dict()["kwh"] == {"value": 14, "low": 7, "high": 28}


def test_times_lie_on_a_line():
    times = StepTimes((4, [1.0, 1.1, 0.9]), (8, [1.9, 1.8, 2.0]))
    assert times.predict(16) == pytest.approx(1.0 + 3 * 0.9)
    assert times.predict(4) == 1.0
    span = compute_seconds(times, 16, 10, num_devices=2)
    assert (span.value, span.low) == (pytest.approx(19), pytest.approx(19 * 0.75))


def test_times_elsewhere_follow_the_efficiency():
    row = {"tflops": 100}
    assert compute_device_seconds(1e15, row, "x", 0.25, 2) == pytest.approx((20, 10, 40))
    with pytest.raises(
        DeviceError, match=r"does not say the peak speed \(tflops\) of 'x'. Add it in a file"
    ):
        compute_device_seconds(1e15, {}, "x", 0.25, 2)
