"""Every kind of model with every command that takes one, and with every metric and pair of them.

What is not in `REFUSED` or `ALONE` works; what is there is refused in a line, before anything is
written. A change from one to the other is a change of these tables.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import mostly_slow
from lab import KINDS, Lab
from PIL import Image

from diffuse_cli import metrics
from diffuse_cli.commands import COMMANDS as EVERY
from diffuse_cli.commands.convert.network_graph import draw_inputs
from diffuse_cli.media import MEDIA, ReadSettings, settings_for
from diffuse_cli.metrics import METRICS, Facts, remarks
from diffuse_cli.models import model_file

ALWAYS = ("unconditional", "degraded", "sound")
"""Kinds that are measured in each run of the tests."""

DRAWN = ("unconditional", "sound", "array", "stack")
"""A kind of each medium, whose report has plots; they take most of the time of a page."""


class Bench:
    """A kind of model, and what commands are given with it.

    Attributes:
        model, data: paths of the model file and of what it was trained on.
        first, second: two samples of that.
    """

    two = ("--steps", 2)
    small = ("-n", 4, *two, "--precision", "fp32")

    def __init__(self, lab: Lab, name: str) -> None:
        self.lab, self.name, self.kind = lab, name, KINDS[name]
        self.model, self.data = lab.model(name), lab.data(self.kind.data)
        self.first, self.second = (lab.sample(self.kind.data, k) for k in range(2))
        self.beside = lab.beside(self.kind)

    def line(self, text: str) -> tuple[Any, ...]:
        """Return the words of a command line, in which {name} is an attribute, also of several."""
        words: list[Any] = []
        for word in text.split():
            value = getattr(self, word[1:-1]) if word[0] == "{" else word
            words += value if isinstance(value, tuple) else [value]
        return tuple(words)

    @property
    def loaded(self) -> model_file.StoredModel:
        """The model in the file."""
        return model_file.load(self.model)

    @property
    def other_half(self) -> tuple[Any, ...]:
        """The other sample of a pair, as an option."""
        if self.beside[:1] == ("--given",):
            return ("--given", self.lab.sample(self.kind.beside))
        return ()

    @property
    def condition(self) -> tuple[Any, ...]:
        """The options that `sample` needs of a model that is conditioned on an input."""
        if self.beside[:1] == ("--condition-on",):
            return ("--on-vector", *self.beside[1:])
        degraded = "--given" in self.kind.options
        return ("--given", self.first, "--degrade") if degraded else self.other_half

    @property
    def members(self) -> tuple[Any, ...]:
        """The option of ensembles, for a model that is conditioned on an input."""
        return ("--members", 3) if self.loaded.blueprint.conditions.given else ()

    @property
    def mask(self) -> Path:
        """Write a mask of the left half of a sample, which is to be filled in."""
        medium, size = self.loaded.blueprint.space.medium, self.loaded.blueprint.space.size
        hole = np.zeros(size, np.uint8)
        hole[..., : size[-1] // 2] = 255
        if medium == "array":
            np.save(path := Path("mask.npy"), hole > 0)
        elif medium == "audio":
            sound = np.where(hole > 0, 0.5, 0.0)[None].astype(np.float32)
            path = Path("mask.wav")
            path.write_bytes(MEDIA["audio"].encode(sound, self.loaded.blueprint.space))
        else:
            Image.fromarray(hole).save(path := Path("mask.png"))
        return path


# -- what is typed, and what must come of it ------------------------------------------------------


def samples(bench: Bench, folder: str) -> np.ndarray:
    """What a manifest lists, read as the model's samples are, (N, C, *size)."""
    space = bench.loaded.blueprint.space
    names = json.loads((Path(folder) / "manifest.json").read_text())["images"]
    read, asked = MEDIA[space.medium].read, ReadSettings(**settings_for(space))
    found = np.stack([read((Path(folder) / name).read_bytes(), asked).values for name in names])
    assert found.shape[1:] == space.shape
    assert np.isfinite(found).all()
    assert (Path(folder) / "grid.png").exists()
    return found


