"""Write fields of two-dimensional turbulence, for a model that refines coarse fields.

    python examples/turbulence.py fields 1000
    python examples/turbulence.py test 100 --seed 1

Each field is the vorticity of a barotropic ocean on a periodic square of 64x64 cells. Random
forcing at wavenumbers 3 to 5 stirs it, and drag slows it, until forcing and drag balance:

    dw/dt + u . grad w = forcing - drag w - viscosity (-laplacian)^4 w

It is solved pseudo-spectrally, with the 2/3 rule and Heun's method.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np

CELLS, RUNS = 64, 20
"""Cells along a side, and simulations at once."""

STEP, DRAG, VISCOSITY = 0.02, 0.1, 1e-9
"""Seconds per step, drag per second, and hyperviscosity."""

SPIN_UP, EVERY = 500, 100
"""Steps before the first field, and between two fields of a simulation."""

K = np.fft.fftfreq(CELLS, 1 / CELLS)
KX, KY = np.meshgrid(np.fft.rfftfreq(CELLS, 1 / CELLS), K)
SQUARED = KX**2 + KY**2
INVERSE = np.divide(1, SQUARED, out=np.zeros_like(SQUARED), where=SQUARED > 0)
KEPT = (np.abs(KX) < CELLS / 3) & (np.abs(KY) < CELLS / 3)
FORCED = (SQUARED >= 3**2) & (SQUARED <= 5**2)
DECAY = np.exp(-STEP * (DRAG + VISCOSITY * SQUARED**4))


def advect(w: np.ndarray) -> np.ndarray:
    """Return -u . grad w in spectral space, from vorticity w there."""
    psi = -w * INVERSE
    u, v, wx, wy = np.fft.irfft2(
        np.stack([-1j * KY * psi, 1j * KX * psi, 1j * KX * w, 1j * KY * w])
    )
    advection: np.ndarray = np.fft.rfft2(u * wx + v * wy)
    product: np.ndarray = -advection * KEPT
    return product


def simulate(seed: int) -> Iterator[np.ndarray]:
    """Yield the fields of all simulations, (RUNS, CELLS, CELLS), every `EVERY` steps."""
    draw = np.random.default_rng(seed)
    w = np.zeros((RUNS, *SQUARED.shape), complex)
    for step in range(10**9):
        noise = np.fft.rfft2(draw.normal(size=(RUNS, CELLS, CELLS))) * FORCED
        w = w + 10 * np.sqrt(STEP) * noise
        first = advect(w)
        second = advect((w + STEP * first) * DECAY)
        w = (w + STEP / 2 * first) * DECAY + STEP / 2 * second
        if step >= SPIN_UP and step % EVERY == 0:
            yield np.fft.irfft2(w)


def main() -> None:
    """Write COUNT fields to FOLDER."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("count", type=int)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.folder.mkdir(parents=True)
    made = 0
    for fields in simulate(options.seed):
        for field in fields[: options.count - made]:
            np.save(options.folder / f"{made:05d}.npy", field[None].astype(np.float32))
            made += 1
        if made == options.count:
            return


if __name__ == "__main__":
    main()
