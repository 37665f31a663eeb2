"""Group columns: the value of a column of a table for each image, such as its site, by which images are compared."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vfm_runtime.errors import DataError

from vfm.data.records import Record
from vfm.data.table_rows import find_table, read_names
from vfm.data.tables import read_table

_LEAST_PER_GROUP = 5


def read_columns(
    records: Sequence[Record],
    names: Sequence[str],
    table: Path | None,
    option: str,
    *,
    source: str,
    path_column: str = "path",
) -> dict[str, list[str]]:
    """Return columns of a table with a row for each image: a value for each of them.

    Args:
        records: Images that the table has rows for.
        names: Columns of the table that are wanted.
        table: Table with a row for each image; None where there is none.
        option: Option that names the columns, for errors.
        source: What the images are of, for errors.
        path_column: Column of the table with the paths, where it has one of this name; else `path`.

    Raises:
        DataError: There is no table, no such column, or an image is not in it.
    """
    if not names:
        return {}
    if table is None or not find_table(table):
        raise DataError(
            f"{option} names the column '{names[0]}', but {source} is no table. Give a CSV file with a row for "
            "each image, with a column path and this one: --table FILE."
        )
    content = read_table(table)
    column = path_column if path_column in content.columns else "path"
    rows = dict(zip(read_names(content, column, table.parent), content.rows, strict=True))
    for name in names:
        content.require(name, option)
    # A table beside a folder of images names them from where it lies, the folder from its root.
    by_path = {str((table.parent / name).absolute()): row for name, row in rows.items()}
    cells = [
        rows.get(record.name)
        or by_path.get(
            str(Path(record.source).absolute()) if isinstance(record.source, str) else ""
        )
        for record in records
    ]
    missing = [r.name for r, row in zip(records, cells, strict=True) if row is None]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(cells)} images have no row in {table}, such as {missing[0]}. Add them, or name a "
            "table that has them (--table)."
        )
    return {name: [row[name].strip() for row in cells if row is not None] for name in names}


def check_groups(columns: dict[str, list[str]], option: str = "--groups") -> None:
    """Refuse columns by which nothing can be compared.

    Raises:
        DataError: All images have one value, or nearly every image has its own.
    """
    for name, values in columns.items():
        number = len(set(values))
        if number == 1:
            raise DataError(
                f"The column '{name}' is '{values[0]}' for all {len(values)} images, so there is nothing to compare. "
                f"Name another ({option}), or leave it out."
            )
        if number * _LEAST_PER_GROUP > len(values):
            remedy = f"Name another column ({option})."
            if option == "--groups":
                remedy = (
                    f"If images of one value belong together, give --cluster {name}; else name another column "
                    "(--groups)."
                )
            raise DataError(
                f"The column '{name}' has {number} values for {len(values)} images: it names images or people, not "
                f"groups. {remedy}"
            )
