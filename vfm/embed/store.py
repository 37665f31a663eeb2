"""Embedding store: a LanceDB table of vectors with the path, checksum and columns of each image, of one model."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from vfm_runtime.media.bit_depth import ValueRange
from vfm_runtime.tasks.embedding import EmbeddingSpec

from vfm.embed.location import (
    LOCK_FILE,
    StoreError,
    connect_database,
    explain_failure,
    find_folder,
)

FORMAT = 1
"""Version of what a store's metadata says; newer ones are refused."""
TABLE = "embeddings"
NEXT_TABLE = "embeddings_next"
"""Vectors of the model that a store is being migrated to."""
MAP_TABLE = "embeddings_map"
"""Map from these vectors to those of the store."""
RESERVED = ("path", "sha256", "vector", "vfm_source", "vfm_stamp")
"""Columns of every store; those of a table are stored beside them."""

_KEY = b"vfm"
_INDEX = "vfm"
_INDEX_KEY = "vfm:index"
"""Metadata of the vector's column: what was measured of the index."""
_READ = 16_384
"""Rows that are read at once."""
_COMPACT_EVERY = 64
"""Writes after which a long run compacts, so that no thousands of small files come to be."""


@dataclass(frozen=True, kw_only=True)
class StoreModel:
    """The model whose vectors a store holds; there is one for all of its rows."""

    fingerprint: str
    """Checksum of model and preprocessing."""
    model: str
    """Bundle, checkpoint or name of a backbone, as the user gave it."""
    base: str | None
    """File of the backbone's weights, where one was named."""
    source: str
    """Part of the features that the vectors are made of."""
    normalize: bool
    """Whether they have norm 1."""
    width: int
    """Numbers in a vector."""
    value_range: ValueRange | None = None
    """Black and white of images of more than 8 bits, as the model was trained on them."""
    format: int = FORMAT
    """Version of this description."""

    def is_made_by(self, model: EmbeddingSpec | StoreModel) -> bool:
        """Whether the vectors of a model, so described, can be compared with these."""
        wanted = (model.fingerprint, model.source, model.normalize)
        return wanted == (self.fingerprint, self.source, self.normalize)


