"""Render the options of commands as types of the Python interface; a test compares the two.

python docs/render_options.py
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import Field
from pathlib import Path
from typing import Any

from diffuse_cli.api.calls import HELD
from diffuse_cli.config import parsers
from diffuse_cli.config.eval_options import EvalConfig
from diffuse_cli.config.options import Option, option_fields
from diffuse_cli.config.sample_options import SampleConfig
from diffuse_cli.config.train_options import TrainConfig
from diffuse_cli.core.networks import NETWORKS
from diffuse_cli.core.settings import field_annotation

MODULE = Path(__file__).parents[1] / "diffuse_cli" / "api" / "keywords.py"

HEAD = '''\
"""Options of commands as keywords of `train`, `Model.sample` and `evaluate`.

Written by docs/render_options.py.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, SupportsFloat, SupportsIndex, TypeAlias, TypedDict

from diffuse_cli.api.calls import Data

Int: TypeAlias = SupportsIndex
Float: TypeAlias = SupportsFloat | SupportsIndex
Path: TypeAlias = str | os.PathLike[str]
'''

OWN = {
    "TrainOptions": (
        "train",
        TrainConfig,
        {"data", "out", "resume", "overwrite", "dry_run"},
    ),
    "SampleOptions": (
        "Model.sample",
        SampleConfig,
        {"model", "n", "seed", "classes", "on", "steps", "sampler", "out", "gif", "grid",
         "members", "moments", "overwrite"},
    ),
    "EvalOptions": (
        "evaluate",
        EvalConfig,
        {"subject", "data", "n", "metrics", "report", "overwrite"},
    ),
}  # fmt: skip
"""Each type with its function, its configuration, and the options that are parameters of the
function, or are not taken."""

PARSED = {
    parsers.parse_length: "Int | str | Sequence[Int]",
    parsers.parse_betas: "Path | Sequence[Float]",
    parsers.parse_vectors: "Path | Iterable[Any]",
    parsers.parse_listed: "str | Sequence[str]",
    parsers.parse_augment: "str | Sequence[str]",
    parsers.parse_color: "str",
    parsers.parse_bytes: "Int | str",
    parsers.parse_file: "Path",
    parsers.parse_interval: "str | Sequence[Float]",
    parsers.parse_range: "str | Sequence[Int]",
    parsers.parse_timesteps: "Int | str",
}
"""What parsers take."""

PLACES = ("FILE", "MODEL", "PATH", "FOLDER")
"""Metavars of paths begin so."""

KINDS = {"int": "Int", "float": "Float", "bool": "bool", "str": "str"}


BOTH = "GenerationOptions"
"""The type of the options that `Model.sample` and `evaluate` share."""


def render() -> str:
    """The module."""
    own = {name: _fields(config, left_out) for name, (_, config, left_out) in OWN.items()}
    sample, evaluate = own["SampleOptions"], own["EvalOptions"]
    shared = {f: kind for f, kind in sample.items() if evaluate.get(f) == kind}
    parts = [HEAD, _type(BOTH, "TypedDict", "both `Model.sample` and `evaluate`", shared)]
    for name, (function, _, _) in OWN.items():
        base, fields = "TypedDict", own[name]
        if shared.items() <= fields.items():
            base, fields = BOTH, {f: kind for f, kind in fields.items() if f not in shared}
        parts.append(_type(name, base, f"`{function}` other than its parameters", fields))
    return "".join(parts)


def _type(name: str, base: str, of: str, fields: Mapping[str, str]) -> str:
    """A type of the options `of` a function."""
    lines = "".join(f"    {field}: {kind} | None\n" for field, kind in fields.items())
    return f'\n\nclass {name}({base}, total=False):\n    """Options of {of}."""\n\n{lines}'


def _fields(config: type, left_out: Collection[str]) -> dict[str, str]:
    """The types of a configuration's options, by name."""
    found = {f.name: _kind(f, spec) for f, spec in option_fields(config) if f.name not in left_out}
    networks = NETWORKS.entries if config is TrainConfig else ()
    return {**found, **dict.fromkeys(networks, "Mapping[str, Any]")}


def _kind(f: Field[Any], spec: Option) -> str:
    """The type of an option."""
    if f.name in HELD:
        return "Data"
    if spec.parse:
        return PARSED[spec.parse]
    return "Path" if spec.metavar.startswith(PLACES) else KINDS[field_annotation(f)]


if __name__ == "__main__":
    MODULE.write_text(render(), encoding="utf-8")
