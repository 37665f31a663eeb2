"""Image-text pairs: images with captions from a table (CSV, TSV, Parquet) or from webdataset shards."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Unpack

from vfm_runtime.errors import DataError, OptionError

from vfm.data.folder import SPLIT_FILE
from vfm.data.loader import ResumableLoader, leave_finished_epoch
from vfm.data.options import LoaderOptions
from vfm.data.records import Record, list_labels
from vfm.data.shards import ShardData
from vfm.data.splits import SPLITS, complete_splits
from vfm.data.table import TableData
from vfm.data.table_rows import SPLIT_COLUMN, join_path, read_names, read_stated_splits
from vfm.data.tables import Table, read_table, write_rows
from vfm.data.tar import expand_shards, list_shards
from vfm.data.token_batches import BatchDataset, TokenBatchSampler
from vfm.data.transforms import Augment
from vfm.spec import Spec


class PairData(TableData):
    """Images with texts by the rows of a CSV, TSV or Parquet table.

    An image may have several texts, in several columns, cells or rows; each epoch shows one of them. It may also have a
    label, or a label alone, of which a task can make a text.
    """

    can_balance = False

    def __init__(
        self,
        table: str | Path,
        *,
        root: str | Path | None = None,
        path_column: str = "path",
        text_column: str | list[str] = "text",
        text_separator: str | None = "\n",
        label_column: str | None = None,
        needs_text: bool = False,
        token_budget: int | None = None,
        split_column: str | None = None,
        val_fraction: float = 0.1,
        test_fraction: float = 0.0,
        augment: Augment = "auto",
        **options: Unpack[LoaderOptions],
    ) -> None:
        """Make the data module; the table is read by `setup`.

        Args:
            table: A .csv, .tsv or .parquet file with a row for each image, or for each of its texts.
            root: Folder that relative paths start from; by default that of the table.
            path_column: Column of the images' paths.
            text_column: Column of the texts, or several, such as one for each language.
            text_separator: Text between several texts of a cell, by default a line break, which joins lists of Parquet
                too; null where a cell is one text.
            label_column: Column of labels, for images that have one; a cell may be empty.
            needs_text: Whether images with a label and no text are left out.
            token_budget: Tokens of a training batch on each process: images with texts of like length come together, as
                many as fit, at most batch_size. A batch counts as its images times the tokens of its longest text. By
                default texts come in any order, batch_size at once.
            split_column: Column with train, val or test; by default `split`, where there is one.
            val_fraction: Fraction of the images for validation, where the table has no split for it.
            test_fraction: Fraction of the images for the test, where the table has no splits.
            augment: Augmentation of training images, as for `ImageData`.
            **options: Options of every data module.

        Raises:
            ValueError: An argument lies outside its range.
        """
        super().__init__(
            table,
            root=root,
            path_column=path_column,
            split_column=split_column,
            val_fraction=val_fraction,
            test_fraction=test_fraction,
            augment=augment,
            **options,
        )
        self.text_columns = [text_column] if isinstance(text_column, str) else list(text_column)
        if not self.text_columns or text_separator == "":
            raise OptionError(
                f"text_column is {text_column!r} and text_separator {text_separator!r}. Give a column or several, and "
                "what stands between texts, or null."
            )
        self.text_separator = text_separator
        self.pair_label_column = label_column
        self.needs_text = needs_text
        self.token_budget = token_budget
        self._table: Table | None = None
        self._names: list[str] = []

    def read(self) -> dict[str, list[Record]]:
        """Read the table, and find the images of each split with their texts."""
        self._table = table = read_table(self.table)
        for column in self.text_columns:
            table.require(column, "--data.text_column")
        labels = [""] * len(table.rows)
        if self.pair_label_column is not None:
            table.require(self.pair_label_column, "--data.label_column")
            labels = [row[self.pair_label_column].strip() for row in table.rows]
        self.labels = tuple(sorted({label for label in labels if label}))
        numbers = {label: number for number, label in enumerate(self.labels)}
        self._names = read_names(table, self.path_column, self.root)
        splits = read_stated_splits(table, self.split_column)
        first: dict[str, int] = {}
        records: dict[str, Record] = {}
        for index, (row, name) in enumerate(zip(table.rows, self._names, strict=True)):
            cells = [row[column] for column in self.text_columns]
            if self.text_separator is not None:
                cells = [part for cell in cells for part in cell.split(self.text_separator)]
            texts = [cell.strip() for cell in cells if cell.strip()]
            start = first.setdefault(name, index)
            for what, values in (("split", splits), ("label", labels)):
                if values[start] != values[index]:
                    raise DataError(
                        f"'{name}' has the {what} '{values[start]}' and the {what} '{values[index]}', in lines "
                        f"{table.lines[start]} and {table.lines[index]} of {table.path}. Keep one of them."
                    )
            if name in records:
                texts = [*records[name].texts, *texts]
            label = numbers.get(labels[index], -1)
            records[name] = Record(
                join_path(self.root, name), label, name, texts=tuple(dict.fromkeys(texts))
            )
        silent = [
            n for n, r in records.items() if not r.texts and (self.needs_text or not list_labels(r))
        ]
        _warn_of_silence(silent, len(records), f"{table.path}, --data.text_column")
        self._check_files([*records])
        stated: dict[str, list[Record]] = {}
        for name in records.keys() - set(silent):
            stated.setdefault(splits[first[name]], []).append(records[name])
        self.val_is_drawn = "val" not in stated
        drawn = complete_splits(
            # In an order of their own: sets have none.
            {split: sorted(some, key=lambda r: r.name) for split, some in stated.items()},
            lambda record: (record.name, list_labels(record)),
            self.labels,
            val_fraction=self.val_fraction,
            test_fraction=self.test_fraction,
            seed=self.seed,
        )
        return {split: sorted(some, key=lambda r: r.name) for split, some in drawn.items()}

    def train_dataloader(self) -> ResumableLoader:
        """Batches in a new order every epoch, augmented, resumable; with a budget of tokens of texts of like length."""
        if self.token_budget is None:
            return super().train_dataloader()
        if self.count_tokens is None:
            raise OptionError(
                f"token_budget is {self.token_budget}, and the task has no text tower whose tokens could be counted. "
                "Leave it out (--data.token_budget), or give --model ContrastiveTask."
            )
        leave_finished_epoch(self.trainer)
        rank, world = self._rank_and_world
        dataset = self.stored.get("train") or self._pack(self._build_training_dataset(), "train")
        num_tokens = self.count_tokens(self.records["train"])
        sampler = TokenBatchSampler(
            num_tokens,
            budget=self.token_budget,
            most=self.batch_size,
            seed=self.seed,
            rank=rank,
            num_replicas=world,
        )
        if num_tokens.min() == num_tokens.max() and rank == 0:
            warnings.warn(
                f"token_budget is {self.token_budget}, and every training text takes {num_tokens[0]} tokens, as all do "
                "in text towers that fill each up to their context, such as those of open_clip: it saves nothing. "
                f"Leave it out (--data.token_budget) and give --data.batch_size "
                f"{min(self.batch_size, self.token_budget // int(num_tokens[0]))}, which is the same.",
                stacklevel=2,
            )
        # Lightning asks for the first batches of a resumed training before it names the epoch.
        sampler.set_epoch(self._find_position().epoch)
        options = self._choose_loader_options("train") | {"batch_size": None}
        return ResumableLoader(
            BatchDataset(dataset), position=self._find_position, sampler=sampler, **options
        )

    def keep_split(self, folder: Path) -> Spec:
        """Write the table with a column of splits to a run's folder, as `splits.csv`."""
        self._read_once()
        assert self._table is not None
        column = self.split_column or SPLIT_COLUMN
        splits = {r.name: split for split in SPLITS for r in self.records.get(split, [])}
        rows = [
            row | {column: splits[name]}
            for row, name in zip(self._table.rows, self._names, strict=True)
            if name in splits
        ]
        path = folder.absolute() / SPLIT_FILE
        write_rows(path, list(dict.fromkeys([*self._table.columns, column])), rows)
        return self._pin_split(table=str(path), root=str(self.root.absolute()), split_column=column)


