"""The sections of docs/performance.md: what a result says, in a few words, tables and plots."""

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
    "gflop_per_image": "GFLOP an image",
    "peak_mib": "peak MiB",
    "over_imports_mib": "beyond imports",
    "mib": "MiB",
}
"""What a table calls these where it does not say."""


# -- parts of a page ------------------------------------------------------------------------------


def shown(value: Any) -> str:
    """A value in a table."""
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
    """A table; without `columns`, given as key to heading, of all keys of its rows."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    columns = columns or {key: HEADINGS.get(key, key.replace("_", " ")) for key in keys}
    used = {key: title for key, title in columns.items() if key in keys}
    yield f"| {' | '.join(used.values())} |"
    yield f"|{'---|' * len(used)}"
    for row in rows:
        yield f"| {' | '.join(shown(row.get(key)) for key in used)} |"
    yield ""


def on(machine: Mapping[str, Any]) -> str:
    """Where something was measured."""
    has = ", ".join(machine.get("extensions", ()))
    gpu = f"{machine['gpu']}, " if "gpu" in machine else ""
    with_them = f" ({has})" if has else ""
    threads = f"{machine['threads']} thread{'s' * (machine['threads'] != 1)}"
    return f"{gpu}{machine['processor']}{with_them}, {threads}, torch {machine['torch']}"


def picture(name: str, content: bytes, words: str) -> Lines:
    """A plot, written beside the page."""
    (IMAGES / f"{name}.png").write_bytes(content)
    yield f"![{words}](images/{name}.png)\n"


def anything(result: Any, title: str = "") -> Lines:
    """A result of any shape: lists of objects as tables, objects within objects by name."""
    if isinstance(result, list):
        if result and all(isinstance(row, dict) for row in result):
            yield from ([f"**{title}**\n"] if title else [])
            yield from table(result)
        elif result:
            yield f"- {title}: {shown(result)}\n"
        return
    if result and all(isinstance(v, dict) and _is_flat(v) for v in result.values()):
        yield from ([f"**{title}**\n"] if title else [])
        yield from table([{"": name.replace("_", " "), **row} for name, row in result.items()])
        return
    plain = {k: v for k, v in result.items() if not isinstance(v, (dict, list))}
    if plain:
        yield from ([f"**{title}**\n"] if title else [])
        yield from table([plain])
    for key, value in result.items():
        if isinstance(value, (dict, list)) and key != "machine":
            yield from anything(value, key.replace("_", " "))


def _is_flat(row: Mapping[str, Any]) -> bool:
    return not any(isinstance(value, (dict, list)) for value in row.values())


# -- sections -------------------------------------------------------------------------------------

RATIOS = {
    "ratio_to_peer_best": "diffusers' best",
    "ratio_to_peer_default": "diffusers' default",
    "ratio_to_peer_best_compiled": "diffusers' best, both compiled",
}


def ratios(result: Mapping[str, Any], noun: str) -> str:
    """A sentence of the ratios that a result has."""
    found = [f"{result[key]:.2f} × {words}" for key, words in RATIOS.items() if key in result]
    return f"{noun}: **{'; '.join(found)}**.\n" if found else ""


def training_step(result: Result) -> Lines:
    yield (
        f"A step of {result['batch_size']} images, 32×32, of the DDPM CIFAR-10 network (35.7 M), "
        "with clipping and optimizer; ours draws its own noise and keeps an average of the weights "
        "besides. Every contender takes a step in turn; medians. GFLOP/s counts the FLOP of the "
        "architecture as published, forward and backward; denoising-diffusion-pytorch's network "
        "has a quarter fewer.\n"
    )
    yield ratios(result, "Our images a second")
    names = ("images_per_s", "seconds", "gflop_per_s", "peak_mib", "over_imports_mib")
    yield from table(result["contenders"], {"contender": "", **{n: HEADINGS[n] for n in names}})


def budget(result: Result) -> Lines:
    yield (
        f"One step takes {1e3 * result['seconds']:,.0f} ms. At the roof of this machine, where "
        "every convolution runs as fast as one alone and every pass over memory as fast as a copy, "
        f"it would take {1e3 * result['seconds_at_the_roof']:,.0f}. The roof counts the least work "
        "of each part done by itself, as the architecture is published; a share above 1 means that "
        "work was saved, or stayed in the caches.\n"
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
"""What finals are judged by: heading, and digits."""


def quality(result: Result) -> Lines:
    """Render the finals of a data set: means over seeds with standard errors, and settings."""
    first, path = result[0], RESULTS / f"search-{result[0]['dataset']}.json"
    if not complete(result):
        yield f"Being measured: {len(result)} runs are done.\n"
        return
    yield (
        f"{first['dataset']}, {first['size']}×{first['size']}: {first['minutes']:g} minutes of CPU "
        f"time of one core, {first['n']:,} samples against as many test images. Mean and standard "
        "error over seeds. KID uses EfficientNet-Lite0, random KID a network with random weights. "
        "As fractions of the test set's: the standard deviation of the images' means, the standard "
        "deviation within images, and the mean absolute Laplacian (detail). Brightness: levels "
        "above its mean.\n"
    )
    groups: dict[str, list[Any]] = {}
    for row in result:
        groups.setdefault(row["contender"], []).append(row)
    yield from table(
        [
            {"": contender, "seeds": len(rows), **{k: spread(rows, k) for k in SEEN}}
            for contender, rows in groups.items()
        ],
        {"": "", "seeds": "seeds", **{key: words for key, (words, _) in SEEN.items()}},
    )
    yield "How each was trained and sampled:\n"
    yield from table(
        [{"": name, **{k: per_seed(rows, k) for k in TRAINED}} for name, rows in groups.items()],
        {"": "", **TRAINED},
    )
    for contender, rows in groups.items():
        found = [f"{what}: {words}" for what, words in rows[0]["differs"].items()]
        if found:
            yield f"`{contender}` differs from ours without an option for it. {'. '.join(found)}.\n"
    yield from searches(json.loads(path.read_text()) if path.exists() else [])


CONTENDERS, SEEDS = ("diffuse", "diffusers", "ddpm-pytorch"), 3
"""What a comparison must have before it is shown."""


def complete(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether all contenders have finals of all seeds."""
    names = [row["contender"] for row in rows]
    return all(names.count(name) >= SEEDS for name in CONTENDERS)