class EmbeddingStore:
    """Rows of `path`, `sha256`, `vector`, and the columns that the images came with.

    Attributes:
        uri: Folder, or address of an object store.
        model: The model whose vectors it holds.
    """

    def __init__(self, uri: str, table: Any, model: StoreModel) -> None:
        """Wrap an open table; see `open` and `create`."""
        self.uri = uri
        self.model = model
        self._table = table
        self._num_writes = 0

    @classmethod
    def open(cls, uri: str) -> Self:
        """Open a store that exists.

        Raises:
            StoreError: There is none, it is damaged, or a newer version of vfm wrote it.
        """
        store = cls.find(uri)
        if store is None:
            raise StoreError(
                f"There is no store of embeddings at {uri}. Make one: vfm embed IMAGES --model NAME --to {uri}"
            )
        return store

    @classmethod
    def find(cls, uri: str, table_name: str = TABLE) -> Self | None:
        """Open a store; None where there is none yet.

        Args:
            uri: Folder, or address of an object store.
            table_name: `NEXT_TABLE` for the vectors of the model that it is being migrated to.

        Raises:
            StoreError: It is damaged, or a newer version of vfm wrote it.
        """
        folder = find_folder(uri)
        if folder is not None and not any(folder.glob(f"{table_name}.lance/_versions/*")):
            others = [] if not folder.is_dir() else [path.name for path in folder.iterdir()]
            is_store = table_name != TABLE
            if folder.is_file() or (set(others) - {LOCK_FILE, f"{TABLE}.lance"} and not is_store):
                raise StoreError(
                    f"{uri} exists and is no store of embeddings. Name another folder, or a new one."
                )
            return None
        try:
            database = connect_database(uri)
            if table_name not in database.list_tables().tables:
                return None
            table = database.open_table(table_name)
        except (OSError, RuntimeError, ValueError) as error:
            raise StoreError(f"{uri} cannot be opened as a store: {error}") from error
        return cls(uri, table, _read_model(uri, table.schema.metadata or {}))

    @classmethod
    def create(cls, uri: str, model: StoreModel, rows: Any, *, half: bool = False) -> Self:
        """Make a store for the vectors of a model.

        Args:
            uri: Folder, or address of an object store.
            model: The model whose vectors it will hold, for good.
            rows: Images with the columns that the store shall have.
            half: Whether vectors are kept in 16 bits.
        """
        import pyarrow as pa

        dtype = pa.float16() if half else pa.float32()
        columns = [("vector", pa.list_(dtype, model.width))]
        columns += [(name, pa.string()) for name in ("path", "sha256", "vfm_source", "vfm_stamp")]
        schema = pa.schema([*columns, *_infer_fields(rows).items()])
        schema = schema.with_metadata({_KEY: json.dumps(asdict(model)).encode()})
        with explain_failure(uri):
            table = connect_database(uri).create_table(TABLE, schema=schema, exist_ok=True)
        return cls(uri, table, model)

    def create_next(self, model: StoreModel) -> Self:
        """Make the table of the vectors of another model beside this one, of the same columns and bits."""
        import pyarrow as pa

        schema = self._table.schema
        index = schema.get_field_index("vector")
        dtype = pa.list_(schema.field(index).type.value_type, model.width)
        schema = schema.set(index, pa.field("vector", dtype))
        schema = schema.with_metadata({_KEY: json.dumps(asdict(model)).encode()})
        with explain_failure(self.uri):
            table = connect_database(self.uri).create_table(NEXT_TABLE, schema=schema)
        return type(self)(self.uri, table, model)

    def replace_by(self, other: Self) -> Self:
        """Take the rows and the model of `create_next` in place of these, all at once, and delete its table.

        Raises:
            StoreError: The disk is full, or another process has changed the store; it is then what it was.
        """
        import pyarrow as pa

        schema = other._table.schema
        rows = pa.RecordBatchReader.from_batches(
            schema, (batch.cast(schema) for batch in other._query(schema.names, None))
        )
        with explain_failure(self.uri):
            # A new version of the table, which others see from the moment when its manifest is there.
            table = connect_database(self.uri).create_table(
                TABLE, rows, schema=schema, mode="overwrite"
            )
            swapped = type(self)(self.uri, table, other.model)
            swapped.compact()
            swapped.drop_next()
        return swapped

    def drop_next(self) -> None:
        """Delete the vectors of the model that the store was being migrated to, and the map of its queries."""
        with explain_failure(self.uri):
            for name in (NEXT_TABLE, MAP_TABLE):
                connect_database(self.uri).drop_table(name, ignore_missing=True)

    @property
    def num_rows(self) -> int:
        """Number of images."""
        return int(self._table.count_rows())

    @property
    def num_versions(self) -> int:
        """Versions that the store could still be read at."""
        return len(self._table.list_versions())

    @property
    def column_names(self) -> list[str]:
        """Names of all columns."""
        return list(self._table.schema.names)

    @property
    def columns(self) -> dict[str, str]:
        """Type of each column that can be filtered by: text, number or boolean."""
        import pyarrow as pa

        kinds = {}
        for field in self._table.schema:
            if pa.types.is_string(field.type) or pa.types.is_large_string(field.type):
                kinds[field.name] = "text"
            elif pa.types.is_integer(field.type) or pa.types.is_floating(field.type):
                kinds[field.name] = "number"
            elif pa.types.is_boolean(field.type):
                kinds[field.name] = "boolean"
        return kinds

    def require_model(self, spec: EmbeddingSpec, model: str) -> None:
        """Refuse a model whose vectors cannot be compared with those of the store.

        Raises:
            StoreError: Its fingerprint is another, or its vectors are of another part of the features.
        """
        written = self.model
        if not written.is_made_by(spec):
            raise StoreError(
                f"{self.uri} holds other vectors: of {written.model} ({_describe_vectors(written)}), not of {model} "
                f"({_describe_vectors(spec)}). Vectors of two models cannot be compared. Take that model, or name a "
                "new store."
            )

    def read_stamps(self) -> dict[str, tuple[str, str]]:
        """Return source and stamp of each image by its path."""
        names = ["path", "vfm_source", "vfm_stamp"]
        stamps: dict[str, tuple[str, str]] = {}
        for batch in self._query(names, None):
            path, source, stamp = (batch.column(name).to_pylist() for name in names)
            sources = map(sys.intern, source)  # of a million rows a few
            stamps |= zip(path, zip(sources, stamp, strict=True), strict=True)
        return stamps

    def add_columns(self, rows: Any) -> None:
        """Add the columns of new images that the store does not have yet, empty for the others.

        Raises:
            StoreError: A column has another type in the store.
        """
        import pyarrow as pa

        schema = self._table.schema
        for name, kind in _infer_fields(rows).items():
            if name not in schema.names:
                self._table.add_columns(pa.field(name, kind))
                continue
            present = [row.columns[name] for row in rows if row.columns.get(name) is not None]
            try:
                if self.columns.get(name) != "text":
                    pa.array(present, schema.field(name).type)
            except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
                raise StoreError(
                    f"The column '{name}' is {schema.field(name).type} in {self.uri}, and {kind} in the images now. "
                    "Make them alike, or name a new store."
                ) from error

    def write(self, vectors: NDArray[np.float32], rows: Mapping[str, Sequence[Any]]) -> None:
        """Insert rows, or replace those of the same path, all at once or not at all.

        Args:
            vectors: Embeddings of the N images, float32 [N, D].
            rows: N values by column, `path` among them.

        Raises:
            StoreError: The disk is full, or another process has changed the store.
        """
        import pyarrow as pa

        schema = self._table.schema
        arrays = []
        for field in schema:
            if field.name == "vector":
                # Not `to_pandas_dtype`, for which older pyarrow imports pandas.
                is_half = pa.types.is_float16(field.type.value_type)
                flat = pa.array(vectors.astype(np.float16 if is_half else np.float32).ravel())
                arrays.append(pa.FixedSizeListArray.from_arrays(flat, self.model.width))
            else:
                values = rows.get(field.name) or [None] * len(vectors)
                text = field.type == pa.string()
                # No number is how a column of numbers says that a cell is empty.
                cells = [None if v is None or v != v else str(v) if text else v for v in values]
                arrays.append(pa.array(cells, field.type))
        merge = self._table.merge_insert("path")
        merge = merge.when_matched_update_all().when_not_matched_insert_all()
        facts = self.read_index_facts()
        with explain_failure(self.uri):
            if facts is not None:  # first, so that a stopped write cannot leave it out
                facts["num_written"] += len(vectors)
                self.write_index_facts(facts)
            merge.execute(pa.table(arrays, schema=schema))
        self._num_writes += 1
        if self._num_writes % _COMPACT_EVERY == 0:
            self.compact()

    def delete(self, paths: Sequence[str]) -> None:
        """Delete the rows of some paths."""
        with explain_failure(self.uri):
            for start in range(0, len(paths), 1000):
                names = ", ".join(quote_text(path) for path in paths[start : start + 1000])
                self._table.delete(f"path IN ({names})")

    def compact(self) -> None:
        """Join small files, and remove old versions, which would take the room of the store again and again."""
        with warnings.catch_warnings(), explain_failure(self.uri):
            warnings.simplefilter("ignore")  # it says that who reads an old version will fail
            self._table.optimize(cleanup_older_than=timedelta(0))

    def read(
        self, columns: Sequence[str], where: str | None = None
    ) -> Iterator[tuple[NDArray[np.float32], dict[str, list[Any]]]]:
        """Yield vectors, float32 [n, D], and the values of some columns, some thousand rows at a time.

        Args:
            columns: Names of columns besides the vector.
            where: Expression of the store, which `vfm.search.filters` makes.
        """
        for vectors, rows in self.scan(columns, where):
            yield vectors, {name: rows.column(name).to_pylist() for name in columns}

    def scan(
        self, columns: Sequence[str], where: str | None = None
    ) -> Iterator[tuple[NDArray[np.float32], Any]]:
        """Yield vectors, float32 [n, D], and some columns as a batch of Arrow, some thousand rows at a time.

        Args:
            columns: Names of columns besides the vector.
            where: Expression of the store, which `vfm.search.filters` makes.
        """
        for batch in self._query(["vector", *columns], where):
            flat = batch.column("vector").flatten().to_numpy(zero_copy_only=False)
            vectors = np.asarray(flat, np.float32).reshape(-1, self.model.width)
            yield vectors, batch.select(list(columns))

    def sample(self, count: int, seed: int = 0) -> tuple[NDArray[np.float32], list[str]]:
        """Return vectors, float32 [n, D], and paths of rows at random, at most as many as asked for."""
        num_rows = self.num_rows
        offsets = np.random.default_rng(seed).permutation(num_rows)[:count]
        query = self._table.take_offsets(sorted(offsets.tolist())).select(["vector", "path"])
        rows = query.to_arrow().combine_chunks()
        flat = rows.column("vector").combine_chunks().flatten().to_numpy(zero_copy_only=False)
        vectors = np.asarray(flat, np.float32).reshape(-1, self.model.width)
        return vectors, rows.column("path").to_pylist()

    def create_index(self, partition_size: int) -> None:
        """Build an index of partitions with vectors of 8 bits a number, in place of the one before, and compact.

        Args:
            partition_size: Rows in a cell of k-means that the vectors are sorted into, in the mean.
        """
        from lancedb.index import IvfSq

        # Of an index that was told a number of partitions, `optimize` leaves a handful: four of 316.
        config = IvfSq(
            distance_type="cosine",
            target_partition_size=partition_size,
            sample_rate=64,
            max_iterations=20,
        )
        with explain_failure(self.uri):
            self.write_index_facts(None)
            self._table.create_index("vector", config=config, name=_INDEX, replace=True)
        self.compact()

    def search_index(
        self,
        query: NDArray[np.float32],
        columns: Sequence[str],
        *,
        count: int,
        num_probes: int,
        refine: int,
    ) -> list[dict[str, Any]]:
        """Return the rows that the index finds for a query [D], with `_distance`, which is 1 less the cosine.

        Args:
            query: Vector to look for.
            columns: Names of columns besides the distance.
            count: Number of rows to return at most.
            num_probes: Partitions to look into.
            refine: Multiple of the count whose exact distances are computed.
        """
        search = self._table.search(query, vector_column_name="vector").distance_type("cosine")
        search = search.nprobes(num_probes).refine_factor(refine).limit(count)
        rows: list[dict[str, Any]] = search.select([*columns, "_distance"]).to_list()
        return rows

    def read_index_facts(self) -> dict[str, Any] | None:
        """Return what was measured of the index, and `num_written`, the rows written since; None without one."""
        text = (self._table.schema.field("vector").metadata or {}).get(_INDEX_KEY.encode())
        facts: dict[str, Any] | None = None if text is None else json.loads(text)
        return facts

    def write_index_facts(self, facts: Mapping[str, Any] | None) -> None:
        """Keep what was measured of the index; without this no search uses it."""
        text = None if facts is None else json.dumps(facts)
        self._table.update_field_metadata({"path": "vector", "metadata": {_INDEX_KEY: text}})

    def export(self, file: Path) -> None:
        """Write all rows to a .parquet or .npz file.

        Raises:
            StoreError: The file has another suffix.
        """
        check_export(file)
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix == ".parquet":
            from pyarrow import parquet

            names = self._table.schema.names
            with parquet.ParquetWriter(file, self._table.schema) as writer:
                for batch in self._query(names, None):
                    writer.write_batch(batch.cast(self._table.schema))
            return
        names = [name for name in self._table.schema.names if name != "vector"]
        parts = list(self.read(names))
        columns = {name: np.array([v for _, rows in parts for v in rows[name]]) for name in names}
        columns = {n: v.astype(str) if v.dtype == object else v for n, v in columns.items()}
        empty = np.zeros((0, self.model.width), np.float32)
        vectors = np.concatenate([empty, *(vectors for vectors, _ in parts)])
        np.savez(file, vector=vectors, model=json.dumps(asdict(self.model)), **columns)  # type: ignore[arg-type]

    def _query(self, columns: Sequence[str], where: str | None) -> Iterator[Any]:
        query = self._table.search().select(list(columns))
        if where is not None:
            query = query.where(where)
        yield from query.to_batches(_READ)


