"""Real and drawn sounds side by side, in a picture and in three numbers.

python examples/sounds.py REAL DRAWN PICTURE.png

REAL and DRAWN are folders of WAV files. REAL is resampled and cut as the drawn sounds are.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from diffuse_cli.core.space import Space
from diffuse_cli.media import ReadSettings, audio, figures

WINDOW, STEP, SHOWN, COLUMNS = 256, 128, 18, 6


def read(folder: Path, asked: ReadSettings) -> np.ndarray:
    """The sounds of a folder as mono, (N, L)."""
    files = sorted(folder.rglob("*.wav"))
    return np.stack([audio.read(path.read_bytes(), asked).values[0] for path in files])


def powers(sounds: np.ndarray) -> np.ndarray:
    """The power of each window and frequency, (N, windows, frequencies)."""
    cut = np.lib.stride_tricks.sliding_window_view(sounds, WINDOW, axis=1)[:, ::STEP]
    return np.abs(np.fft.rfft(cut * np.hanning(WINDOW), axis=2)) ** 2


def compare(real: np.ndarray, drawn: np.ndarray) -> dict[str, float]:
    """How far the mean spectra are apart, the mean envelopes, and how the loudness compares."""
    one, two = powers(real), powers(drawn)
    decibels = [10 * np.log10(each.mean((0, 1)) + 1e-6) for each in (one, two)]
    envelopes = [np.sqrt(each.sum(2)).mean(0) for each in (one, two)]
    return {
        "spectrum, dB apart": float(np.sqrt(np.mean((decibels[0] - decibels[1]) ** 2))),
        "envelope, share apart": float(
            np.abs(envelopes[0] - envelopes[1]).sum() / envelopes[0].sum()
        ),
        "loudness, drawn / real": float(drawn.std() / real.std()),
    }


def main(real: Path, drawn: Path, out: Path) -> None:
    """Print the numbers, and draw real sounds above drawn ones."""
    first = next(iter(sorted(drawn.glob("*.wav")))).read_bytes()
    asked, _ = audio.complete_settings(ReadSettings(channels=1), [first])
    size = (audio.read(first, asked).size[0],)
    asked = ReadSettings(channels=1, rate=asked.rate, size=size)
    ours, theirs = read(real, asked), read(drawn, asked)
    order = np.random.default_rng(0).permutation(len(ours))
    half = len(ours) // 2
    for name, (a, b) in {
        "two halves of the real ones": (ours[order[:half]], ours[order[half:]]),
        "real and drawn": (ours, theirs),
    }.items():
        print(name, {what: round(value, 3) for what, value in compare(a, b).items()})
    space = Space(
        channels=1, size=size, medium="audio", levels=None, mean=(0.0,),
        std=(float(ours.std()),), rate=asked.rate,
    )  # fmt: skip
    grids = [
        figures.arrange_grid(audio.render(each[:, None], space), COLUMNS)
        for each in (ours[order[:SHOWN]], theirs[:SHOWN])
    ]
    sheet = Image.new("L", (grids[0].width, sum(grid.height for grid in grids) + 16), "white")
    sheet.paste(grids[0], (0, 0))
    sheet.paste(grids[1], (0, grids[0].height + 16))
    sheet.save(out)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
