"""Parquet files, or folders of them, as on Hugging Face's hub. Needs pyarrow."""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from diffuse_cli.data.sources._arrow_rows import ArrowRows, ColumnRoles
from diffuse_cli.data.sources._shards import shards_at
from diffuse_cli.media import file_errors as reasons
from diffuse_cli.media.file_errors import Unusable
from diffuse_cli.system.errors import extra_package
from diffuse_cli.system.files import show
from diffuse_cli.system.memory import raise_if_full

EXTENSION = ".parquet"

BLOCK_BYTES, MOST_ROWS = 2**24, 1024
"""Approximate bytes of a block of decoded rows, and the largest number of its rows."""
KEPT_BYTES = 2**28
"""Bytes of recently read blocks that are kept."""


class Parquet(ArrowRows):
    """Rows of parquet files."""

    @staticmethod
    def recognizes(path: Path) -> bool:
        return shards_at(path, EXTENSION) is not None

    @classmethod
    def open(cls, path: Path) -> Parquet:
        extra_package("pyarrow.parquet", "parquet", f"pyarrow is needed to read {show(path)}")
        return cls(path, shards_at(path, EXTENSION) or [path])

    def __init__(self, path: Path, shards: Sequence[Path]) -> None:
        super().__init__(path, shards)
        self._blocks = Blocks()

    def shard(self, path: str) -> ParquetShard:
        return ParquetShard(path, self._blocks)


class Blocks:
    """Cache of decoded blocks by their place, within `KEPT_BYTES`."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Any, Any] = OrderedDict()
        self._bytes = 0

    def get(self, place: Any) -> Any:
        if place in self._kept:
            self._kept.move_to_end(place)
        return self._kept.get(place)

    def add(self, place: Any, block: Any) -> None:
        if (before := self._kept.pop(place, None)) is not None:
            self._bytes -= before.nbytes
        self._kept[place] = block
        self._bytes += block.nbytes
        while self._bytes > KEPT_BYTES and len(self._kept) > 1:
            self._bytes -= self._kept.popitem(last=False)[1].nbytes


class ParquetShard:
    """Parquet file.

    A row can only be read by decoding its group from the start. The decoder stops after the
    requested block and resumes there if it can. So a group is decoded once if it is read in order,
    or in any order if it fits in the cache.
    """

    def __init__(self, path: str, blocks: Blocks) -> None:
        from pyarrow import parquet

        # Without pre_buffer, a column is read as it is decoded: a group may be larger than memory.
        self._file = parquet.ParquetFile(path, pre_buffer=False, buffer_size=2**20)
        self._path, self._blocks = path, blocks
        metadata = self._file.metadata
        self.schema, self.count = self._file.schema_arrow, metadata.num_rows
        self._groups = [metadata.row_group(k) for k in range(metadata.num_row_groups)]
        self._ends = [*accumulate(group.num_rows for group in self._groups)]
        self._decoder: Iterator[tuple[int, Any]] = iter(())
        self._waits = (-1, 0)
        self._damaged: set[int] = set()

    def columns(self, names: Sequence[str]) -> Any:
        return self._file.read(columns=[*names], use_threads=False)

    def sizes(self, layout: ColumnRoles) -> Iterator[int]:
        for k, group in enumerate(self._groups):
            for _ in range(group.num_rows):
                yield self._size(k, layout)

    def sample(self, row: int, layout: ColumnRoles) -> bytes | None:
        group = bisect_right(self._ends, row)
        if group in self._damaged:
            raise Unusable(reasons.CORRUPT)
        block_rows = max(1, min(MOST_ROWS, BLOCK_BYTES // max(1, self._size(group, layout))))
        number, place = divmod(row - (self._ends[group] - self._groups[group].num_rows), block_rows)
        block = self._blocks.get((self._path, group, number))
        if block is None:
            try:
                block = self._decode_block(group, number, block_rows, layout)
            except Exception as error:
                raise_if_full(error)
                self._damaged.add(group)
                self._waits = (-1, 0)
                raise
        contents: bytes | None = block[place].as_py()
        return contents

    def close(self) -> None:
        self._decoder = iter(())
        self._file.close()

    def _size(self, group: int, layout: ColumnRoles) -> int:
        """Return the average bytes of a sample in a group."""
        metadata = self._groups[group]
        names = {layout.sample, f"{layout.sample}.bytes"}
        chunks = map(metadata.column, range(metadata.num_columns))
        total = sum(c.total_uncompressed_size for c in chunks if c.path_in_schema in names)
        return max(0, int(total // max(1, metadata.num_rows)))

    def _decode_block(self, group: int, number: int, block_rows: int, layout: ColumnRoles) -> Any:
        """Decode a block of a group, and keep each block that is decoded on the way."""
        if self._waits[0] != group or self._waits[1] > number:
            column_name = f"{layout.sample}.bytes" if layout.nested else layout.sample
            batches = self._file.iter_batches(
                batch_size=block_rows, row_groups=[group], columns=[column_name], use_threads=False
            )
            self._decoder = enumerate(batches)
        for current_number, batch in self._decoder:
            self._waits = group, current_number + 1
            column = batch.column(0)
            block = column.field("bytes") if layout.nested else column
            self._blocks.add((self._path, group, current_number), block)
            if current_number == number:
                return block
        raise Unusable(reasons.CORRUPT)


SOURCE = Parquet
