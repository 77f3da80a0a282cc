"""A process that decodes samples for this one.

Outside Pillow's decoders Python runs one thread at a time. With small files the decoders take the
least time, and threads on many cores are no faster than on one.

A request is a line of JSON, an answer a line of JSON and then the bytes of its samples. A worker
ends with its input, and so never outlives its parent.

A `ProcessPoolExecutor` takes 1.8 times as long for 60,000 small PNGs, and its workers outlive a
killed parent, import modules from the current folder and run an unguarded script again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from diffuse_cli.data.decoding_workers import (
    LATER,
    Decoded,
    Reading,
    Result,
    Skipped,
    decode_files,
)
from diffuse_cli.data.sources import Entry, open_source
from diffuse_cli.media import Asked, Read, prepare

_CODE = "from diffuse_cli.data.worker import main; main()"


class Gone(Exception):
    """The process has ended, or its answer is invalid."""


class Worker:
    """A process that decodes for `reading`.

    Raises:
        OSError: it cannot be started.
    """

    def __init__(self, reading: Reading) -> None:
        packages = str(Path(__file__).parents[2])
        path = os.pathsep.join(filter(None, [packages, os.environ.get("PYTHONPATH")]))
        self._process = subprocess.Popen(
            # Without -P a file `json.py` in the current folder would be imported.
            [sys.executable, "-P", "-c", _CODE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path},
            process_group=0,  # Ctrl-C is for the parent alone
        )
        self._hello = {
            "source": str(reading.source.path),
            "medium": reading.medium,
            "channels": reading.asked.channels,
            "background": reading.asked.background,
            "fit": reading.asked.fit,
            "layout": reading.asked.layout,
            "numbers": reading.asked.numbers,
        }

    def decode(self, reading: Reading, entries: Sequence[Entry]) -> list[Result]:
        """`decode_files` in the process, except large samples: they are decoded here, one by one.

        Raises:
            Gone: nothing is decoded.
        """
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        files = [(e.name, e.size, e.key, e.fault) for e in entries]
        try:
            for line in filter(None, (self._hello, {"size": reading.asked.size, "files": files})):
                stdin.write(json.dumps(line).encode() + b"\n")
            stdin.flush()
            self._hello = {}
            found = list(_results(entries, stdout))
        except (OSError, ValueError, TypeError) as error:
            self.close()
            raise Gone from error
        late = iter(decode_files(reading, [r.entry for r in found if _is_late(r)]))
        return [next(late) if _is_late(result) else result for result in found]

    def close(self) -> None:
        """End the process and wait for it."""
        with contextlib.suppress(OSError), self._process:
            self._process.kill()


def _is_late(result: Result) -> bool:
    return isinstance(result, Skipped) and result.reason == LATER


def _results(entries: Sequence[Entry], answer: IO[bytes]) -> Iterator[Result]:
    """The results in an answer, or a `ValueError` if it is incomplete."""
    for entry, fields in zip(entries, json.loads(answer.readline()), strict=True):
        if isinstance(fields, str):
            yield Skipped(entry, fields)
            continue
        shape, kind, digest, mode, size, channels, remarks, layout = fields
        dtype = np.dtype(kind)
        data = answer.read(math.prod(shape) * dtype.itemsize)
        values = np.frombuffer(data, dtype).reshape(shape)
        name = bytes.fromhex(digest)
        read = Read(values, name, mode, tuple(size), channels, tuple(remarks), layout)
        yield Decoded(entry, read)


# -- in the process -------------------------------------------------------------------------------


def main() -> None:
    """Answer requests until the input ends."""
    stdin, stdout = sys.stdin.buffer, sys.stdout.buffer
    hello = stdin.readline()
    if not hello:
        return
    said = json.loads(hello)
    said["background"] = tuple(said["background"])
    source, medium = said.pop("source"), said.pop("medium")
    asked = Asked(**said, shared=True)
    reading = Reading(open_source(Path(source)), medium, asked)
    prepare(reading.medium)
    for line in stdin:
        request = json.loads(line)
        size = tuple(request["size"]) if request["size"] else None
        reading.asked = dataclasses.replace(reading.asked, size=size)
        found = decode_files(reading, (Entry(*fields) for fields in request["files"]))
        stdout.write(json.dumps([_fields(result) for result in found]).encode() + b"\n")
        for result in found:
            if isinstance(result, Decoded):
                stdout.write(result.read.values.tobytes())
        stdout.flush()


def _fields(result: Result) -> Any:
    if isinstance(result, Skipped):
        return result.reason
    values, digest, *rest = result.read
    return values.shape, values.dtype.str, digest.hex(), *rest
