"""ICC profiles of version 2 made by hand, and what colors are under them by exact arithmetic."""

from __future__ import annotations

import struct

import numpy as np

D50 = np.array([0.9642, 1.0, 0.8249])
PRIMARIES = {
    "sRGB": ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06), (0.3127, 0.3290)),
    "AdobeRGB": ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06), (0.3127, 0.3290)),
    "P3": ((0.68, 0.32), (0.265, 0.69), (0.15, 0.06), (0.3127, 0.3290)),
    "ProPhoto": ((0.7347, 0.2653), (0.1596, 0.8404), (0.0366, 0.0001), (0.34567, 0.35850)),
}
"""xy of red, green, blue and white."""
CONES = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
"""Bradford's."""

Gamma = float | str
"""An exponent, or "sRGB"."""


def matrix(name: str) -> np.ndarray:
    """Linear RGB to XYZ under D50."""
    columns = np.stack([[x / y, 1, (1 - x - y) / y] for x, y in PRIMARIES[name]], 1)
    white = columns[:, 3]
    scaled = columns[:, :3] * np.linalg.solve(columns[:, :3], white)
    adapted = np.diag((CONES @ D50) / (CONES @ white))
    return np.linalg.inv(CONES) @ adapted @ CONES @ scaled


def linear(x: np.ndarray, gamma: Gamma) -> np.ndarray:
    """From 0 ... 1."""
    if gamma == "sRGB":
        return np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)
    return x ** float(gamma)


def srgb(light: np.ndarray) -> np.ndarray:
    """Linear light as levels of sRGB."""
    light = light.clip(0, 1)
    return 255 * np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)


def converted(levels: np.ndarray, name: str, gamma: Gamma) -> np.ndarray:
    """Levels (..., 3) under a profile as levels of sRGB."""
    xyz = linear(levels / 255, gamma) @ matrix(name).T
    return srgb(xyz @ np.linalg.inv(matrix("sRGB")).T)


# -- the files ------------------------------------------------------------------------------------


def rgb(name: str, gamma: Gamma) -> bytes:
    """A profile of three primaries and one curve."""
    tags = {f"{c}XYZ".encode(): _xyz(matrix(name)[:, k]) for k, c in enumerate("rgb")}
    return assembled(b"RGB ", b"XYZ ", tags | {f"{c}TRC".encode(): _curve(gamma) for c in "rgb"})


def grey(gamma: Gamma) -> bytes:
    """A profile of one curve."""
    return assembled(b"GRAY", b"XYZ ", {b"kTRC": _curve(gamma)})


def cmyk() -> bytes:
    """Ink that is grey: black takes all of the lightness, the others a third of its half each."""
    inks = np.stack(np.meshgrid(*[[0, 1]] * 4, indexing="ij"), -1).reshape(16, 4)
    light = np.rint(lightness(inks) / 100 * 0xFF00).astype(int)
    table = np.stack([light, *[np.full(16, 0x8000)] * 2], 1)
    unit = np.eye(3).ravel()
    ramps = b"\0\0\xff\xff" * 4, b"\0\0\xff\xff" * 3
    body = b"mft2\0\0\0\0\4\3\2\0" + _fixed(unit) + struct.pack(">HH", 2, 2)
    body += ramps[0] + struct.pack(">48H", *table.ravel()) + ramps[1]
    return assembled(b"CMYK", b"Lab ", {b"A2B0": body})


def lightness(inks: np.ndarray) -> np.ndarray:
    """L* of inks (..., 4) that are all or nothing."""
    return 100 * (1 - inks[..., 3]) * (1 - inks[..., :3].sum(-1) / 6)


def assembled(space: bytes, connection: bytes, tags: dict[bytes, bytes]) -> bytes:
    """A profile of these tags, and of those that every profile has."""
    text = b"desc\0\0\0\0\0\0\0\2x\0" + bytes(78)
    tags = {b"desc": text, b"cprt": b"text\0\0\0\0none\0", b"wtpt": _xyz(D50), **tags}
    body, table, at = b"", struct.pack(">I", len(tags)), 132 + 12 * len(tags)
    for name, data in tags.items():
        table += struct.pack(">4sII", name, at + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    head = struct.pack(">II", at + len(body), 0) + b"\2\x40\0\0mntr" + space + connection
    head += bytes(12) + b"acsp" + bytes(28) + _fixed(D50)
    return head.ljust(128, b"\0") + table + body


def _fixed(values: np.ndarray) -> bytes:
    return np.rint(np.asarray(values) * 65536).astype(">i4").tobytes()


def _xyz(values: np.ndarray) -> bytes:
    return b"XYZ \0\0\0\0" + _fixed(values)


def _curve(gamma: Gamma) -> bytes:
    if gamma == "sRGB":
        steps = np.rint(linear(np.linspace(0, 1, 1024), gamma) * 65535).astype(">u2")
        return b"curv\0\0\0\0" + struct.pack(">I", 1024) + steps.tobytes()
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(float(gamma) * 256))