def drawn(count: int) -> Callable[[Bench, Any], None]:
    """So many samples, no two of which are equal."""

    def check(bench: Bench, ran: Any) -> None:
        found = samples(bench, "out")
        assert len(found) == count
        assert len(np.unique(found.reshape(count, -1), axis=0)) == count

    return check


def numbers(values: dict[str, Any]) -> dict[str, float]:
    """The numbers in an object of `eval --json`, without how long it took."""
    found = {key: value for key, value in values.items() if isinstance(value, float)}
    del found["seconds"]
    return found


def evaluated(bench: Bench, ran: Any) -> None:
    """A page has every number that was printed, and a section for what the model is told."""
    page = Path("page.html").read_text()
    assert page.rstrip().endswith("</html>")
    found = numbers(ran.json)
    assert {"fine_detail", "mean_variety"} <= found.keys()
    assert "bits_per_dim" in found
    assert ("nats_per_dim" in found) == (bench.loaded.blueprint.space.levels is None)
    assert ("Conditions and results" in page) == bool(bench.loaded.blueprint.conditions.given)
    assert ("Rank histogram" in page) == bool(bench.loaded.blueprint.conditions.given)
    for key in ran.json["fingerprints"]:
        assert ran.json["fingerprints"][key] in page


def tuned(bench: Bench, ran: Any) -> None:
    """The recommendation is in the new file and on the page."""
    found = model_file.load("tuned.safetensors")
    assert found.sampling is not None
    assert found.sampling.steps in (1, 2)
    assert all(torch.equal(found.ema[name], own) for name, own in bench.loaded.ema.items())
    assert f"{found.sampling}" in Path("page.html").read_text()
    assert ran.json["sweep"]["rows"]


def averaged(bench: Bench, ran: Any) -> None:
    """The new file has the best average."""
    found = model_file.load("averaged.safetensors")
    assert found.data["ema_length"] == ran.json["best"]
    assert found.blueprint == bench.loaded.blueprint


def alike(bench: Bench, ran: Any) -> None:
    """A model does not differ from itself."""
    found = ran.json["evaluation"]["differences"]
    assert {"fine_detail", "mean_variety"} <= found.keys()
    assert all((each["difference"], each["better"]) == (0, None) for each in found.values())
    assert ran.json["settings"] == {}


def described(bench: Bench, ran: Any) -> None:
    """What the model is."""
    assert ran.json["space"]["medium"] == bench.loaded.blueprint.space.medium
    assert ran.json["step"] == 4


def back(bench: Bench, ran: Any) -> None:
    """Tensors and process come back from diffusers."""
    from diffuse_cli.app import main

    assert main(["convert", "out", "-o", "back.safetensors", "-q"]) == 0
    found, own = model_file.load("back.safetensors"), bench.loaded
    assert all(torch.equal(found.ema[name], tensor) for name, tensor in own.ema.items())
    bars, own_bars = (m.blueprint.process.alpha_bars for m in (found, own))
    assert torch.allclose(bars, own_bars)


@torch.no_grad()
def runs(bench: Bench, ran: Any) -> None:
    """The graph answers as the network does."""
    program, own = torch.export.load("out.pt2"), bench.loaded
    fed = draw_inputs(own.blueprint, 3)
    expected = own.network()(**fed)
    found = program.module()(fed.pop("x"), fed.pop("t"), **fed)
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4)


def published(bench: Bench, ran: Any) -> None:
    """The folder has the model itself, and a card."""
    assert Path("out/model.safetensors").read_bytes() == bench.model.read_bytes()
    assert 'license: "mit"' in Path("out/README.md").read_text()


def trained(bench: Bench, ran: Any) -> None:
    """A model of the same samples that is told the same."""
    found, own = (m.blueprint for m in (model_file.load("out.safetensors"), bench.loaded))
    assert (found.space, found.network) == (own.space, own.network)
    for name in ("classes", "given", "table"):
        assert getattr(found.conditions, name) == getattr(own.conditions, name)


def distilled(bench: Bench, ran: Any) -> None:
    """A model of the same that draws in a few steps."""
    trained(bench, ran)
    found = model_file.load("out.safetensors")
    assert found.distilled is not None
    assert found.sampling is not None
    assert found.sampling.sampler == "consistency"


