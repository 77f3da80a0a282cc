"""Model files with other settings, headers or weights."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from diffuse_cli.models import model_file


def split_file(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Return the header of a file of tensors, and the bytes of the tensors."""
    length = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def join_file(header: Any, body: bytes = b"") -> bytes:
    """Return the file of a header, which may be bytes."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def read_description(data: bytes) -> dict[str, Any]:
    """Return the description of a model."""
    description: dict[str, Any] = json.loads(split_file(data)[0]["__metadata__"]["diffuse.config"])
    return description


def change_description(data: bytes, change: Callable[[dict[str, Any]], Any]) -> bytes:
    """Return the file with another description: what `change` returns, or else has changed."""
    header, body = split_file(data)
    description = read_description(data)
    changed = change(description)
    description = description if changed is None else changed
    header["__metadata__"]["diffuse.config"] = json.dumps(description)
    return join_file(header, body)


def altered(
    source: Path,
    out: Path,
    given: Mapping[str, Any] = {},
    training: Mapping[str, Any] = {},
    scale: float = 1.0,
) -> Path:
    """Write `out`: the model of `source`, with other fields of what it is given (`Given`), and of
    its training. Its weights are multiplied by `scale`: by 1e30, its samples are NaN."""
    model = model_file.load(source)
    conditions = model.blueprint.conditions
    if conditions.given:
        conditions = replace(conditions, given=replace(conditions.given, **given))
    blueprint = replace(model.blueprint, conditions=conditions)
    ema = {name: tensor * scale for name, tensor in model.ema.items()}
    made = replace(model, blueprint=blueprint, training={**model.training, **training}, ema=ema)
    model_file.save(out, made)
    return out
