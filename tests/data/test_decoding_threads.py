"""Threads that decode: the samples, the summary and the order are those of one thread."""

import io
import wave

import numpy as np
import pytest
from image_corpus import BOMB, encoded, fill, noise, read, zipped
from test_streaming import same

from diffuse_cli.data import decoding_threads


def corpus() -> dict[str, bytes]:
    """Every kind of result, over several chunks."""
    kinds = ("PNG", "JPEG", "BMP", "GIF")
    data = {
        f"{'ab'[k % 2]}/{k:03d}.{kinds[k % 4].lower()}": encoded(noise(k), kinds[k % 4])
        for k in range(300)
    }
    data |= {"a/cut.png": encoded(noise(1))[:-30], "b/bomb.png": BOMB, "a/é.png": b""}
    return data | {"a/clear.png": encoded(noise(7, mode="RGBA")), "b/grey.png": encoded(noise(8))}


def sound(seed: int, rate: int) -> bytes:
    """A WAV of a quarter of a second."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", ""))
        file.writeframes(np.random.default_rng(seed).integers(-999, 999, rate // 4, "<i2"))
    return buffer.getvalue()


SETS = {
    "every kind": (corpus(), {}),
    "grey over a background": (corpus(), {"channels": 1, "background": "navy"}),
    "a size": ({**corpus(), "c.png": encoded(noise(9, (90, 70)))}, {"size": (5, 7)}),
    "a large one at last": ({**corpus(), "zz.png": encoded(noise(9, (90, 70)))}, {}),
    "another size at first": ({**corpus(), "0.png": encoded(noise(9, (9, 7)))}, {}),
    "sounds of two rates": ({f"{k}.wav": sound(k, 8000 << k % 2) for k in range(9)}, {}),
}


@pytest.mark.parametrize(("name", "packed"), [(name, k % 2 == 1) for k, name in enumerate(SETS)])
def test_threads_give_what_one_gives(tmp_path, monkeypatch, name, packed):
    monkeypatch.setattr(decoding_threads, "SMALL", 0)
    data, options = SETS[name]
    source = zipped(tmp_path / "x.zip", data) if packed else fill(tmp_path / "x", data)
    assert same(read(source, workers=3, **options), read(source, workers=1, **options))