def searches(rows: Sequence[Mapping[str, Any]]) -> Lines:
    """Render how the recipes of peers were found."""
    trials: dict[str, list[Any]] = {}
    for row in rows:
        trials.setdefault(row["recipe"]["peer"], []).append(row)
    for peer, own in trials.items():
        minutes = sum(row.get("cpu_seconds", 0) for row in own) / 60
        yield (
            f"The recipe of `{peer}` comes from a search of {minutes:.0f} minutes of CPU time. Its "
            "long trials, judged by held-out images:\n"
        )
        most = max(row.get("minutes", 0) for row in own)
        yield from table(
            [{**row["recipe"], **row} for row in own if row.get("minutes") == most],
            {
                **{key: TRAINED[key] for key in CHOSEN},
                "minutes": "minutes", "kid_x1000": "KID × 1000", "kid_x1000_standard_error": "±",
            },
        )  # fmt: skip


CHOSEN = ("optimizer", "lr", "batch", "target", "schedule", "min_snr")

TRAINED = {
    "parameters": "parameters", "groups": "groups", "arithmetic": "arithmetic",
    "optimizer": "optimizer", "lr": "rate", "batch": "batch", "target": "target",
    "schedule": "schedule", "min_snr": "min-SNR", "steps": "steps",
    "training_cpu_seconds": "CPU s", "training_seconds": "wall s", "sampler": "sampler",
    "evaluations": "evaluations",
}  # fmt: skip
"""Settings of a final, and their headings."""


def spread(rows: Sequence[Mapping[str, Any]], key: str) -> str:
    """Return the mean over seeds and its standard error; of one seed, that of the samples."""
    values, digits = [row[key] for row in rows], SEEN[key][1]
    error = f"{key}_standard_error"
    beside = stdev(values) / len(values) ** 0.5 if len(values) > 1 else rows[0].get(error)
    return f"{mean(values):.{digits}f}" + (f" ± {beside:.{digits}f}" if beside is not None else "")


