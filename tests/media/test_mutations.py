"""Image files changed at random: an image, or a known reason why not, and nothing else."""

import tempfile
from pathlib import Path
from random import Random

from hypothesis import example, given, settings
from hypothesis import strategies as st
from image_corpus import decode, encoded, fill, noise
from mutated_images import mutated, seeds
from PIL import Image

from diffuse_cli.data import read_images
from diffuse_cli.media import file_errors as reasons
from diffuse_cli.media.file_errors import Unusable
from diffuse_cli.system.events import finish

REASONS = {value for value in vars(reasons).values() if isinstance(value, str)}
FUZZ = settings(max_examples=150, deadline=None, derandomize=True, database=None)

numbers = st.integers(0, 2**32 - 1)


def outcome(data: bytes) -> str:
    """The reason why a file is skipped, empty where it is an image."""
    try:
        image, reason = decode(data), ""
    except Unusable as error:
        image, reason = Image.new("L", (1, 1)), error.reason
    assert not reason or reason in REASONS
    assert image.mode in ("L", "RGB")
    assert 0 < image.width * image.height <= (Image.MAX_IMAGE_PIXELS or 0)
    return reason


@FUZZ
@given(numbers)
def test_a_changed_file_is_an_image_or_has_a_reason(number):
    data = mutated(Random(number))
    assert outcome(data) == outcome(data)


@FUZZ
@given(st.binary(max_size=200), st.sampled_from(seeds()), st.integers(0, 200))
@example(b"", b"", 0)
def test_any_bytes_after_a_beginning_are_an_image_or_have_a_reason(data, seed, keep):
    outcome(seed[:keep] + data)


@settings(FUZZ, max_examples=10)
@given(numbers, st.sampled_from([1, 3]))
def test_a_folder_of_changed_files_is_read_to_its_end(number, workers):
    rng = Random(number)
    files = {f"{k:02d}.png": mutated(rng) for k in range(30)} | {"a.png": encoded(noise(1))}
    usable = {name for name, data in files.items() if not outcome(data)}
    with tempfile.TemporaryDirectory() as folder:
        images = finish(read_images(fill(Path(folder), files), size=(8, 8), workers=workers))
    assert set(images.names) == usable
    assert images.stored.shape[2:] == (8, 8)
    skipped = sum(count for count, _ in images.summary.skipped.values())
    assert len(images) + skipped == len(files)