class PairShards(ShardData):
    """Images with texts in webdataset shards: `KEY.jpg` and its text `KEY.txt`, each line a text by itself.

    There is no budget of tokens: shards are read from front to back, so that texts of like length could be joined
    within a window alone, and epochs and processes would have unequally many batches.
    """

    def __init__(
        self,
        train: str,
        *,
        val: str | None = None,
        test: str | None = None,
        text_file: str = "txt",
        shuffle: int = 1000,
        augment: Augment = "standard",
        **options: Unpack[LoaderOptions],
    ) -> None:
        """Make the data module; the shards' headers and texts are read by `setup`, once, and kept as of `ShardData`.

        Args:
            train: Shards to train on: a path or URL with `*` or with numbers such as `{000..127}`, or several by `::`.
            val: Shards to validate on.
            test: Shards for the test.
            text_file: Ending of the files that hold texts.
            shuffle: Images of the window from which the next one is drawn, in each worker.
            augment: Augmentation of training images, as for `ImageData`.
            **options: Options of every data module.
        """
        super().__init__(
            train,
            val=val,
            test=test,
            label_file=text_file,
            shuffle=shuffle,
            augment=augment,
            **options,
        )
        self.text_file = text_file

    def read(self) -> dict[str, list[Record]]:
        """List the samples of all shards that have a text."""
        splits = {}
        for split, pattern in self.patterns.items():
            if pattern is None:
                continue
            records = [
                Record(
                    s.image,
                    -1,
                    s.key,
                    texts=tuple(filter(None, map(str.strip, (s.label or "").splitlines()))),
                )
                for s in list_shards(expand_shards(pattern), self.text_file)
            ]
            silent = [record.name for record in records if not record.texts]
            _warn_of_silence(silent, len(records), f"{pattern}, --data.text_file {self.text_file}")
            splits[split] = [record for record in records if record.texts]
        return splits


def _warn_of_silence(names: Sequence[str], total: int, where: str) -> None:
    """Say how many images have no text, and are left out; refuse data of which all are."""
    if not names:
        return
    what = f"{len(names)} of the {total} images have no text ({where}), such as '{names[0]}'"
    if len(names) == total:
        raise DataError(f"{what}. Name where the texts are.")
    warnings.warn(f"{what}; they are left out.", stacklevel=3)
