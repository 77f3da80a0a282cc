"""Images or model files grown by coverage: whatever reaches new lines of the readers is kept.

Needs atheris, for images beside NumPy and Pillow only. The other flags are libFuzzer's. Without a
folder to keep files in, it starts from the images that `mutated_images` changes, or from a small
model. A model file is tried whole, and its bytes as the description in an otherwise good file,
where they get further.

    PYTHONPATH=. python tests/fuzz/atheris_files.py images -max_total_time=600 -timeout=20
    PYTHONPATH=. python tests/fuzz/atheris_files.py models -max_total_time=600 -timeout=20
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from random import Random

import atheris

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "fuzz")]

IMAGES = sys.argv.pop(1) == "images"
FOLDER = Path(tempfile.mkdtemp(prefix="atheris-"))
MODEL = FOLDER / "m.safetensors"

if IMAGES:
    with atheris.instrument_imports(include=["PIL", "diffuse_cli"]):
        from image_corpus import decode

        from diffuse_cli.media import file_errors as reasons
        from diffuse_cli.media.file_errors import Unusable

    from mutated_images import BY_FORMAT, CHANGES, seeds
    from PIL import Image

    REASONS = {value for value in vars(reasons).values() if isinstance(value, str)}
    SEEDS = seeds()
else:
    with atheris.instrument_imports(include=["diffuse_cli", "json"]):
        from diffuse_cli.models import model_file, tensor_file
        from diffuse_cli.system.errors import ModelFileError

    from edited_models import split_file
    from mutate_models import mutate, write_model

    GOOD = write_model(MODEL)
    header, body = split_file(GOOD)
    description = header["__metadata__"]["diffuse.config"].encode()
    SEEDS = (GOOD, GOOD[: len(GOOD) - len(body)], description)


def try_image(data: bytes) -> None:
    """An image, or a known reason; anything else ends the search."""
    try:
        image = decode(data)
    except Unusable as error:
        if error.reason in REASONS:
            return
        raise
    assert image.mode in ("L", "RGB")
    assert 0 < image.width * image.height <= Image.MAX_IMAGE_PIXELS


def try_model(data: bytes) -> None:
    """Accepted, or rejected in one line that names the file; anything else ends the search."""
    for write in (
        lambda: MODEL.write_bytes(data),
        lambda: tensor_file.write(MODEL, {}, {"diffuse.config": data.decode("latin-1")}),
    ):
        write()
        message = str(MODEL)
        try:
            model_file.load(MODEL)
        except ModelFileError as error:
            message = str(error)
        assert str(MODEL) in message
        assert message.isprintable()


def change(data: bytes, most: int, seed: int) -> bytes:
    """libFuzzer's changes, and ours, which keep checksums and lengths right."""
    draw = Random(seed)
    if not data or draw.random() < (0.5 if IMAGES else 0.7):
        return atheris.Mutate(data, most)
    if not IMAGES:
        return mutate(GOOD, draw)[:most]
    own = [change for start, change in BY_FORMAT if data.startswith(start)]
    return draw.choice(own or CHANGES)(draw, data)[:most]


def main() -> None:
    """Search until a flag says stop."""
    arguments = list(sys.argv)
    if not any(Path(a).is_dir() for a in arguments[1:]):
        corpus = FOLDER / "corpus"
        corpus.mkdir()
        for k, data in enumerate(SEEDS):
            (corpus / f"{k:03d}").write_bytes(data)
        arguments.append(os.fspath(corpus))
    if IMAGES:
        arguments.append("-rss_limit_mb=1800")
    atheris.Setup(arguments, try_image if IMAGES else try_model, custom_mutator=change)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