def per_seed(rows: Sequence[Mapping[str, Any]], key: str) -> Any:
    """Return what all seeds have, or the value of each."""
    values = [shown(row.get(key)) for row in rows]
    return values[0] if len(set(values)) == 1 else ", ".join(values)


def sampling(result: Result) -> Lines:
    yield (
        "One evaluation of the network as sampling runs it, against diffusers' network of the same "
        "shape without gradients, in turn; medians.\n"
    )
    for part in result["evaluation"]:
        yield f"**{part['network']}, batch {part['batch_size']}**\n"
        yield ratios(part, "Our evaluations a second")
        columns = {"contender": "", "ms": "ms", "peak_mib": "peak MiB"}
        yield from table(part["contenders"], {**columns, "over_imports_mib": "beyond imports"})
    if "quality" in result:
        yield from few(result["quality"])


def few(found: Mapping[str, Any]) -> Lines:
    """How few evaluations are as good as 1000 steps of DDPM."""
    base = found["reference"]
    yield (
        f"KID of {found['few'][0]['n']} images against {found['real']:,} held-out ones, one seed; "
        f"the reference is {base['evaluations']} steps of `{base['sampler']}`. Evaluations at "
        "its KID, and within two standard errors of it: "
        + "; ".join(
            f"`{name}` {best['at_most'] or 'none'}, {best['within_two_errors'] or 'none'}"
            for name, best in found["fewest"].items()
        )
        + ".\n"
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
    """KID of one to eight evaluations of models and of what they were distilled to."""
    yield (
        "Ten minutes of a core, and what five of `diffuse distill` make of the model: KID × 1000 "
        "of as many images against held-out ones, from the same noise.\n"
    )
    for name in dict.fromkeys(row["name"] for row in result):
        rows = []
        for run in (row for row in result if row["name"] == name):
            for found in run["results"]:
                rows.append({"": f"{run['row']}, `{found['sampler']}`", **found})
        yield f"**{name}**, {result[0]['n']:,} images\n"
        yield from table(rows, {
            "": "", "evaluations": "evaluations", "kid": "KID × 1000", "kid_standard_error": "±",
            "recall": "recall", "ms_an_image": "ms an image",
        })  # fmt: skip


def grown(result: Result) -> Lines:
    yield "Training steps of the `tiny` network; one thing varies at a time.\n"
    yield from picture("growth", plots.growth(result["series"]), "Speed and memory over size")
    for rows in result["series"].values():
        yield from table(rows)


def roof(result: Result) -> Lines:
    yield (
        "What the machine reaches: 3×3 convolutions channels-last (GFLOP/s by channels@side), "
        "matrix products (GFLOP/s), and memory (GB/s), small enough for the caches and too large.\n"
    )
    for key in ("convolution_gflop_per_s", "matmul", "memory_gb_per_s"):
        rows = [{k: v for k, v in r.items() if k not in ("channels", "side")} for r in result[key]]
        yield from table(rows)


SECTIONS: dict[str, tuple[str, str, Callable[[Result], Lines]]] = {
    "train_step": ("The training step", "train_step.py", training_step),
    "budget": ("Where the step's time goes", "train_step.py --budget", budget),
    "quality-fashion-mnist": (
        "Quality for time: Fashion-MNIST", "time_to_quality.py final", quality,
    ),
    "quality-cifar-10": ("Quality for time: CIFAR-10", "time_to_quality.py final", quality),
    "sampling": ("Sampling", "sampling.py", sampling),
    "distilling": ("One to eight evaluations", "distilling.py", distilled),
    "growth": ("How cost grows", "growth.py", grown),
    "loading": ("Loading", "loading.py", anything),
    "startup": ("Start-up", "startup.py", anything),
    "roofline": ("The roof", "roofline.py", roof),
}  # fmt: skip
"""Title, script and text of each result."""
