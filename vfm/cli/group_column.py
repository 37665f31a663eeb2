"""Options of `vfm predict` that apply rules by group: `--group-column` and `--table`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from lightning.pytorch import Callback, LightningModule, Trainer
from vfm_runtime.errors import OptionError

from vfm.cli.errors import UsageError
from vfm.cli.words import pop_option
from vfm.data.group_columns import read_columns
from vfm.tasks.base import BaseTask
from vfm.tasks.checkpoint import Checkpoint
from vfm.tasks.label_rows import GroupedRows


class GroupColumn(NamedTuple):
    """Column of a table with the group of each image, as the command line names it."""

    column: str
    table: Path | None

    @classmethod
    def pop(cls, words: list[str], command: str) -> tuple[list[str], GroupColumn | None]:
        """Split `--group-column` and `--table` from the words of a call.

        Raises:
            UsageError: They do not go with the command or with each other.
        """
        words, columns = pop_option(words, "--group_column")
        words, tables = pop_option(words, "--table")
        if command != "predict" and (columns or tables):
            option = "--group-column" if columns else "--table"
            raise UsageError(f"{option} is for vfm predict, not for {command}. Leave it out.")
        if tables and not columns:
            raise UsageError("--table holds the groups of images. Add --group-column NAME.")
        if not columns:
            return words, None
        return words, cls(columns[-1], Path(tables[-1]) if tables else None)


class GroupRulesReader(Callback):
    """Hands a task the rules by group that lie beside its checkpoint, or says that they are not applied."""

    def __init__(self, checkpoint: Path, asked: GroupColumn | None) -> None:
        """Read nothing yet.

        Args:
            checkpoint: Path of the checkpoint that predicts, beside which the rules lie.
            asked: Column of the groups; None where none was named.
        """
        self._path, self._asked = checkpoint, asked

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the group of each image.

        Raises:
            OptionError: There are no rules by group, or there is no such group, or the task applies none to images.
            DataError: There is no table, no such column, or an image is not in it.
        """
        assert isinstance(pl_module, BaseTask)
        calibration = Checkpoint(pl_module, {}, path=self._path).calibration
        rules = calibration.groups if calibration is not None else pl_module.define_group_rules()
        if self._asked is None:
            if rules is not None and trainer.is_global_zero:
                column = rules.rules.column
                print(
                    f"Rules by {column} lie beside {self._path}, and are not applied: predictions.csv has plain "
                    f"scores. To apply them: --group-column {column}."
                )
            return
        column, table = self._asked
        if calibration is None and rules is not None:
            raise OptionError(
                f"--group-column is '{column}', but predictions.csv of {self._path} has one row an image, by the "
                "general rule. Leave it out, or export the checkpoint and ask its bundle: vfm-runtime predict BUNDLE "
                f"VIDEO --group-column {rules.rules.column} --table CSV."
            )
        if calibration is None or rules is None:
            raise OptionError(
                f"--group-column is '{column}', but {self._path} has no rules by group. Leave it out, or fit them: vfm "
                f"calibrate {self._path} DATA --group-column {column}."
            )
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        records = data.records["predict"]
        columns = read_columns(
            records,
            [column],
            table or getattr(data, "table", None),
            "--group-column",
            source=f"the data ({type(data).__name__})",
            path_column=getattr(data, "path_column", "path"),
        )
        task_type = pl_module.bind_type()
        task_type.read_rules(calibration.rules.to_dict())
        task_type.set_group_rules(rules.rules)
        # An empty cell is no group, as for a bundle.
        groups = {r.name: value or None for r, value in zip(records, columns[column], strict=True)}
        pl_module.grouped_rows = GroupedRows(task_type, groups)
        *names, error = pl_module.prediction_columns
        pl_module.prediction_columns = (*names, *GroupedRows.columns, error)
