"""Quote of a training: hours, money, energy and CO2, each with an interval, or the reason why there is no figure."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Self

from vfm.cost.prices import PriceTable, describe_source


class Span(NamedTuple):
    """A figure with its interval."""

    value: float
    low: float
    high: float

    def scale(self, factor: float) -> Span:
        """Return the figure and its interval, times a factor."""
        return Span(*(number * factor for number in self))

    def format(self, unit: str) -> str:
        """Return the figure with its interval, to three digits."""
        return f"{self.value:.3g} {unit} ({self.low:.3g} to {self.high:.3g})"


@dataclass(frozen=True)
class Quote:
    """What a training is expected to take."""

    hours: Span
    """Time from start to end."""
    device_hours: Span
    usd: Span | None
    kwh: Span | None
    co2_kg: Span | None
    usd_per_hour: float | None
    """Price of an hour of one device."""
    price_source: str
    """Where the price of an hour comes from, or why there is none."""
    energy_source: str
    """Where the watts come from, or why there are none."""
    grid_source: str

    @classmethod
    def compute(
        cls,
        hours: Span,
        table: PriceTable,
        *,
        device: str,
        num_devices: int = 1,
        grid: str = "world",
        measured: tuple[float | None, str] = (None, ""),
    ) -> Self:
        """Compute a quote from its hours.

        Args:
            hours: Time from start to end.
            table: Prices, watts and carbon intensities.
            device: Row of the table.
            num_devices: Number of devices that are rented, or draw power, all that time.
            grid: Row of the table.
            measured: Watts of this machine and where they come from; used where the row states none.

        Raises:
            OptionError: The table has no such device or grid.
        """
        row, grid_row = table.find("devices", device), table.find("grids", grid)
        device_hours = hours.scale(num_devices)
        price, watts = row.get("usd_per_hour"), row.get("watts")
        name = describe_source(device, row)
        energy_source = f"the most that {name} draws"
        if watts is None:
            watts, energy_source = measured
        kwh = None if watts is None else device_hours.scale(watts / 1000)
        return cls(
            hours=hours,
            device_hours=device_hours,
            usd=None if price is None else device_hours.scale(price),
            kwh=kwh,
            co2_kg=None if kwh is None else kwh.scale(grid_row["g_co2_per_kwh"] / 1000),
            usd_per_hour=price,
            price_source=f"{price} $ an hour of {name}"
            if price is not None
            else f"no price: give usd_per_hour of the device '{device}', with source and date, in --prices FILE",
            energy_source=energy_source,
            grid_source=f"{grid_row['g_co2_per_kwh']} g/kWh, {describe_source(grid, grid_row)}",
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the quote as JSON; a span is an object with `value`, `low` and `high`."""
        return {
            name: Span(*value)._asdict() if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
        }

    def format_lines(self) -> list[str]:
        """Return a line for each figure, with its source."""
        lines = [f"Time: {self.hours.format('hours')}; device-hours: {self.device_hours.value:.3g}"]
        money = f"{self.usd.format('$')}, at {self.price_source}" if self.usd else self.price_source
        energy = (
            f"{self.kwh.format('kWh')}, by {self.energy_source}" if self.kwh else self.energy_source
        )
        lines += [f"Money: {money}", f"Energy: {energy}"]
        if self.co2_kg:
            lines.append(f"CO2: {self.co2_kg.format('kg')}, at {self.grid_source}")
        return lines
