"""Write `golden.json`: what the code as it stands makes of each case.

    PYTHONPATH=. python tests/golden/record.py [CASE ...]

Record only where results are meant to change: a run of the test against an older record is what
shows that nothing else did. Naming cases replaces those alone, on the machine that wrote the
others. The files in `fixtures/` are not written again: they are what older code left.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import goldens


def written(record: dict[str, Any]) -> str:
    """JSON with a line for each tensor and image, so that a change shows in a diff."""
    text = json.dumps(record, indent=1)
    for bracket in ("[", "]"):
        text = text.replace(bracket, f"\0{bracket}\0")
    parts = text.split("\0")
    inside = False
    for k, part in enumerate(parts):
        if inside:
            parts[k] = " ".join(part.split())
        inside = (inside or part == "[") and part != "]"
    return "".join(parts) + "\n"


def main(names: list[str]) -> None:
    """Measure the named cases, or all."""
    record: dict[str, Any] = {"machine": goldens.machine(), "cases": {}}
    if names:
        record = json.loads(goldens.GOLDEN.read_text())
        if record["machine"] != goldens.machine():
            sys.exit("the other cases were recorded on another machine: record all")
    for name in names or goldens.CASES:
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            goldens.furnish(Path())
            record["cases"][name] = goldens.measure(name)
            os.chdir(goldens.HERE)
        print(name, file=sys.stderr)
    goldens.GOLDEN.write_text(written(record))


if __name__ == "__main__":
    main(sys.argv[1:])
