"""Sections of docs/performance.md: captions, tables and plots of each result."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import plots

HERE = Path(__file__).resolve().parent
IMAGES, RESULTS = HERE.parent / "docs" / "images", HERE / "results"

Lines = Iterator[str]
Result = Any


HEADINGS = {
    "images_per_s": "images/s",
    "seconds": "s",
    "fastest_seconds": "least s",
    "gflop_per_s": "GFLOP/s",
    "gflop_per_image": "GFLOP per image",
    "peak_mib": "peak MiB",
    "over_imports_mib": "beyond imports",
    "mib": "MiB",
}
"""Default column headings of result keys."""


# -- parts of a page ------------------------------------------------------------------------------


def shown(value: Any) -> str:
    """Format a value for a table."""
    if value is None or value == []:
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    if isinstance(value, (dict, list)):
        parts = value.items() if isinstance(value, dict) else enumerate(value)
        return ", ".join(
            shown(v) if isinstance(value, list) else f"{k} {shown(v)}" for k, v in parts
        )
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def table(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str] | None = None) -> Lines:
    """Render a table. `columns` maps keys to headings, by default all keys of the rows."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    columns = columns or {key: HEADINGS.get(key, key.replace("_", " ")) for key in keys}
    used = {key: title for key, title in columns.items() if key in keys}
    yield f"| {' | '.join(used.values())} |"
    yield f"|{'---|' * len(used)}"
    for row in rows:
        yield f"| {' | '.join(shown(row.get(key)) for key in used)} |"
    yield ""


def on(machine: Mapping[str, Any]) -> str:
    """Describe the machine of a measurement."""
    has = ", ".join(machine.get("extensions", ()))
    gpu = f"{machine['gpu']}, " if "gpu" in machine else ""
    with_them = f" ({has})" if has else ""
    threads = f"{machine['threads']} thread{'s' * (machine['threads'] != 1)}"
    return f"{gpu}{machine['processor']}{with_them}, {threads}, torch {machine['torch']}"


def picture(name: str, content: bytes, words: str) -> Lines:
    """Write a plot to docs/images and render its link."""
    (IMAGES / f"{name}.png").write_bytes(content)
    yield f"![{words}](images/{name}.png)\n"


# -- sections -------------------------------------------------------------------------------------

RATIOS = {
    "ratio_to_peer_best": "diffusers' best",
    "ratio_to_peer_default": "diffusers' default",
    "ratio_to_peer_best_compiled": "diffusers' best, both compiled",
}


def ratios(result: Mapping[str, Any], noun: str) -> str:
    """Return a sentence with the ratios in a result."""
    found = [f"{result[key]:.2f} × {words}" for key, words in RATIOS.items() if key in result]
    return f"{noun}: **{', '.join(found)}**.\n" if found else ""


def training_step(result: Result) -> Lines:
    yield (
        "A training step of the DDPM CIFAR-10 network (35.7 M parameters) on "
        f"{result['batch_size']} images of 32×32, with gradient clipping and the optimizer. Only "
        "the step of `diffuse` also draws noise and updates EMA weights. Contenders take turns, "
        "and values are medians. GFLOP/s counts the operations of the published architecture. The "
        "network of denoising-diffusion-pytorch has a quarter fewer.\n"
    )
    yield ratios(result, "Images per second of `diffuse`")
    names = ("images_per_s", "seconds", "gflop_per_s", "peak_mib", "over_imports_mib")
    yield from table(result["contenders"], {"contender": "", **{n: HEADINGS[n] for n in names}})


