"""Parquet files, or folders of them, as on Hugging Face's hub. Needs pyarrow.

A sample is named after its shard and row, so that names sort in the order of the rows.
"""

from __future__ import annotations

import contextlib
import json
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from diffuse_cli.data.sources import base
from diffuse_cli.media import file_errors as reasons
from diffuse_cli.media import media_by_extension
from diffuse_cli.system import DataError, extra_package, raise_if_full, shorten, show

EXTENSION = ".parquet"

SAMPLE, LABEL = ("image", "img", "audio", "array"), ("label", "labels", "class")
"""Names of the column of samples and the column of classes. The first that exists is used."""

MOST_OPEN = 64
"""Number of shards that stay open."""

STARTS = {
    b"\x89PNG": ".png", b"\xff\xd8": ".jpg", b"GIF8": ".gif", b"BM": ".bmp", b"II*": ".tif",
    b"MM\0*": ".tif", b"\x93NUMPY": ".npy", b"PK": ".npz", b"fLaC": ".flac",
}  # fmt: skip
"""Extensions of samples without a name, by their first bytes."""

BLOCK_BYTES, MOST_ROWS = 2**24, 1024
"""Approximate bytes of a block of decoded rows, and the largest number of its rows."""


@dataclass(frozen=True)
class ColumnRoles:
    """Roles of the columns of a table.

    Attributes:
        sample: the column of files.
        nested: the fields of its structure, one of them `bytes`. Empty for a column of bytes.
        label: the column of classes, if there is one.
        plain: the columns of numbers, texts and vectors, including the column of classes.
        names: the class names that whole numbers stand for, by column.
    """

    sample: str
    nested: Sequence[str]
    label: str | None
    plain: tuple[str, ...]
    names: Mapping[str, Sequence[str]]


class Parquet(base.Source):
    """Rows of parquet files with a column of samples, as in Hugging Face's datasets."""

    @staticmethod
    def recognizes(path: Path) -> bool:
        return base.shards_at(path, EXTENSION) is not None

    @classmethod
    def open(cls, path: Path) -> Parquet:
        extra_package("pyarrow.parquet", "parquet", f"pyarrow is needed to read {show(path)}")
        return cls(path, base.shards_at(path, EXTENSION) or [path])

    def __init__(self, path: Path, shards: Sequence[Path]) -> None:
        super().__init__(path)
        self._names = {path.absolute(): name for path, name in base.short_names(shards).items()}
        self._open: OrderedDict[str, ParquetShard] = OrderedDict()
        self._blocks = base.Blocks()
        self._lock = threading.Lock()

    def entries(self) -> Iterator[base.Entry]:
        tables = []
        for path, name in self._names.items():
            try:
                with self._lock:
                    shard = self._open_shard(str(path))
                    entries = [*self._list_entries(shard, str(path))]
                if shard.roles.plain:
                    tables.append(name)
            except DataError:
                if len(self._names) == 1:
                    raise
                entries = [base.Entry(f"{name}/", 0, str(path), reasons.NO_SAMPLES, label="")]
            except Exception as error:
                raise_if_full(error)
                entries = [base.Entry(f"{name}/", 0, str(path), _reason(error, path), label="")]
            yield from entries
        self.tables = tuple(tables)

    def read(self, entry: base.Entry) -> bytes:
        row, _, path = entry.key.partition(":")
        with self._lock:
            try:
                data = self._open_shard(path).sample(int(row))
            except reasons.Unusable:
                raise
            except Exception as error:
                raise_if_full(error)
                raise reasons.Unusable(_reason(error, Path(path))) from None
        if data is not None and len(data) > reasons.LARGEST_FILE:
            raise reasons.Unusable(reasons.TOO_LARGE)
        return data or b""

    def read_rows(self, selection: Collection[str] | None) -> Iterator[base.MetadataRow]:
        for path, name in self._names.items():
            try:
                with self._lock:
                    shard = self._open_shard(str(path))
                    plain = shard.roles.plain
                    columns = [c for c in plain if selection is None or c in selection]
                    values = {c: shard.values(c) for c in columns}
                    entries = [*self._list_entries(shard, str(path))]
            except DataError:  # a shard without samples, which `entries` reports
                continue
            except Exception as error:
                raise_if_full(error)
                if str(path) not in self._open:  # a damaged shard, which `entries` reports
                    continue
                text = f"cannot read the columns of {name}: {shorten(error)}"
                raise DataError(text, code="metadata_unreadable", path=path) from error
            for row, entry in enumerate(entries):
                cells = {c: values[c][row] if c in values else None for c in plain}
                yield base.MetadataRow(show(name), row + 1, entry.name, cells)

    def close(self) -> None:
        with self._lock:
            while self._open:
                self._open.popitem()[1].close()

    def _open_shard(self, path: str) -> ParquetShard:
        """Return a shard, opened if it was not open."""
        if path not in self._open:
            self._open[path] = ParquetShard(path, self._blocks)
            if len(self._open) > MOST_OPEN:
                self._open.popitem(last=False)[1].close()
        self._open.move_to_end(path)
        return self._open[path]

    def _list_entries(self, shard: ParquetShard, path: str) -> Iterator[base.Entry]:
        """Yield the entries of a shard."""
        readers, usual, roles = media_by_extension(), "", shard.roles
        names: Sequence[Any] = [None] * shard.count  # of any type: a path may be a number
        if "path" in roles.nested:
            column = shard.columns([f"{roles.sample}.path"]).column(roles.sample)
            names = [value and value["path"] for value in column.to_pylist()]
        labels = shard.values(roles.label) if roles.label else [None] * shard.count
        start = Path(self._names[Path(path)]).stem + "/" if len(self._names) > 1 else ""
        columns = zip(names, labels, shard.sizes(), strict=True)
        for row, (name, label, size) in enumerate(columns):
            extension = base.extension_of(name.rpartition("/")[2]) if isinstance(name, str) else ""
            if extension not in readers:
                extension = usual = usual or shard.extension()
            class_name = "" if label is None else str(label)
            yield base.Entry(
                f"{start}{row:08d}{extension}", size, f"{row}:{path}", label=class_name
            )


