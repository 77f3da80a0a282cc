"""Which functions hold the configuration of one request? Runs a command and prints a count.

    python benchmarks/walk.py [--files] sample model.safetensors -n 4 -o out

A place is a function that receives the configuration as an argument. A climb is a call from a
package to one on a higher floor of ARCHITECTURE.md. With --files, rooms are files, and a return is
a new place in a file that the configuration had left for another.
"""

from __future__ import annotations

import json
import sys
import threading
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import house

CONFIGS = {"TrainConfig", "SampleConfig", "EvalConfig"}
FLOOR = {name: floor for floor, names in enumerate(house.FLOORS) for name in names}


def package_of(frame: FrameType | None) -> str | None:
    """Return the package of the nearest frame of diffuse_cli, outwards."""
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(house.PACKAGE):
            return path.relative_to(house.PACKAGE).parts[0].removesuffix(".py")
        frame = frame.f_back
    return None


def count_returns(files: Sequence[str]) -> dict[str, Any]:
    """Count the files of places in order, and how often these go back to an earlier file."""
    rooms = list(dict.fromkeys(files))
    returns: Counter[str] = Counter()
    for before, after in pairwise(files):
        if rooms.index(after) < rooms.index(before):
            returns[f"{Path(before).stem} -> {Path(after).stem}"] += 1
    return {"files": len(rooms), "returns": returns.total(), "to": dict(returns)}


def walk(arguments: list[str], by_file: bool = False) -> dict[str, Any]:
    """Run a command and return its packages, places and climbs, or the returns between files."""
    places: dict[tuple[str, str], str] = {}
    climbs: Counter[str] = Counter()

    def watch(frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if event != "call" or not code.co_filename.startswith(str(house.PACKAGE)):
            return
        received = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        if not any(type(frame.f_locals.get(name)).__name__ in CONFIGS for name in received):
            return
        place, package = (code.co_filename, code.co_qualname), package_of(frame)
        caller = package_of(frame.f_back)
        if place not in places and caller and FLOOR.get(package, 0) > FLOOR.get(caller, 0):
            climbs[f"{caller} -> {package}"] += 1
        places[place] = str(package)

    from diffuse_cli import app

    sys.setprofile(watch)
    threading.setprofile(watch)
    code = app.main(arguments)
    sys.setprofile(None)
    if by_file:
        returns = count_returns([file for file, _ in places])
        return {"exit": code, "places": len(places), **returns}
    packages = sorted(set(places.values()))
    return {"exit": code, "packages": packages, "places": len(places), "climbs": dict(climbs)}


if __name__ == "__main__":
    by_file = sys.argv[1:2] == ["--files"]
    print(json.dumps(walk(sys.argv[1 + by_file :], by_file), indent=2), file=sys.stderr)
