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

The speed and memory of `diffuse` compared with its alternatives. Each ratio was measured in one
run on one machine. This page is written by `python benchmarks/report.py` from
`benchmarks/results/`; under each result is the name of the script that made it, whose first lines
explain it.

The machine is named below each result. The training step, its parts, the cost of growth, loading,
start-up, the roof, the distilled models and the pictures of 64×64 were measured on a
processor that has AVX2 alone, so that everything there computes in float32; the quality for time
of clothes and of photos of 32×32 on one that has bfloat16, and sampling on an older one, whose
bfloat16 is half as fast as its float32, with a `tiny` of 1.7 M parameters. Where there is
bfloat16, the step is 1.24 times as fast as diffusers' best and 2.1 times as fast as its default
(`train_step-bf16.json` there).

Each contender runs in its own process with its own settings. In the comparisons of quality for
time, peers have networks of the same shape and sample with 25 evaluations of one of their fast
samplers; diffusers' was the best of six (`peer_solvers.py`). Its learning rate of 8e-3 with
batches of 64 was the best of those tried in short runs, but diverged in a long one.

What a user gets on one core with bfloat16: of Fashion-MNIST at 32×32 a KID × 1000 of 258 after one
minute, 85 after four and with `--preset slim` 67 (means of three runs; AdamW took ten for 70;
[how](../benchmarks/README.md#narrow-at-full-size)); of CIFAR-10, after ten, animals and vehicles in
their surroundings, a recall of 0.13, and means that vary as much as real ones. With AVX2 alone
clothes have 138 after about ten minutes, or 16 wide 212 after four and 120 after about ten; among
emoji of 64×64 one recognises heads and faces after ten. Thirty minutes were not measured.

For emoji, diffusers' learning rate of 2e-3 and its batches of 16 were not tuned again for ten
minutes there, and denoising-diffusion-pytorch was not run; of it for photos of 64×64, and of both
peers for those of 32×32, one rate was tried. `diffuse-tuned` is drawn as `diffuse tune` recommends
for held-out images: photos of 32×32 as by default; emoji, and photos of 64×64 from a Gaussian
start, guided by its early average at 3. Of emoji it was trained on another day than the peer, at 68
images a second where the plain run had 55; they are faces and people then. The photos of 64×64,
crops of desktop backgrounds, are nearly flat and saturated: KID likes them better than clouds with
edges, as it does tiles of noise (386, from a peer of two minutes).

Clothes and sampling were measured before Muon became the default optimizer, and sampling before
`tiny` cut pictures of 64 pixels into patches. What that changes is in the
[benchmarks](../benchmarks/README.md#the-recipe).
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