class ParquetShard:
    """Parquet file.

    A row can only be read by decoding its group from the start. The decoder stops after the
    requested block and resumes there if it can. So a group is decoded once if it is read in order,
    or in any order if it fits in the cache.
    """

    def __init__(self, path: str, blocks: base.Blocks) -> None:
        from pyarrow import parquet

        # Without pre_buffer, a column is read as it is decoded: a group may be larger than memory.
        self._file = parquet.ParquetFile(path, pre_buffer=False, buffer_size=2**20)
        self._path, self._blocks = path, blocks
        metadata = self._file.metadata
        self.count, self.roles = metadata.num_rows, find_column_roles(self._file.schema_arrow, path)
        self._groups = [metadata.row_group(k) for k in range(metadata.num_row_groups)]
        self._ends = [*accumulate(group.num_rows for group in self._groups)]
        self._decoder: Iterator[tuple[int, Any]] = iter(())
        self._waits = (-1, 0)
        self._damaged: set[int] = set()

    def columns(self, names: Sequence[str]) -> Any:
        """Return a table of some columns. `a.b` is a field of `a`."""
        return self._file.read(columns=[*names], use_threads=False)

    def sizes(self) -> Iterator[int]:
        """Yield the approximate bytes of the sample of each row."""
        for k, group in enumerate(self._groups):
            for _ in range(group.num_rows):
                yield self._size(k)

    def sample(self, row: int) -> bytes | None:
        """Return the bytes of a sample."""
        group = bisect_right(self._ends, row)
        if group in self._damaged:
            raise reasons.Unusable(reasons.CORRUPT)
        block_rows = max(1, min(MOST_ROWS, BLOCK_BYTES // max(1, self._size(group))))
        number, place = divmod(row - (self._ends[group] - self._groups[group].num_rows), block_rows)
        block = self._blocks.get((self._path, group, number))
        if block is None:
            try:
                block = self._decode_block(group, number, block_rows)
            except Exception as error:
                raise_if_full(error)
                self._damaged.add(group)
                self._waits = (-1, 0)
                raise
        contents: bytes | None = block[place].as_py()
        return contents

    def values(self, column: str) -> list[Any]:
        """Return the values of a plain column, with class names instead of their numbers."""
        from pyarrow import types

        names, cells = self.roles.names.get(column), self.columns([column]).column(column)
        if types.is_nested(cells.type):
            return [v.values.to_numpy(zero_copy_only=False) if v.is_valid else None for v in cells]
        values = cells.to_pylist()
        if names is None:
            return [_to_plain(value) for value in values]
        return [names[v] if v is not None and 0 <= v < len(names) else None for v in values]

    def extension(self) -> str:
        """Return the extension of the first sample, by its bytes."""
        data = (self.sample(0) or b"") if self.count else b""
        if data[:4] == b"RIFF":
            return ".wav" if data[8:12] == b"WAVE" else ".webp"
        return next((e for start, e in STARTS.items() if data.startswith(start)), ".png")

    def close(self) -> None:
        self._decoder = iter(())
        self._file.close()

    def _size(self, group: int) -> int:
        """Return the average bytes of a sample in a group."""
        metadata = self._groups[group]
        names = {self.roles.sample, f"{self.roles.sample}.bytes"}
        chunks = map(metadata.column, range(metadata.num_columns))
        total = sum(c.total_uncompressed_size for c in chunks if c.path_in_schema in names)
        return max(0, int(total // max(1, metadata.num_rows)))

    def _decode_block(self, group: int, number: int, block_rows: int) -> Any:
        """Decode a block of a group, and keep each block that is decoded on the way."""
        if self._waits[0] != group or self._waits[1] > number:
            column_name = f"{self.roles.sample}.bytes" if self.roles.nested else self.roles.sample
            batches = self._file.iter_batches(
                batch_size=block_rows, row_groups=[group], columns=[column_name], use_threads=False
            )
            self._decoder = enumerate(batches)
        for current_number, batch in self._decoder:
            self._waits = group, current_number + 1
            column = batch.column(0)
            block = column.field("bytes") if self.roles.nested else column
            self._blocks.add((self._path, group, current_number), block)
            if current_number == number:
                return block
        raise reasons.Unusable(reasons.CORRUPT)


def _reason(error: Exception, path: Path) -> str:
    """Return the reason why a shard, or a row, cannot be read."""
    with contextlib.suppress(OSError):
        if isinstance(error, FileNotFoundError) or not path.exists():
            return reasons.VANISHED
        if not path.stat().st_size:
            return reasons.EMPTY
    return reasons.UNREADABLE if isinstance(error, PermissionError) else reasons.CORRUPT


def _to_plain(value: Any) -> Any:
    """Return a value that JSON can hold."""
    if value is None or isinstance(value, str | bool | int | float):
        return value
    with contextlib.suppress(TypeError, ValueError):
        return float(value)
    return str(value)


def find_column_roles(schema: Any, path: str) -> ColumnRoles:
    """Return the roles of a schema's columns, by its features for Hugging Face's library if any.

    Raises:
        DataError: no column holds files.
    """
    from pyarrow import types

    features = _features(schema.metadata or {})
    kinds = {field.name: field.type for field in schema}
    fields = {n: [f.name for f in kind] for n, kind in kinds.items() if types.is_struct(kind)}
    binary = [n for n, k in kinds.items() if types.is_binary(k) or types.is_large_binary(k)]
    marked = [n for n in kinds if features.get(n, {}).get("_type") in ("Image", "Audio")]
    able = [n for n, names in fields.items() if "bytes" in names]
    able = [n for n in marked if n in able] or able or binary
    if not able:
        listed = ", ".join(f"{shorten(n, 40)} ({shorten(kind, 40)})" for n, kind in kinds.items())
        text = f"no column of {show(path)} holds files of images: {listed[:300]}"
        hint = "Store the files as bytes, or as a structure of bytes and path"
        raise DataError(text, hint, code="data_unsupported", path=path)
    sample = next((n for n in SAMPLE if n in able), able[0])
    names = {
        n: [*map(str, feature["names"])]
        for n, feature in features.items()
        if feature.get("_type") == "ClassLabel" and isinstance(feature.get("names"), list)
    }
    bare = (types.is_nested, types.is_null, types.is_fixed_size_binary)
    lists = (types.is_list, types.is_large_list, types.is_fixed_size_list)
    entries = {n: k.value_type for n, k in kinds.items() if any(t(k) for t in lists)}
    vectors = [n for n, k in entries.items() if types.is_integer(k) or types.is_floating(k)]
    flat = [n for n, k in kinds.items() if n not in binary and not any(t(k) for t in bare)]
    plain = tuple(n for n in kinds if n in flat or n in vectors)
    classes = [n for n in plain if n in names] + [n for n in plain if n in LABEL]
    values = {n: k.value_type if types.is_dictionary(k) else k for n, k in kinds.items()}
    class_types = (types.is_integer, types.is_string, types.is_large_string)
    labels = [n for n in classes if any(test(values[n]) for test in class_types)]
    label = next((n for n in LABEL if n in labels), labels[0] if labels else None)
    return ColumnRoles(sample, fields.get(sample, ()), label, plain, names)


def _features(metadata: Mapping[bytes, bytes]) -> dict[str, dict[str, Any]]:
    """Return the features in the metadata of a dataset's schema, by column."""
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        return {name: feature for name, feature in features.items() if isinstance(feature, dict)}
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return {}


SOURCE = Parquet