def budget(result: Result) -> Lines:
    yield (
        f"A step takes {1e3 * result['seconds']:,.0f} ms. It would take "
        f"{1e3 * result['seconds_at_the_roof']:,.0f} ms at the roof of this machine, where every "
        "convolution is as fast as one by itself and every pass over memory as fast as a copy. The "
        "roof counts the least work of the published architecture. Above 100%, `diffuse` saves "
        "work, or data stays in the caches.\n"
    )
    drawn = plots.budget(result["parts"], result["seconds"])
    yield from picture("budget", drawn, "Time of each part of a training step")
    shares = ("share_of_step", "share_of_roof")
    parts = [{k: f"{v:.1%}" if k in shares else v for k, v in p.items()} for p in result["parts"]]
    yield from table(parts, {
        "part": "", "ms": "ms", "share_of_step": "of the step",
        "ms_at_the_roof": "ms at the roof", "share_of_roof": "of the roof",
    })  # fmt: skip


SEEN = {
    "kid_x1000": ("KID × 1000", 1), "kid_random_x1000": ("random KID × 1000", 1),
    "frechet_distance": ("Fréchet", 0), "precision": ("precision", 3), "recall": ("recall", 3),
    "means": ("means", 3), "within": ("within", 3), "detail": ("detail", 3),
    "brightness": ("brightness", 1),
}  # fmt: skip
"""Heading and digits of each metric of a run."""


def quality(result: Result) -> Lines:
    """Render the runs of a data set: means over seeds with standard errors, and settings."""
    first = result[0]
    groups: dict[tuple[str, float], list[Any]] = {}
    for row in sorted(result, key=lambda row: (row["minutes"], CONTENDERS.index(row["contender"]))):
        groups.setdefault((row["contender"], row["minutes"]), []).append(row)
    yield (
        f"CPU time on one core, {first['size']}×{first['size']}, then {first['n']:,} samples "
        f"against {first['n']:,} test images. Values are means over seeds ± 1 standard error, of "
        "one seed that of the samples. KID uses EfficientNet-Lite0, random KID a network with "
        "random weights. Fractions of the test set's values: the standard deviation of the images' "
        "means, the standard deviation within images, and the mean absolute Laplacian (detail). "
        "Brightness is in levels above the test set's.\n"
    )
    heads = {key: {"": key[0], "minutes": key[1]} for key in groups}
    means = [
        {**heads[key], "seeds": len(rows), **{k: spread(rows, k) for k in SEEN}}
        for key, rows in groups.items()
    ]
    headings = {k: words for k, (words, _) in SEEN.items()}
    yield from table(means, {"": "", "minutes": "minutes", "seeds": "seeds", **headings})
    yield "Settings of each contender, by seed where seeds differ:\n"
    trained = [
        {**heads[key], **{k: value for k in TRAINED if (value := per_seed(rows, k))}}
        for key, rows in groups.items()
    ]
    yield from table(trained, {"": "", "minutes": "minutes", **TRAINED})
    differing = {key[0]: rows[0]["differs"] for key, rows in groups.items() if rows[0]["differs"]}
    for contender, differs in differing.items():
        found = [f"{what}: {words}" for what, words in differs.items()]
        yield f"`{contender}` differs from `diffuse` in {', and in '.join(found)}.\n"


CONTENDERS = (
    "diffuse", "diffuse, unguided", "diffusers", "diffusers, 2M SDE", "diffusers, rate × 2",
    "diffusers, rate × 0.5", "ddpm-pytorch",
)  # fmt: skip
"""Contenders in the order of the page."""

TRAINED = {
    "parameters": "parameters", "patch": "patch", "groups": "groups", "arithmetic": "arithmetic",
    "lr": "rate", "batch": "batch", "steps": "steps", "training_cpu_seconds": "CPU s",
    "training_seconds": "wall s", "solver": "sampler", "guidance": "guidance",
    "evaluations": "evaluations",
}  # fmt: skip
"""Settings of a run, and their headings."""