def shown(bench: Bench, ran: Any) -> None:
    """A picture."""
    assert min(Image.open("out.png").size) > 50


def kept(bench: Bench, ran: Any) -> None:
    """What the mask leaves is as it was."""
    found = samples(bench, "out")
    space = bench.loaded.blueprint.space
    read = MEDIA[space.medium].read(bench.first.read_bytes(), ReadSettings(**settings_for(space)))
    half = space.size[-1] // 2
    apart = np.abs(found[..., half:] - read.values[..., half:].astype(np.float64))
    assert apart.max() <= 1e-3 * max(1.0, float(np.abs(read.values.astype(float)).max()))


Check = Callable[[Bench, Any], None]

COMMANDS: dict[str, tuple[str, Check]] = {
    "sample": ("sample {model} -n 3 {two} {condition} -o out", drawn(3)),
    "tune": (
        "tune {model} {data} {small} --samplers ddim {beside} --json -o tuned.safetensors "
        "--report page.html",
        tuned,
    ),
    "ema": ("ema {model} {data} {small} {beside} -o averaged.safetensors --json", averaged),
    "ema by loss": (
        "ema {model} {data} -n 4 --metric held-out {beside} -o averaged.safetensors --json",
        averaged,
    ),
    "compare": (
        "compare {model} {model} {data} {small} --timesteps 2 {beside} {members} --json",
        alike,
    ),
    "info": ("info {model} --json", described),
    "convert to diffusers": ("convert {model} out --to diffusers", back),
    "convert to torch": ("convert {model} out.pt2", runs),
    "push": ("push {model} hf://a/b --license mit -o out", published),
    "distill": (
        "distill {model} {data} {two} --batch-size 2 --precision fp32 {beside} -o out.safetensors",
        distilled,
    ),
    "train": (
        "train {data} --init {model} {two} --batch-size 4 --precision fp32 {beside} "
        "-o out.safetensors",
        trained,
    ),
    "inpaint": ("inpaint {model} {first} --mask {mask} -n 2 {two} -o out", kept),
    "upscale": ("upscale {model} {first} --factor 2 -n 2 {two} -o out", drawn(2)),
    "restore": (
        "restore {model} {first} --degradation blur:1 --degrade -n 2 {two} -o out",
        drawn(2),
    ),
    "vary": ("vary {model} {first} -n 2 {two} -o out", drawn(2)),
    "interpolate": ("interpolate {model} {first} {second} -n 3 --steps 20 -o out", drawn(3)),
    "noise-demo": ("noise-demo {first} --model {model} {two} {other_half} -o out.png", shown),
}
"""What is typed, and what must come of it; `eval` has tests of its own below."""

UNKNOWN_TO_DIFFUSERS = {
    "table": "condition-on",
    "vectors": "condition-on",
    "pairs": "given = pairs",
    "labels": "given = pairs",
    "degraded": "given = low-res:2",
    "distilled": "distilled",
    "flow": "target = flow",
    "alpha": "layout = alpha",
    "16-bits": "levels = 65536",
    "array": "medium = array",
    "sound": "medium = audio",
    "stack": "layout = pages",
    "vit": "network = vit",
}
REFUSED: dict[tuple[str, str], tuple[int, str]] = {
    **{
        (name, "convert to diffusers"): (4, f"diffusers cannot say {words}")
        for name, words in UNKNOWN_TO_DIFFUSERS.items()
    },
    ("distilled", "distill"): (2, "is distilled already"),
    ("distilled", "noise-demo"): (2, "do not predict E[x_0|x_t]"),
    ("distilled", "ema"): (4, "no averages of other lengths"),
    ("distilled", "ema by loss"): (4, "no averages of other lengths"),
}
"""What does not go together: the exit code, and words of the line."""

UNGIVEN = dict.fromkeys(("paired", "ensembles"), "needs a model that is conditioned on images")
IMAGES = {"random-kid": "needs arrays, sounds or stacks"}
OTHERS = dict.fromkeys(("baselines", "frechet", "kid", "precision-recall"), "needs images")

