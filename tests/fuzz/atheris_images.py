"""Image files grown by coverage: whatever reaches new lines of Pillow's readers and ours is kept.

Needs atheris, NumPy and Pillow, and no torch. The flags are libFuzzer's; without a folder to keep
files in, it starts anew from the images that `mutated_images` changes.

    PYTHONPATH=. python tests/fuzz/atheris_images.py -max_total_time=600 -timeout=20
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from random import Random

import atheris

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

with atheris.instrument_imports(include=["PIL", "diffuse_cli"]):
    from image_corpus import decode

    from diffuse_cli.media import file_errors as reasons
    from diffuse_cli.media.file_errors import Unusable

from mutated_images import BY_FORMAT, CHANGES, seeds
from PIL import Image

REASONS = {value for value in vars(reasons).values() if isinstance(value, str)}
MEMORY = "-rss_limit_mb=1800"


def try_one(data: bytes) -> None:
    """An image, or a known reason; anything else ends the search."""
    try:
        image = decode(data)
    except Unusable as error:
        if error.reason in REASONS:
            return
        raise
    assert image.mode in ("L", "RGB")
    assert 0 < image.width * image.height <= Image.MAX_IMAGE_PIXELS


def change(data: bytes, most: int, seed: int) -> bytes:
    """libFuzzer's changes, and ours, which keep checksums and lengths right."""
    rng = Random(seed)
    if not data or rng.random() < 0.5:
        return atheris.Mutate(data, most)
    own = [change for start, change in BY_FORMAT if data.startswith(start)]
    return rng.choice(own or CHANGES)(rng, data)[:most]


def main() -> None:
    """Search until a flag says stop."""
    arguments = list(sys.argv)
    if not any(Path(a).is_dir() for a in arguments[1:]):
        folder = Path(tempfile.mkdtemp(prefix="atheris-images-"))
        for k, data in enumerate(seeds()):
            (folder / f"{k:03d}").write_bytes(data)
        arguments.append(os.fspath(folder))
    atheris.Setup([*arguments, MEMORY], try_one, custom_mutator=change)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
