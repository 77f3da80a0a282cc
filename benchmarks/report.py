"""What do all the speed benchmarks say, on one page? Renders docs/performance.md.

Alone it renders what lies in benchmarks/results/ and leaves out what does not; with --run it
measures first, which takes hours with the benchmarks of time to quality and under one without.
Those and the quality of few evaluations need images: DATA is Fashion-MNIST's training part.

    python benchmarks/report.py
    python benchmarks/report.py --run DATA --real TEST --emoji E --photos P --photos-32 Q
    python benchmarks/report.py --run DATA --skip time-to-quality-fashion,time-to-quality-emoji
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
Quality for time is of one core, with another contender on the other. With AVX2 alone, in float32, a
step takes nearly five times as long, and is 1.12 times as fast as diffusers' best
(`train_step-avx2.json`).

## What a user gets

One core, every default unless a row says otherwise, KID × 1000 of 1,000 samples (500 at 64×64):

| | 1 minute | 5 | 10 | 30 |
|---|---|---|---|---|
| Fashion-MNIST, 32×32 | 226: garments with holes | 78: most are whole | 50 | 37 |
| CIFAR-10, 32×32 | | | 149: animals and vehicles in their surroundings | |
| emoji, 64×64, drawn as `tune` says | | | 421: faces, people, flags on white | |
| Tiny ImageNet, 64×64, the same, `--weak-after 0.25` | | | 289: skies, shores, rooms | |

`--preset slim` has 67 on Fashion-MNIST after four minutes (mean of three runs;
[how](../benchmarks/README.md#narrow-at-full-size)), which took AdamW, the default before Muon, ten.

## How it was compared

Each contender runs in its own process with its own settings. Peers have networks of the same shape
and sample with 25 evaluations of one of their fast samplers; diffusers' was the best of six
(`peer_solvers.py`). Where a table lists learning rates, they were tried in short runs, and the best
was taken, except on clothes: 8e-3 diverged there in a long run. Elsewhere peers have 2e-3.

Ours of 10 minutes were measured some hours after the peers, when `--minutes` had come to
choose batches of 32 for them. On other days, on such a machine: the peers on photos of 32×32, and
denoising-diffusion-pytorch at 64×64, the day before; peers with their own settings, and the trials
on clothes, earlier.

`diffuse-tuned` is drawn as `diffuse tune` recommends for held-out images, with 20 evaluations:
photos of 32×32 as by default; emoji guided by the early average at 2; photos of 64×64 guided at 4,
from a Gaussian start. There the average is that after a quarter of the run (`--weak-after 0.25`),
which paired runs chose ([how](../benchmarks/README.md#guidance-by-a-weaker-model)).

So KID is 0.55 of the best tuned peer's on emoji, and 0.54 on photos of 64×64; there seeds 1 and 2
have 327 and 309, so 0.58 in the mean. Guided pictures have too strong contrast; from a Gaussian
start alone they are painterly and in natural colours, at 506 to 512. The peer's are coloured
textures. On another set, crops of desktop backgrounds, the ratio to the best ten-minute peer was
0.53 (`time-to-quality-crops.json`, AVX2 alone).
"""

# -- measuring ------------------------------------------------------------------------------------


def commands(options: argparse.Namespace, model: Path) -> dict[str, list[str]]:
    """The command behind each result, quick ones first; emoji and photos where given."""
    data = options.run
    quality = ["time_to_quality.py", "--tune"]
    real = ["--real", options.real] if options.real else []
    found = {
        "startup": ["startup.py"],
        "roofline": ["roofline.py"],
        "train_step": ["train_step.py", "--compile"],
        "budget": ["train_step.py", "--budget"],
        "growth": ["growth.py"],
        "loading": ["loading.py"],
        "sampling": ["sampling.py", data, str(model)],
        "time-to-quality-fashion": [*quality, data, *real, "--size", "32", "--name", "fashion"],
    }
    for name, size, images in (
        ("photos-32", 32, options.photos_32),
        ("emoji", 64, options.emoji),
        ("photos", 64, options.photos),
    ):
        if images:
            typed = [*quality, images, "--size", str(size), "--name", name]
            found[f"time-to-quality-{name}"] = typed
    return found


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
    parser.add_argument("--real", help="images that time to quality measures DATA against")
    parser.add_argument("--photos-32", help="images for time to quality at 32x32, in colour")
    parser.add_argument("--emoji", help="images for time to quality at 64x64")
    parser.add_argument("--photos", help="the same")
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
