"""Write `golden.json`: what the code as it stands makes of each case.

    PYTHONPATH=. python tests/golden/record.py [CASE ...]

Record only where results are meant to change: a run of the test against an older record is what
shows that nothing else did. Naming cases replaces only those. On any machine that is right, because
what is recorded holds everywhere. The files in `fixtures/` are not written again: they are what
older code left.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

import goldens


def written(record):
    """JSON with a line for each block of tensors, output and number, in columns, so that a change
    shows in a diff and can be read there."""
    cases = []
    for name, case in record.items():
        parts = []
        for part, values in case.items():
            wide = max(map(len, values)) + 2
            lines = [f"   {json.dumps(k):{wide}}: {_columns(v)}" for k, v in values.items()]
            parts.append(f"  {json.dumps(part)}: {{\n" + ",\n".join(lines) + "}")
        cases.append(f" {json.dumps(name)}: {{\n" + ",\n".join(parts) + "}")
    return "{\n" + ",\n".join(cases) + "\n}\n"


def _columns(value):
    """A row in columns, or numbers and words as they are."""
    if not isinstance(value, list) or not isinstance(value[0], str):
        return json.dumps(value)
    kind, *numbers = value
    return f"[{json.dumps(kind) + ',':22} {', '.join(f'{json.dumps(v):>11}' for v in numbers)}]"


def recorded(name):
    """Run a case in a folder of its own, and return its rows by part, without empty parts."""
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        goldens.furnish(Path())
        parts = goldens.rows(goldens.measure(name))
        os.chdir(goldens.HERE)
    return {part: values for part, values in parts.items() if values}


def main(names):
    """Measure the named cases, or all."""
    record = json.loads(goldens.GOLDEN.read_text()) if names else {}
    for name in names or goldens.CASES:
        record[name] = recorded(name)
        print(name, file=sys.stderr)
    goldens.GOLDEN.write_text(written({name: record[name] for name in goldens.CASES}))


if __name__ == "__main__":
    main(sys.argv[1:])
