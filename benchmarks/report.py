"""Render docs/performance.md from the results of the speed benchmarks.

Without options it renders the results in benchmarks/results/. With --run it measures them first,
which takes under an hour. DATA is the training part of Fashion-MNIST, for the quality of few
evaluations. Run `time_to_quality.py` separately.

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

Speed, memory and sample quality of `diffuse`, compared with the libraries that you could use
instead (the baselines). `python benchmarks/report.py` writes this page. Each result names the
script that measured it, whose first lines describe the method. For the experiments behind the
defaults, see [benchmarks](../benchmarks/README.md).

Unless a section names another machine, results are from two cores of an AMD EPYC with AVX-512 and
bfloat16, which `--precision auto` chooses there. GPUs are not measured. With AVX2 only, `diffuse`
computes in float32. A step then takes nearly five times as long. It is 1.12 times as fast as
diffusers with its best settings, and denoising-diffusion-pytorch, which needs a quarter fewer
operations, is 1.15 times as fast as `diffuse` (`train_step-avx2.json`).

## Photographs at 128 pixels

```
diffuse train ./photos --size 128 --minutes 150 -o flowers.safetensors
diffuse sample flowers.safetensors -n 21 -o samples/
```

<img src="images/flowers-128.png" width="640" alt="21 samples of flowers at 128×128">

The first 21 samples after 150 minutes on one core, on 2,968 photos of daisies, dandelions, roses,
sunflowers and tulips, with the default settings of November 29. Other programs shared the core: the
run saw 211,000 images, which takes about 60 minutes of a free core. At its end `train` recommended
guidance at 1.5.

## Quality for time

How good are samples after ten minutes on one core, from `diffuse train DATA --size 128 --minutes
10` (or 64 or 32 pixels), and from diffusers with the same recipe: target, weighting, optimizer,
rate, batch, patches and solver, in a training loop of your own
([method](../benchmarks/README.md#quality-for-time))? Both ran at the same time, a core each. There
is one seed, so read small differences as none. Ratios are of KID.

- **Flowers at 128×128:** `diffuse` has 0.53 of the KID of diffusers, which lacks the [Wiener
  filter](../benchmarks/README.md#the-wiener-filter). Recall is 0.19 for 0.03, brightness within 3
  levels for 10, and the spread of means 0.89 for 0.51. `diffuse` has blossoms on backgrounds,
  diffusers mixtures of petals, and neither has many whole flowers.
- **Flowers at 64×64:** 0.49, 0.44 and 0.53 after one, five and ten minutes, and 0.83 without the
  guidance that the model file recommends. Recall after ten minutes is 0.22 for 0.08, and brightness
  within 2 levels for 6.
- **CIFAR-10:** 1.51, 0.91 and 0.82 after one, five and ten minutes. In one minute `diffuse` is
  behind: it also reads 50,000 files, measures steps and makes previews, so it takes 1,044 steps for
  1,489. Recall after ten minutes is 0.19 for 0.12. Few subjects can be recognized in either.
- **Emoji at 64×64:** 0.93, and without guidance `diffuse` is behind (1.12). It takes 4,424 steps
  for 5,341, and the contrast of unguided samples is 0.90 of the real one for 0.99. Brightness is
  within 1 level for 8. Many faces are whole in both.
- **Fashion-MNIST:** equal within their errors (55 ± 4 for 53 ± 4). Nothing is recommended, and
  `diffuse` also makes previews, checkpoints and trials of sampling in its time.

The rate of diffusers is bracketed on CIFAR-10: KID is 161 at half of it and 167 at twice, for 159.
Earlier comparisons are withdrawn: their baselines had slower optimizers, other initial weights and
recipes from trials of four minutes, and on an Intel Xeon half as fast trials had too few samples to
recommend guidance for emoji and flowers at 128×128. An hour, other seeds and
denoising-diffusion-pytorch have not been measured again.
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
    """Run a Python command and return its standard output."""
    command = [sys.executable, *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


# -- the page -----------------------------------------------------------------------------------


def render() -> str:
    """Return the page with all results that exist."""
    measured = (RESULTS / "gpu.json").exists()
    page = [HEAD.replace("GPUs are not measured. ", "") if measured else HEAD]
    for name, (title, script, write) in SECTIONS.items():
        path = RESULTS / f"{name}.json"
        if not path.exists():
            continue
        result = json.loads(path.read_text())
        rows = result if isinstance(result, list) else [result]
        machines = dict.fromkeys(on(row["machine"]) for row in rows if "machine" in row)
        page += [f"## {title}\n", *write(result)]
        page += [f"<sub>{'; '.join([f'`{script}`', *machines])}</sub>\n"]
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
