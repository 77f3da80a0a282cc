"""Datasets saved by Hugging Face's library, mapped from disk. Needs pyarrow."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import repeat
from pathlib import Path
from typing import Any

from diffuse_cli.data.sources._arrow_rows import ArrowRows, ColumnRoles
from diffuse_cli.data.sources._shards import shards_at
from diffuse_cli.data.sources.entries import is_file
from diffuse_cli.system.errors import DataError, extra_package
from diffuse_cli.system.files import shorten, show

EXTENSION = ".arrow"
STATE, SPLITS = "state.json", "dataset_dict.json"
"""Files that mark the folder of a saved dataset, and the folder of its splits."""
TRAIN = "train"


def _split(path: Path) -> Path:
    """Return the folder of the training split of a saved `DatasetDict`."""
    splits = [name for name in _json(path / SPLITS).get("splits", ()) if isinstance(name, str)]
    if TRAIN in splits:
        return path / TRAIN
    names = [shorten(name, 40) for name in splits]
    example = show(path / names[0]) if names else "a split"
    raise DataError(f"no split {TRAIN} in {show(path)}: {', '.join(names)}", f"Pass {example}")


def _shards(folder: Path) -> list[Path]:
    """Return the files of a saved dataset, in its order."""
    state = _json(folder / STATE)
    files = state.get("_data_files")
    if state.get("_indices_data_files") or not isinstance(files, list):
        text = f"{show(folder)} is a selection of a dataset, or of an unknown version"
        raise DataError(text, "Call flatten_indices() on the dataset and save it again")
    names = [file.get("filename") if isinstance(file, dict) else None for file in files]
    return [folder / Path(str(name)).name for name in names]


def _json(path: Path) -> dict[str, Any]:
    try:
        fields = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"cannot read {show(path)}: {shorten(error)}") from error
    if not isinstance(fields, dict):
        raise DataError(f"{show(path)} is not the {path.name} of a saved dataset")
    return fields


class ArrowFiles(ArrowRows):
    """Rows of Arrow files."""

    @staticmethod
    def recognizes(path: Path) -> bool:
        if is_file(path / SPLITS) or is_file(path / STATE):
            return True
        return shards_at(path, EXTENSION) is not None

    @classmethod
    def open(cls, path: Path) -> ArrowFiles:
        extra_package("pyarrow.ipc", "parquet", f"pyarrow is needed to read {show(path)}")
        folder = _split(path) if is_file(path / SPLITS) else path
        whole = is_file(folder / STATE)
        return cls(path, _shards(folder) if whole else shards_at(folder, EXTENSION) or [folder])

    def shard(self, path: str) -> ArrowShard:
        return ArrowShard(path)


class ArrowShard:
    """Arrow file or stream, mapped, so that only parts that are read take memory."""

    def __init__(self, path: str) -> None:
        import pyarrow as pa

        self._map = pa.memory_map(path)
        try:
            self._table = pa.ipc.open_stream(self._map).read_all()
        except pa.ArrowInvalid:
            self._map.seek(0)
            self._table = pa.ipc.open_file(self._map).read_all()
        # Offsets in a damaged file can point outside it.
        self._table.validate(full=True)
        self.schema, self.count = self._table.schema, self._table.num_rows

    def columns(self, names: Sequence[str]) -> Any:
        return self._table.select([*map(self._find_column, names)])

    def _find_column(self, name: str) -> str:
        """Return the column that a name, or a field of it, is in."""
        import pyarrow as pa

        parent, schema = name.rpartition(".")[0], self.schema
        nested = parent in schema.names and pa.types.is_struct(schema.field(parent).type)
        return name if name in schema.names and not nested else parent

    def sizes(self, layout: ColumnRoles) -> Iterator[int]:
        total = self._table.column(layout.sample).nbytes
        return repeat(total // max(1, self.count), self.count)

    def sample(self, row: int, layout: ColumnRoles) -> bytes | None:
        value = self._table.column(layout.sample)[row]
        if layout.nested:
            value = value["bytes"]
        contents: bytes | None = value.as_py()
        return contents

    def close(self) -> None:
        del self._table


SOURCE = ArrowFiles
