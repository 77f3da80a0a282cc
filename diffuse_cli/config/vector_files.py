"""Files of vectors: .npz with names, or .npy with a vector per row."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffuse_cli.core.conditions import MOST_ENTRIES
from diffuse_cli.system.descriptors import open_regular_file

if TYPE_CHECKING:
    import numpy.typing as npt

EXTENSIONS, LARGEST = (".npz", ".npy"), 2**33
"""Extensions of the files, and the most bytes that one unpacks to."""


def parse_vectors(value: Any) -> tuple[tuple[float, ...], ...]:
    """Return the vectors of a file, or of a list or array of numbers.

    Raises:
        ValueError: they are not finite vectors of one size.
    """
    import numpy as np

    vectors = read_vectors(value)[1] if isinstance(value, str) else np.atleast_2d(value)
    if vectors.dtype.kind not in "biuf" or vectors.ndim != 2 or not np.isfinite(vectors).all():
        raise ValueError("vectors must be finite numbers, (D,) or (N, D)")
    return tuple(map(tuple, vectors.tolist()))


def read_vectors(path: str | Path) -> tuple[tuple[str, ...], npt.NDArray[Any]]:
    """Read the names of a file, none of a .npy, and its vectors (N, entries).

    A .npz has the vector of each name, or the arrays `names` and `vectors`.

    Raises:
        ValueError: the file cannot be read, or its vectors have different sizes.
    """
    import numpy as np

    try:
        with open_regular_file(path) as file:
            arrays = np.load(file, allow_pickle=False)
            if isinstance(arrays, np.ndarray):
                arrays = {"vectors": arrays}
            elif sum(member.file_size for member in arrays.zip.infolist()) > LARGEST:
                raise ValueError
            arrays = dict(arrays)
    except Exception as error:  # a header is text of any kind
        reason = getattr(error, "strerror", None) or "it is not a .npz or .npy file of numbers"
        raise ValueError(reason) from error
    names, rows = tuple(arrays), [*arrays.values()]
    if {*arrays} <= {"names", "vectors"} and "vectors" in arrays:
        names = tuple(arrays.get("names", np.array([])).astype(str).ravel().tolist())
        rows = [*np.atleast_2d(arrays["vectors"])]
    sizes = sorted({row.size for row in rows})
    if len(sizes) != 1 or not 0 < sizes[0] <= MOST_ENTRIES:
        listed = ", ".join(f"{size:,}" for size in sizes[:5]) or "none"
        raise ValueError(f"vectors must have one size, 1 to {MOST_ENTRIES:,} numbers, not {listed}")
    if len(names) not in (0, len(rows)):
        raise ValueError(f"{len(names):,} names for {len(rows):,} vectors")
    vectors = np.stack([row.ravel() for row in rows])
    if vectors.dtype.kind not in "biuf":
        raise ValueError(f"vectors must be numbers, not {vectors.dtype}")
    return names, vectors