def spread(rows: Sequence[Mapping[str, Any]], key: str) -> str:
    """Return the mean over seeds and its standard error; of one seed, that of the samples."""
    values, digits = [row[key] for row in rows], SEEN[key][1]
    of_samples = rows[0].get(f"{key}_standard_error")
    error = stdev(values) / len(values) ** 0.5 if len(values) > 1 else of_samples
    return f"{mean(values):.{digits}f}" + (f" ± {error:.{digits}f}" if error is not None else "")


def per_seed(rows: Sequence[Mapping[str, Any]], key: str) -> Any:
    """Return the value that all seeds share, or one value per seed."""
    values = [shown(row.get(key)) for row in rows]
    return values[0] if len(set(values)) == 1 else ", ".join(values)


def sampling(result: Result) -> Lines:
    yield (
        "Time of one network evaluation during sampling, median, compared with diffusers' network "
        "of the same shape without gradients.\n"
    )
    for part in result["evaluation"]:
        yield f"**{part['network']}, batch {part['batch_size']}**\n"
        yield ratios(part, "Evaluations per second of `diffuse`")
        columns = {"contender": "", "ms": "ms", "peak_mib": "peak MiB"}
        yield from table(part["contenders"], {**columns, "over_imports_mib": "beyond imports"})
    if "quality" in result:
        yield from few(result["quality"])


def few(found: Mapping[str, Any]) -> Lines:
    """Render the fewest evaluations that are as good as 1000 steps of DDPM."""
    base = found["reference"]
    yield (
        f"How few evaluations are enough? KID against {found['real']:,} held-out images, one seed. "
        f"The reference is `{base['sampler']}` with {base['evaluations']:,} steps. "
        + " ".join(
            f"`{name}` first reaches the reference's KID with {best['at_most'] or 'more'} "
            "evaluations, and comes within two standard errors of it with "
            f"{best['within_two_errors'] or 'more'}."
            for name, best in found["fewest"].items()
        )
        + "\n"
    )
    series: dict[str, list[tuple[float, float, float]]] = {}
    for row in found["few"]:
        point = (row["evaluations"], row["kid"], row["kid_standard_error"])
        series.setdefault(row["sampler"], []).append(point)
    drawn = plots.lines(
        "Quality by evaluations", "KID with its standard error; log x", series,
        ("network evaluations", "KID"), (f"{base['sampler']}, {base['evaluations']}", base["kid"]),
    )  # fmt: skip
    yield from picture("evaluations", drawn, "KID over network evaluations")
    yield from table([base, *found["few"]], {
        "sampler": "", "evaluations": "evaluations", "n": "images", "kid": "KID",
        "kid_standard_error": "±", "seconds_for_64": "s for 64 images",
    })  # fmt: skip


def distilled(result: Result) -> Lines:
    """Render KID of one to eight evaluations of models and of their distilled versions."""
    yield (
        "A model trained for ten minutes on one core, and the same model after five minutes of "
        "`diffuse distill`. KID is against held-out images, from the same noise. One seed.\n"
    )
    for name in dict.fromkeys(row["name"] for row in result):
        rows = []
        for run in (row for row in result if row["name"] == name):
            for found in run["results"]:
                rows.append({"": f"{run['row']}, `{found['sampler']}`", **found})
        yield f"**{name}**, {result[0]['n']:,} samples\n"
        yield from table(rows, {
            "": "", "evaluations": "evaluations", "kid": "KID × 1000", "kid_standard_error": "±",
            "recall": "recall", "ms_an_image": "ms per image",
        })  # fmt: skip


def grown(result: Result) -> Lines:
    yield "Training steps of the `tiny` network. Each table varies one setting.\n"
    yield from picture("growth", plots.growth(result["series"]), "Speed and memory over size")
    for rows in result["series"].values():
        yield from table(rows)


KINDS = {
    "small": "small PNGs", "photos": "photos of 2000×1500 as JPEG",
    "squares": "photos of 256×256 as JPEG", "imagenet": "photos of 500×400 as JPEG",
}  # fmt: skip