def check_export(file: Path) -> None:
    """Refuse a file for `EmbeddingStore.export` that is neither .parquet nor .npz, with a StoreError."""
    if file.suffix not in (".parquet", ".npz"):
        raise StoreError(f"{file} is no format for vectors. Choices: .parquet, .npz.")


def quote_text(text: str) -> str:
    """Return a text as a literal of the store's expressions."""
    return "'" + text.replace("'", "''") + "'"


def _read_model(uri: str, metadata: Mapping[bytes, bytes]) -> StoreModel:
    names = [field.name for field in fields(StoreModel)]
    try:
        values = json.loads(metadata[_KEY])
        version = values["format"]
        if version <= FORMAT:
            if limits := values.get("value_range"):
                values["value_range"] = float(limits[0]), float(limits[1])
            return StoreModel(**{name: values[name] for name in names if name in values})
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(
            f"{uri} is a table of LanceDB that vfm did not write. Name another store."
        ) from error
    raise StoreError(
        f"{uri} was written by a newer vfm: its format is {version}, this one reads up to {FORMAT}. Upgrade vfm."
    )


def _infer_fields(rows: Sequence[Any]) -> dict[str, Any]:
    """Return the type of each column of images: whole numbers, numbers, or text."""
    import pyarrow as pa

    kinds = {int: pa.int64(), float: pa.float64()}
    fields_by_name = dict.fromkeys((name for row in rows for name in row.columns), pa.string())
    for name in fields_by_name:
        types = {type(row.columns.get(name)) for row in rows} - {type(None)}
        if len(types) == 1:
            fields_by_name[name] = kinds.get(types.pop(), pa.string())
    return fields_by_name


def _describe_vectors(made_of: StoreModel | EmbeddingSpec) -> str:
    norm = ", L2" if made_of.normalize else ""
    return f"{made_of.source}{norm}, fingerprint {made_of.fingerprint[:12]}"
