"""Render the options of commands as types of the Python interface; a test compares the two.

python docs/render_options.py
"""

from __future__ import annotations

from pathlib import Path

from diffuse_cli.api.calls import HELD
from diffuse_cli.config import parsers
from diffuse_cli.config.eval_options import EvalConfig
from diffuse_cli.config.options import options
from diffuse_cli.config.sample_options import SampleConfig
from diffuse_cli.config.train_options import TrainConfig
from diffuse_cli.core.networks import NETWORKS
from diffuse_cli.core.settings import kind_of

MODULE = Path(__file__).parents[1] / "diffuse_cli" / "api" / "keywords.py"

HEAD = '''\
"""Options of commands as keywords of `train`, `Model.sample` and `evaluate`.

Written by docs/render_options.py.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, SupportsFloat, SupportsIndex, TypeAlias, TypedDict

if TYPE_CHECKING:
    from diffuse_cli.api.calls import Data

Int: TypeAlias = SupportsIndex
Float: TypeAlias = SupportsFloat | SupportsIndex
Path: TypeAlias = str | os.PathLike[str]
'''

OWN = {
    "TrainOptions": ("train", TrainConfig, {"data", "out", "resume", "overwrite", "dry_run"}),
    "SampleOptions": (
        "Model.sample",
        SampleConfig,
        {"model", "n", "seed", "classes", "on", "steps", "sampler", "out", "gif", "grid",
         "overwrite"},
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
    parsers.parse_listed: "str | Sequence[str]",
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


def render() -> str:
    """The module."""
    parts = [HEAD]
    for name, (function, config, left_out) in OWN.items():
        lines = []
        for f, spec in options(config):
            if f.name in left_out:
                continue
            if f.name in HELD:
                kind = "Data"
            elif spec.parse:
                kind = PARSED[spec.parse]
            else:
                kind = "Path" if spec.metavar.startswith(PLACES) else KINDS[kind_of(f)]
            lines.append(f"    {f.name}: {kind} | None\n")
        if config is TrainConfig:
            lines += [f"    {network}: Mapping[str, Any] | None\n" for network in NETWORKS.own]
        doc = f'    """Options of `{function}` beside its parameters."""\n\n'
        parts.append(f"\n\nclass {name}(TypedDict, total=False):\n{doc}{''.join(lines)}")
    return "".join(parts)


if __name__ == "__main__":
    MODULE.write_text(render(), encoding="utf-8")
