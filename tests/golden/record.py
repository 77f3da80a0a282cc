"""Write `golden.json`: what the code as it stands makes of each case.

    PYTHONPATH=. python tests/golden/record.py [CASE ...]

Record only where results are meant to change: a run of the test against an older record is what
shows that nothing else did. Naming cases replaces those alone. On any machine that is right: the
numbers of a case hold everywhere, and its digest is written for this machine and dropped for the
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
    """JSON with a line for each tensor, image and number, in columns, so that a change shows in a
    diff and can be read there."""
    lines = ["{", ' "digests": [']
    lines += [f"  {json.dumps(each)}," for each in record["digests"]]
    lines[-1] = lines[-1].removesuffix(",")
    lines += [" ],", ' "cases": {']
    for name, case in record["cases"].items():
        lines.append(f"  {json.dumps(name)}: {{")
        for kind, values in case.items():
            lines.append(f"   {json.dumps(kind)}: {{")
            wide = max((len(key) for key in values), default=0) + 2
            lines += [f"    {json.dumps(k):{wide}}: {_columns(v)}," for k, v in values.items()]
            lines[-1] = lines[-1].removesuffix(",")
            lines.append("   },")
        lines[-1:] = ["   }", "  },"]
    lines[-1:] = ["  }", " }", "}"]
    return "\n".join(lines) + "\n"


def _columns(value: Any) -> str:
    """A number, or a row."""
    if not isinstance(value, list):
        return json.dumps(value)
    kind, *numbers = value
    return f"[{json.dumps(kind) + ',':21} {', '.join(f'{json.dumps(v):>11}' for v in numbers)}]"


def recorded(record: dict[str, Any], name: str, found: goldens.Measured) -> None:
    """Put what a case gave into a record, in the place of what it gave before."""
    here = goldens.machine()
    record["cases"][name] = goldens.rows(found)
    if not any(each["machine"] == here for each in record["digests"]):
        record["digests"].append({"machine": here, "cases": {}})
    for each in record["digests"]:
        each["cases"].pop(name, None)
        if each["machine"] == here:
            each["cases"][name] = goldens.fingerprint(found)
    record["digests"] = [each for each in record["digests"] if each["cases"]]


def main(names: list[str]) -> None:
    """Measure the named cases, or all."""
    record: dict[str, Any] = {"digests": [], "cases": {}}
    if names:
        record = json.loads(goldens.GOLDEN.read_text())
    for name in names or goldens.CASES:
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            goldens.furnish(Path())
            recorded(record, name, goldens.measure(name))
            os.chdir(goldens.HERE)
        print(name, file=sys.stderr)
    record["cases"] = {name: record["cases"][name] for name in goldens.CASES}
    goldens.GOLDEN.write_text(written(record))


if __name__ == "__main__":
    main(sys.argv[1:])
