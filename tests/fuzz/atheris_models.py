"""Model files grown by coverage: whatever reaches new lines of the reader is kept.

Needs atheris beside what `diffuse` needs. The flags are libFuzzer's; without a folder to keep files
in, it starts from a small model. A file is tried whole, and its bytes as the description in an
otherwise good file, where they get further.

    PYTHONPATH=. python tests/fuzz/atheris_models.py -max_total_time=600 -timeout=20
"""

from __future__ import annotations

import os
import random
import struct
import sys
import tempfile
from pathlib import Path

import atheris

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "fuzz")]

with atheris.instrument_imports(include=["diffuse_cli", "json"]):
    from diffuse_cli.models import model_file, tensor_file
    from diffuse_cli.system.errors import ModelFileError

from mutate_models import mutate, write_model

FOLDER = Path(tempfile.mkdtemp(prefix="atheris-models-"))
MODEL = FOLDER / "m.safetensors"
GOOD = write_model(MODEL)
HEADER = 8 + struct.unpack("<Q", GOOD[:8])[0]
DESCRIPTION = tensor_file.read_header(MODEL.open("rb")).metadata["diffuse.config"].encode()


def check(error: ModelFileError) -> None:
    """One line that names the file and can be printed."""
    assert str(MODEL) in str(error)
    assert str(error).isprintable()


def try_one(data: bytes) -> None:
    """Accepted, or rejected; anything else ends the search."""
    MODEL.write_bytes(data)
    try:
        model_file.load(MODEL)
    except ModelFileError as error:
        check(error)
    tensor_file.write(MODEL, {}, {"diffuse.config": data.decode("latin-1")})
    try:
        model_file.load(MODEL)
    except ModelFileError as error:
        check(error)


def change(data: bytes, most: int, seed: int) -> bytes:
    """libFuzzer's changes, and ours to the whole of a model."""
    draw = random.Random(seed)
    if draw.random() < 0.7:
        return atheris.Mutate(data, most)
    return mutate(GOOD, draw)[:most]


def main() -> None:
    """Search until a flag says stop."""
    arguments = list(sys.argv)
    if not any(Path(a).is_dir() for a in arguments[1:]):
        corpus = FOLDER / "corpus"
        corpus.mkdir()
        (corpus / "model").write_bytes(GOOD)
        (corpus / "header").write_bytes(GOOD[:HEADER])
        (corpus / "description").write_bytes(DESCRIPTION)
        arguments.append(os.fspath(corpus))
    atheris.Setup(arguments, try_one, custom_mutator=change)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
