"""Finding, checking, decoding and caching samples, and their labels."""

from __future__ import annotations

from diffuse_cli.data.metadata_files import Cells, read_cells
from diffuse_cli.data.reader import read_images
from diffuse_cli.data.samples import (
    HELD_OUT_MINIMUM,
    HELD_OUT_OF,
    Pairs,
    Samples,
    held_out_rule,
    pair,
)
from diffuse_cli.data.saved_samples import open_index, save_index
from diffuse_cli.data.sources import MANIFEST, MANIFEST_FORMAT, file_hashes, is_images
from diffuse_cli.data.sources.in_memory import File, held
from diffuse_cli.data.summary import Summary

__all__ = [
    "HELD_OUT_MINIMUM",
    "HELD_OUT_OF",
    "MANIFEST",
    "MANIFEST_FORMAT",
    "Cells",
    "File",
    "Pairs",
    "Samples",
    "Summary",
    "file_hashes",
    "held",
    "held_out_rule",
    "is_images",
    "open_index",
    "pair",
    "read_cells",
    "read_images",
    "save_index",
]