def loading(result: Result) -> Lines:
    yield (
        "`train` and `eval` check, decode, hash and resize every image once. The baseline is "
        "torchvision's `ImageFolder` with a `DataLoader`, which decodes in every epoch. Files are "
        "in the page cache.\n"
    )
    for kind, found in result["sets"].items():
        train, over = found["training"], found["over_decoding_alone"]
        height, width = train["size"]
        yield (
            f"**{found['images']:,} {KINDS[kind]}** ({found['bytes_each']:,} bytes each), read as "
            f"{height}×{width}\n"
        )
        words = {name: name.replace("ours", "`diffuse`") for name in found["reading"]}
        yield from table([{"": words[name], **row} for name, row in found["reading"].items()])
        yield (
            f"`diffuse` is {found['ratio_to_peer']:.2f} times as fast as the baseline. Work "
            f"beyond decoding adds {over['one core']:.0%} to the decoding time on one core, "
            f"{over['all cores']:.0%} on {result['cores']}. A training step of `tiny` then waits "
            f"{1e3 * train['fetch_seconds']:.2f} ms of {1e3 * train['step_seconds']:.0f} ms for "
            "its batch.\n"
        )
    if "squares" in result["sets"]:
        yield (
            "torchvision's decoder is faster than Pillow. `diffuse` uses Pillow all the same, "
            "because only Pillow gives orientation and color profiles, and `diffuse` decodes each "
            "image once. Photos of 500×400 need three cores for 500 images per second.\n"
        )


def starting(result: Result) -> Lines:
    yield (
        "Time of a process from start to end, medians. `sample` uses an untrained `tiny` model at "
        f"28×28. Importing torch takes {result['torch_share_of_sample']:.0%} of its time.\n"
    )
    yield from table([{"": name, **row} for name, row in result["commands"].items()])
    yield "Packages that `sample` imports, by the time in their own files, while profiled:\n"
    packages = result["imports"]["sample"].items()
    yield from table([{"": name, **row} for name, row in packages])


def roof(result: Result) -> Lines:
    yield (
        "The highest speeds of this machine: 3×3 channels-last convolutions (GFLOP/s, named "
        "channels@side), matrix products, and memory (GB/s), inside and outside the caches.\n"
    )
    for key in ("convolution_gflop_per_s", "matmul", "memory_gb_per_s"):
        rows = [{k: v for k, v in r.items() if k not in ("channels", "side")} for r in result[key]]
        yield from table(rows)


TITLES = {
    "fashion-mnist": "Fashion-MNIST", "cifar-10": "CIFAR-10",
    "flowers-64": "flowers at 64 pixels", "emoji-64": "emoji at 64 pixels",
    "flowers-128": "flowers at 128 pixels",
}  # fmt: skip
"""Titles of the data sets of `time_to_quality.py`."""

Section = tuple[str, str, Callable[[Result], Lines]]


def widths(result: Result) -> Lines:
    """Render hours of training with networks of several widths."""
    yield (
        "`diffuse train DATA --size 32 --minutes 60 --width W` on one core, CIFAR-10, one seed, "
        "`--weighting min-snr`, 1,000 samples, judged as above. 32 channels are the default. The "
        "held-out loss of 64 channels is lower after half an hour, and their KID after an hour is "
        "no better than chance allows. So one width serves runs of up to an hour, and `--width 64` "
        "may pay in longer ones.\n"
    )
    series = {
        f"{row['width']} channels": [(x, 1000 * y, 0.0) for x, y in row["held_out_loss"][1:]]
        for row in result
    }
    drawn = plots.lines(
        "Held-out loss of two widths", "CIFAR-10, one core; log x", series,
        ("minutes of training", "held-out loss × 1000"), marks=(15, 20, 30, 45, 60),
    )  # fmt: skip
    yield from picture("widths", drawn, "Held-out loss over minutes for 32 and 64 channels")
    shown = ("width", "parameters", "steps", "held-out loss × 1000")
    losses = ({**row, shown[3]: 1000 * row["held_out_loss"][-1][1]} for row in result)
    yield from table(
        [{**{k: row[k] for k in shown}, **{k: spread([row], k) for k in SEEN}} for row in losses],
        {**{k: k for k in shown}, **{k: words for k, (words, _) in SEEN.items()}},
    )