ALONE: dict[str, dict[str, str]] = {
    **dict.fromkeys(KINDS, IMAGES | UNGIVEN),
    **dict.fromkeys(("pairs", "labels", "degraded"), IMAGES),
    **dict.fromkeys(("array", "sound", "stack"), OTHERS | UNGIVEN),
    "distilled": IMAGES | UNGIVEN | {"likelihood-ode": "needs a model that is not distilled"},
}
"""Metrics that a kind does not have, with words of the line."""


@pytest.fixture(autouse=True)
def cache(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Features of real samples are computed once."""
    monkeypatch.setenv("DIFFUSE_CACHE", str(lab.folder / "cache"))


def run(diffuse: Any, line: tuple[Any, ...], refused: tuple[int, str] | None, **how: bool) -> Any:
    """Run a command that works, or one that is refused in a line and writes nothing."""
    before = {*Path().rglob("*")}
    ran = diffuse(*line, *(["-q"] if refused else []), **how)
    if refused is None:
        return ran.ok()
    ran.fails(*refused)
    assert not ran.out or ran.json["error"]["message"] in ran.err
    assert {*Path().rglob("*")} == before
    return None


def choose_cases() -> list[Any]:
    """All kinds with all commands. A third of them runs always, of each kind and of each command;
    of programs of torch, which take ten seconds each, one."""
    cases = []
    for row, name in enumerate(KINDS):
        for column, command in enumerate(COMMANDS):
            every = 15 if command == "convert to torch" else 3
            often = (name, command) in REFUSED or (row + column) % every == 0
            cases.append(pytest.param(name, command, marks=() if often else pytest.mark.slow))
    return cases


@pytest.mark.parametrize(("name", "command"), choose_cases())
def test_a_command(diffuse: Any, lab: Lab, name: str, command: str) -> None:
    bench = Bench(lab, name)
    line, check = COMMANDS[command]
    ran = run(diffuse, bench.line(line), REFUSED.get((name, command)))
    if ran is not None:
        check(bench, ran)


def evaluation(bench: Bench, *metrics: str) -> tuple[Any, ...]:
    """Return the command line that evaluates a model, with the options of slow metrics."""
    options = {"likelihood-ode": ("--ode-steps", 2), "ensembles": ("--members", 3)}
    known = [options[m] for m in metrics if m in options and m not in ALONE[bench.name]]
    line = bench.line("eval {model} {data} {small} --timesteps 2 {beside} --json")
    return (*line, *itertools.chain(*known))


def check_pairs_of_metrics(alone: Sequence[Facts]) -> None:
    """Check that the remarks on two metrics need no third one."""
    for one, other in itertools.combinations(alone, 2):
        both = replace(
            one,
            values={**one.values, **other.values},
            details={**one.details, **other.details},
            dim=max(one.dim, other.dim),
            generated=max(one.generated, other.generated),
        )
        remarks(both)


@pytest.mark.parametrize("name", mostly_slow(dict.fromkeys([*ALWAYS, *KINDS]), always=3))
def test_all_metrics_each_alone_and_pairs(
    diffuse: Any, lab: Lab, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts: list[Facts] = []
    monkeypatch.setattr(metrics, "remarks", lambda own: facts.append(own) or remarks(own))
    bench = Bench(lab, name)
    line = (*evaluation(bench, *METRICS), "--report", "page.html")
    ran = run(diffuse, line, None, plots=name in DRAWN)
    evaluated(bench, ran)
    whole, seen = numbers(ran.json), set()
    for metric in METRICS:
        refused = ALONE[name].get(metric)
        line = (*evaluation(bench, metric), "--metrics", metric)
        ran = run(diffuse, line, (2, refused) if refused else None)
        if ran is None:
            continue
        found = numbers(ran.json)
        assert found, metric
        for key, value in found.items():
            assert value == pytest.approx(whole[key], nan_ok=True), (metric, key)
        seen |= found.keys()
    assert seen == whole.keys()
    assert len(facts) == 1 + len(METRICS) - len(ALONE[name])
    check_pairs_of_metrics(facts[1:])


def test_every_command_that_takes_a_model_is_here() -> None:
    asked = {"eval", *(line.split()[0] for line in COMMANDS)}
    assert asked == {*EVERY}
