"""What do all the speed benchmarks say, on one page? Renders docs/performance.md.

Alone it renders what lies in benchmarks/results/ and leaves out what does not; with --run it
measures first, which takes under an hour. The quality of few evaluations needs images: DATA is
Fashion-MNIST's training part. `time_to_quality.py` is run by itself.

    python benchmarks/report.py
    python benchmarks/report.py --run DATA
    python benchmarks/report.py --run DATA --skip loading,startup
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from sections import SECTIONS, on

HERE = Path(__file__).resolve().parent
RESULTS, DOCS = HERE / "results", HERE.parent / "docs"

HEAD = """# Performance

The speed and memory of `diffuse` compared with its alternatives, on one machine. This page is
written by `python benchmarks/report.py` from `benchmarks/results/`; under each result is the name
of the script that made it, whose first lines explain it.

All of it is from two cores of an AMD EPYC with AVX-512 and bfloat16, which `auto` chooses there.
With AVX2 alone, in float32, a step takes nearly five times as long, and is 1.12 times as fast as
diffusers' best (`train_step-avx2.json`).

## What a user gets

One core, every default unless a row says otherwise, KID × 1000 of 1,000 samples (500 at 64×64),
`minutes.json`:

| | 1 minute | 5 | 10 | 30 |
|---|---|---|---|---|
| Fashion-MNIST, 32×32 | 226: garments with holes | 78: most are whole | 50 | 37 |
| CIFAR-10, 32×32 | | | 149: animals and vehicles in their surroundings | |
| emoji, 64×64, drawn as `tune` says | | | 421: faces, people, flags on white | |
| Tiny ImageNet, 64×64, the same, `--weak-after 0.25` | | | 289: skies, shores, rooms | |

`--preset slim` has 67 on Fashion-MNIST after four minutes (mean of three runs;
[how](../benchmarks/README.md#narrow-at-full-size)), which took AdamW, the default before Muon, ten.

## Quality for time

How good are samples after ten minutes of one core, ours by default and those of other libraries
after 40 minutes of search for the best settings? The other libraries get every option that they
offer and `diffuse` uses, and more:
[the comparison](../benchmarks/README.md#quality-for-time) says which. By KID, the defaults of
`diffuse` are as good as the best settings found for diffusers, within two errors. By features of
random weights, diffusers is better: samples of `diffuse` are too bright by 8 levels of 255. A step
of ours takes 1.7 times as long on this machine as on that of the first table. CIFAR-10 is not
measured yet.
"""

# -- measuring ------------------------------------------------------------------------------------


def commands(options: argparse.Namespace, model: Path) -> dict[str, list[str]]:
    """The command behind each result, quick ones first."""
    return {
        "startup": ["startup.py"],
        "roofline": ["roofline.py"],
        "train_step": ["train_step.py", "--compile"],
        "budget": ["train_step.py", "--budget"],
        "growth": ["growth.py"],
        "loading": ["loading.py"],
        "sampling": ["sampling.py", options.run, str(model)],
    }


def say(line: str) -> None:
    """A line on stderr."""
    print(line, file=sys.stderr, flush=True)


def measure(options: argparse.Namespace, folder: Path) -> None:
    """Run every benchmark that is there and not skipped, and keep what it prints."""
    model = options.model or folder / "model.safetensors"
    skipped = options.skip.split(",")
    for name, (script, *arguments) in commands(options, model).items():
        if name in skipped or (options.only and name not in options.only.split(",")):
            continue
        if not (HERE / script).exists():
            say(f"{name}: there is no {script}")
            continue
        if name == "sampling" and not model.exists():
            run(["-m", "diffuse_cli", "train", options.run, "-o", str(model), "--size", "32",
                 "--minutes", str(options.minutes), "--quiet"])  # fmt: skip
        began = time.monotonic()
        text = run([str(HERE / script), *arguments])
        json.loads(text)
        (RESULTS / f"{name}.json").write_text(text)
        say(f"{name}: {(time.monotonic() - began) / 60:.1f} minutes")


def run(arguments: Sequence[str]) -> str:
    """What a Python command prints."""
    command = [sys.executable, *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


# -- the page -----------------------------------------------------------------------------------


def render() -> str:
    """The page, of the results that there are."""
    page = [HEAD]
    for name, (title, script, write) in SECTIONS.items():
        path = RESULTS / f"{name}.json"
        if not path.exists():
            continue
        result = json.loads(path.read_text())
        machine = (result[0] if isinstance(result, list) else result).get("machine")
        page += [f"## {title}\n", *write(result)]
        page += [f"<sub>`{script}`{f'; {on(machine)}' if machine else ''}</sub>\n"]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(page))


def main() -> None:
    """Measure where asked, and render."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", metavar="DATA", help="measure first")
    parser.add_argument("--model", type=Path, help="of DATA; otherwise one is trained")
    parser.add_argument("--minutes", type=float, default=10.0, help="to train it")
    parser.add_argument("--skip", default="", metavar="NAME,...", help=", ".join(SECTIONS))
    parser.add_argument("--only", metavar="NAME,...")
    options = parser.parse_args()
    if options.run:
        with tempfile.TemporaryDirectory() as folder:
            measure(options, Path(folder))
    page = DOCS / "performance.md"
    page.write_text(render())
    print(json.dumps({"page": str(page)}))


if __name__ == "__main__":
    main()