def quality_sections(folder: Path) -> dict[str, Section]:
    """Return the sections of the data sets in a folder, by size and name."""
    found = []
    for path in folder.glob("quality-*.json"):
        name = path.stem.removeprefix("quality-")
        found.append((json.loads(path.read_text())[0]["size"], name, path.stem))
    return {
        stem: (f"Quality for time: {TITLES.get(name, name)}", "time_to_quality.py", quality)
        for _, name, stem in sorted(found)
    }


def gpu(result: Result) -> Lines:
    """Render training steps by size, and the quality of a run; nothing of a dry run."""
    if result["dry"]:
        yield "This was a dry run without a GPU.\n"
        return
    yield (
        "Images per second and peak GPU memory of a training step, with the preset that `train` "
        "chooses on a GPU. diffusers' `UNet2DModel` is at its best setting. It has no patches, so "
        "where the preset has patches, it is the same preset at full resolution.\n"
    )
    rows = []
    for side in dict.fromkeys(row["side"] for row in result["step"]):
        at = [row for row in result["step"] if row["side"] == side and "images_per_s" in row]
        own = [row for row in at if row["contender"] == "diffuse"]
        eager, compiled = (
            [r for r in own if ("compiled" in r["setting"]) is c] for c in (False, True)
        )
        peer = sorted((r for r in at if r not in own), key=lambda r: -float(r["images_per_s"]))
        row = {"": f"{side}×{side}, `{own[0]['preset']}`" if own else f"{side}×{side}"}
        row["patch"] = own[0]["patch"] if own else ""
        for name, found in (("eager", eager), ("compiled", compiled), ("diffusers", peer)):
            if found:
                row[name], row[f"{name}_mib"] = found[0]["images_per_s"], found[0]["peak_mib"]
        rows.append({**row, "setting": peer[0]["setting"] if peer else ""})
    yield from table(rows, {
        "": "", "patch": "patch", "eager": "`diffuse`, images/s", "eager_mib": "MiB",
        "compiled": "compiled", "compiled_mib": "MiB", "diffusers": "diffusers",
        "diffusers_mib": "MiB", "setting": "its setting",
    })  # fmt: skip
    yield "Relative errors of a network's output and gradient, against a CPU in float32:\n"
    yield from table(result["parity"])
    run, found = result["quality"]["train"], result["quality"]["eval"]
    yield (
        f"`train --minutes {result['quality']['minutes']:g}` on {run['images']:,} images takes "
        f"{run['steps']:,} steps. KID × 1000 of its samples against held-out images: "
        f"{1000 * found['kid']:.1f} ± {1000 * found['kid_standard_error']:.1f}.\n"
    )


SECTIONS: dict[str, Section] = {
    "train_step": ("The training step", "train_step.py", training_step),
    "budget": ("Where the step's time goes", "train_step.py --budget", budget),
    **quality_sections(RESULTS),
    "hours": ("Width over an hour", "train, sample", widths),
    "sampling": ("Sampling", "sampling.py", sampling),
    "distilling": ("One to eight evaluations", "distilling.py", distilled),
    "gpu": ("On a GPU", "gpu.py", gpu),
    "growth": ("How cost grows", "growth.py", grown),
    "loading": ("Loading", "loading.py", loading),
    "loading-256": ("Loading at 256 pixels", "loading.py --sets squares imagenet", loading),
    "startup": ("Start-up", "startup.py", starting),
    "roofline": ("The roof", "roofline.py", roof),
}  # fmt: skip
"""Title, script and text of each result."""
