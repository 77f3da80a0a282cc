"""Does the working tree compute the same bits as another commit?

Runs the cases of `tests/golden` with the package of COMMIT and with that of the working tree, each
with one thread, and compares the SHA-256 of each tensor, sample and number. Names the cases that
differ, and exits with 1 if any differs, or if none can be compared. Both run the cases of the
working tree. A case with an option or a file that COMMIT does not know is not compared.

    python benchmarks/same_bits.py COMMIT [CASE ...]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "golden"

Hashes = dict[str, str] | str
"""SHA-256 of each result of a case, or the message of the command that failed."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("commit", metavar="COMMIT", help="a commit, or a package with --hash")
    parser.add_argument("cases", nargs="*", metavar="CASE", help="cases to run (default: all)")
    parser.add_argument("--hash", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.hash:
        print(json.dumps(hash_cases(Path(options.commit), options.cases)))
        return
    with worktree(options.commit) as tree:
        runs = [start(tree, options.cases), start(ROOT, options.cases)]
        old, new = (json.loads(run.communicate()[0] or "{}") for run in runs)
    if any(run.returncode for run in runs):
        sys.exit("The cases did not run. See the error above.")
    sys.exit(report(old, new, options.commit))


@contextmanager
def worktree(commit: str) -> Iterator[Path]:
    """Check out a commit into a temporary folder."""
    git = ["git", "-C", str(ROOT), "worktree"]
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder, "tree").resolve()
        subprocess.run([*git, "add", "--quiet", "--detach", tree, commit], check=True)
        try:
            yield tree
        finally:
            subprocess.run([*git, "remove", "--force", tree], check=True)


def start(tree: Path, cases: list[str]) -> subprocess.Popen[str]:
    """Start a process that hashes the results of cases with the package of a tree."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--hash", str(tree), *cases]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def hash_cases(tree: Path, names: list[str]) -> dict[str, Hashes]:
    """Run cases with the package of a tree, and return their hashes."""
    sys.path.insert(0, str(GOLDEN))
    import goldens

    import diffuse_cli

    assert Path(diffuse_cli.__file__).is_relative_to(tree), diffuse_cli.__file__
    hashes: dict[str, Hashes] = {}
    for name in names or goldens.CASES:
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            goldens.furnish(Path())
            try:
                hashes[name] = goldens.hashes(goldens.measure(name))
            except Exception as error:  # whatever another version does with a case it does not know
                hashes[name] = str(error).strip() or type(error).__name__
            os.chdir(ROOT)
    return hashes


def report(old: dict[str, Hashes], new: dict[str, Hashes], commit: str) -> int:
    """Print the cases that differ or cannot be compared, and return the exit code.

    Results that only the working tree has are not compared.
    """
    equal, wrong = 0, 0
    for name, now in new.items():
        was = old[name]
        if isinstance(now, str):
            print(f"{name}: fails in the working tree: {now.splitlines()[-1]}")
            wrong += 1
        elif isinstance(was, str):
            print(f"{name}: not compared, because {commit} fails: {was.splitlines()[-1]}")
        elif differing := [key for key in was if was[key] != now.get(key)]:
            more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
            print(f"{name}: {len(differing)} of {len(was)} results differ: ", end="")
            print(", ".join(differing[:3]) + more)
            wrong += 1
        else:
            equal += 1
    print(f"{equal} of {len(new)} cases have the same bits, {wrong} do not")
    return 1 if wrong or not equal else 0


if __name__ == "__main__":
    main()
