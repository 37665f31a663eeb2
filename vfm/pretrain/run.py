"""State of a run of `vfm pretrain`, which is kept in its folder so that a run that was killed goes on."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from vfm_runtime.errors import OptionError

from vfm.pretrain.leaks import Leak
from vfm.pretrain.probe import Point
from vfm.pretrain.trend import Trend, fit_trend
from vfm.tasks.pretraining.results import list_alarms

RESULTS_FILE = "results.json"

_ALARMS = {
    "collapse": (
        "Collapse: all images get nearly the same vector ({point.uniformity:.3f}; 0 is one direction for all). Give a "
        "lower --lr, a larger --batch-size or another of --methods."
    ),
    "low rank": (
        "Collapse of most dimensions: the vectors use {point.rankme:.1f} of their {point.width} dimensions (RankMe). "
        "Give a lower --lr, a larger --batch-size or another of --methods."
    ),
    "falling kNN": (
        "The probe falls: kNN is {point.knn:.3f} after '{point.name}', and was {best:.3f}. What is learned now does "
        "not tell your classes apart; model.ckpt is of the best round."
    ),
}


@dataclass
class Run:
    """What has been done, with the seconds that it took."""

    folder: Path
    settings: dict[str, Any]
    """What must be the same for a run to go on."""
    spent: float = 0.0
    """Seconds of the budget that finished work took, and what came before it."""
    start: Point | None = None
    """The backbone before training."""
    pilot: list[Point] = field(default_factory=list)
    """A point for each method, by its name."""
    method: str | None = None
    """The method that the pilot chose."""
    round_seconds: float = 0.0
    rounds: list[Point] = field(default_factory=list)
    """A point after each round of the chosen method."""
    alarms: dict[str, str] = field(default_factory=dict)
    leaks: list[Leak] = field(default_factory=list)
    """Images that judge, and are trained on."""
    compared: dict[str, int] = field(default_factory=dict)
    """How many images of what were looked at for leaks, by its name; none before."""
    step_bytes: float | None = None
    """Memory that a step needs; None where it was not looked at."""
    judged_in: float = 0.0
    """Seconds of a look at the probe."""
    energy_source: str = ""
    ended: str = ""
    """Why training ended."""
    _mark: float = field(default_factory=time.perf_counter)

    @classmethod
    def open(cls, folder: Path, settings: dict[str, Any]) -> Self:
        """Return the run of a folder, or a new one where it has none.

        Args:
            folder: Folder of the run.
            settings: What was asked for, as JSON.

        Raises:
            OptionError: The folder has a run of other settings, or other results.
        """
        path = folder / RESULTS_FILE
        if not path.is_file():
            return cls(folder, settings)
        stored = json.loads(path.read_text(encoding="utf-8")).get("pretrain")
        if stored is None:
            raise OptionError(f"{path} is of another command. Give another folder (--out).")
        for name, value in settings.items():
            if stored["settings"].get(name) != value:
                raise OptionError(
                    f"{folder} holds a run with {name} {stored['settings'].get(name)}, and now it is {value}. Give the "
                    "same to go on with it, or another folder (--out)."
                )
        start = stored["start"]
        return cls(
            folder,
            settings,
            spent=stored["seconds"],
            start=Point(**start) if start else None,
            pilot=[Point(**point) for point in stored["pilot"]],
            method=stored["method"],
            round_seconds=stored["round_seconds"],
            rounds=[Point(**point) for point in stored["rounds"]],
            alarms=stored["alarms"],
            leaks=[Leak(**leak) for leak in stored["leaks"]],
            compared=stored.get("compared", {}),
            step_bytes=stored.get("step_bytes"),
            judged_in=stored.get("judged_in", 0.0),
            energy_source=stored["energy_source"],
        )

    @property
    def elapsed(self) -> float:
        """Seconds of the budget that are spent by now."""
        return self.spent + time.perf_counter() - self._mark

    @property
    def trained(self) -> list[Point]:
        """The points of the chosen method, from its pilot on."""
        return [point for point in self.pilot if point.name == self.method] + self.rounds

    @property
    def best(self) -> Point:
        """The trained point of the highest kNN, the first of equal ones."""
        return max(self.trained, key=lambda point: point.knn)

    def find_checkpoint(self, point: Point) -> Path:
        """Return the path of the checkpoint of a point."""
        return self.folder / "rounds" / f"{point.name.replace(' ', '_')}.ckpt"

    def fit_trend(self, num_judged: int) -> Trend | None:
        """Return the line through the rounds, of too few None; a pilot is shorter, and so not one of them."""
        points = self.rounds
        return fit_trend([p.hours for p in points], [p.knn for p in points], num_judged)

    def check(self, point: Point, earlier: list[Point], num_judged: int) -> list[str]:
        """Return the alarms that a point raises for the first time, in words.

        Args:
            point: What was just measured.
            earlier: Points before it, of the same method.
            num_judged: Images that kNN is of.
        """
        best = max((p.knn for p in earlier), default=0.0)
        metrics = {"uniformity": point.uniformity, "rankme": point.rankme, "knn": point.knn}
        raised = []
        for name in list_alarms(metrics, point.width, best, num_judged):
            if name not in self.alarms:
                self.alarms[name] = _ALARMS[name].format(point=point, best=best)
                raised.append(self.alarms[name])
        return raised

    def save(self, **more: Any) -> None:
        """Write the results, whole or not at all, and drop the checkpoints that nothing needs any more."""
        now = time.perf_counter()
        self.spent, self._mark = self.spent + now - self._mark, now
        values = {
            "settings": self.settings,
            "seconds": self.spent,
            "start": self.start.to_dict() if self.start else None,
            "pilot": [point.to_dict() for point in self.pilot],
            "method": self.method,
            "round_seconds": self.round_seconds,
            "rounds": [point.to_dict() for point in self.rounds],
            "alarms": self.alarms,
            "leaks": [leak._asdict() for leak in self.leaks],
            "compared": self.compared,
            "step_bytes": self.step_bytes,
            "judged_in": self.judged_in,
            "energy_source": self.energy_source,
            "ended": self.ended,
            **more,
        }
        path = self.folder / RESULTS_FILE
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps({"pretrain": values}, indent=2) + "\n", encoding="utf-8")
        os.replace(partial, path)  # noqa: PTH105 - atomic on every system
        if self.method is not None:
            needed = {self.find_checkpoint(point) for point in (self.best, self.trained[-1])}
            for file in (self.folder / "rounds").glob("*.ckpt"):
                if file not in needed:
                    file.unlink()
