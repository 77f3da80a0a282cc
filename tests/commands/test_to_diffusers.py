"""Models that leave for diffusers: the same weights, answers and pictures there, and back again."""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from private_models import PICTURES, SMALL, UNTOLD, model_of
from safetensors.torch import load_file
from torch import Tensor

from diffuse_cli.commands.convert.diffusers_fields import find_unsupported
from diffuse_cli.commands.convert.exporters import export
from diffuse_cli.commands.convert.exporters.diffusers import (
    PARTS,
    SCHEDULERS,
    WEIGHTS,
    scheduler_fields,
)
from diffuse_cli.commands.convert.importers import convert
from diffuse_cli.commands.convert.importers.assembly import Net
from diffuse_cli.commands.convert.importers.diffusers import read_process
from diffuse_cli.config.exchange_options import ConvertConfig
from diffuse_cli.config.options import option_fields
from diffuse_cli.config.presets import PRESETS, resolve_architecture
from diffuse_cli.config.sample_options import SamplerChoice
from diffuse_cli.config.shared_options import DiffusionConfig
from diffuse_cli.config.train_options import TrainConfig
from diffuse_cli.core import SAMPLERS, VARIANCES, Conditions, Space
from diffuse_cli.core.guidance import clip
from diffuse_cli.core.networks.unet import Config
from diffuse_cli.core.schedules import SCHEDULES
from diffuse_cli.models import model_file
from diffuse_cli.models.blueprint import Blueprint, make_process
from diffuse_cli.system.errors import DiffuseError
from diffuse_cli.system.events import finish

theirs = pytest.importorskip("diffusers")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    theirs.utils.logging.disable_progress_bar()
    return tmp_path


def leave(model: model_file.StoredModel, out: str = "out", **options: Any) -> Path:
    """The folder of a model."""
    model_file.save(Path("model.safetensors"), model)
    line = {"source": "model.safetensors", "out": out, "to": "diffusers", "overwrite": True}
    return Path(finish(export(ConvertConfig(**{**line, **options})))["out"])


def back(folder: Path) -> model_file.StoredModel:
    finish(convert(ConvertConfig(source=str(folder), out="again.safetensors", overwrite=True)))
    return model_file.load("again.safetensors")


def read(folder: Path, part: str) -> dict[str, Any]:
    return json.loads((folder / part).read_text())


# -- the network ----------------------------------------------------------------------------------


HEADS = ({}, {"head_width": 4}, {"head_width": 8}, {"heads": 1})
SIZES = ((8, 8), (8, 12), (4, 8))  # norms over 4 values would enlarge rounding


@st.composite
def drawn(draw: Any) -> dict[str, Any]:
    """What `model_of` makes a model of that diffusers can say."""
    multipliers = (1, *draw(st.lists(st.sampled_from((1, 2)), max_size=2)))
    options = {
        "blocks": (1, 2), "resblock_updown": (False, True), "scale_shift": (False, True),
        "groups": (2, 4), "norm_eps": (1e-5, 1e-3), "downsample_padding": (0, 1),
        "freq_shift": (0, 1), "flip_sin_to_cos": (False, True), "dropout": (0.0, 0.1),
    }  # fmt: skip
    chosen = {name: draw(st.sampled_from(values)) for name, values in options.items()}
    attention = tuple(draw(st.sets(st.sampled_from((2, 4, 8)))))
    chosen.update(draw(st.sampled_from(HEADS)), attention=attention, multipliers=multipliers)
    size = draw(st.sampled_from(SIZES if len(multipliers) < 3 else SIZES[:2]))
    return {
        "config": Config(width=8, **chosen),
        "space": Space(channels=draw(st.sampled_from((1, 3))), size=size),
        "conditions": Conditions(classes=draw(st.sampled_from(((), ("a cat", "dog"))))),
        "diffusion": DiffusionConfig(variance=draw(st.sampled_from(("small", "large", "learned")))),
    }


@settings(max_examples=12, deadline=None)
@given(drawn())
@torch.no_grad()
def test_a_network_answers_as_it_does_here_and_comes_back(parts: dict[str, Any]):
    model = model_of(**parts, training={"label_dropout": 0.25} if parts["conditions"] else {})
    own = model.blueprint
    folder = leave(model)
    net = theirs.UNet2DModel.from_pretrained(folder / "unet").eval()
    weights = load_file(folder / "unet" / WEIGHTS)
    assert {n: t.shape for n, t in net.state_dict().items()} == {
        n: t.shape for n, t in weights.items()
    }
    x = torch.randn(3, *own.space.shape, generator=torch.Generator().manual_seed(2))
    t, label = torch.tensor([0, 3, 977]), torch.tensor([0, 1, 2]) if own.conditions else None
    expected = model.network()(x, t.float(), label=label)
    assert torch.allclose(net(x, t, class_labels=label).sample, expected, rtol=1e-5, atol=1e-5)

    again = back(folder)
    if own.conditions:
        assert again.training["label_dropout"] == model.training["label_dropout"]
    assert again.ema.keys() == model.ema.keys()
    assert all(torch.equal(again.ema[name], tensor) for name, tensor in model.ema.items())
    assert again.blueprint.space == own.space
    assert again.blueprint.conditions == own.conditions
    assert said(again.blueprint.config, own.space) == said(own.config, own.space)
    there = dataclasses.replace(again.blueprint.diffusion, rescale_timesteps=True)
    assert there == own.diffusion


def said(config: Config, space: Space) -> tuple[Any, ...]:
    """A configuration without two ways to say one thing."""
    attends = config.attends(space.size)
    heads = [config.heads_at(w) for w, a in zip(config.widths, attends, strict=True) if a]
    none: dict[str, Any] = {"attention": (), "heads": None, "head_width": None}
    if len(attends) == 1:  # nothing resamples
        none["resblock_updown"] = False
    middle = config.heads_at(config.widths[-1])
    return dataclasses.replace(config, **none), attends, heads, middle


def test_heads_of_a_number_are_said_where_they_are_equally_wide():
    model = model_of(dataclasses.replace(SMALL, multipliers=(1, 1), attention=(8, 4), heads=2))
    folder = leave(model)
    assert read(folder, "unet/config.json")["attention_head_dim"] == 4
    assert back(folder).blueprint.config.heads_at(8) == 2


def test_where_to_write_may_be_an_argument(diffuse):
    model_file.save(Path("model.safetensors"), model_of())
    ran = diffuse("convert", "model.safetensors", "there", "--to", "diffusers", "-q")
    assert (ran.code, ran.out) == (0, "there\n")
    assert {path.name for path in Path("there").iterdir()} == {*PARTS}
    ran = diffuse("convert", "there", "back.safetensors", "-q")
    assert (ran.code, ran.out) == (0, "back.safetensors\n")
    found = diffuse("convert", "model.safetensors", "--to", "diffusers", "--json", "-q").json
    assert (found["out"], found["to"]) == ("diffusers", "diffusers")
    assert (found["pipeline"], found["scheduler"]) == ("DDPMPipeline", "DDPMScheduler")


def test_raw_weights_are_written_where_they_are_asked_for():
    model = model_of()
    raw = {name: tensor + 1 for name, tensor in model.ema.items()}
    folder = leave(dataclasses.replace(model, raw=raw), weights="raw")
    found = load_file(folder / "unet" / WEIGHTS)
    assert all(torch.equal(found[name], tensor) for name, tensor in raw.items())
    with pytest.raises(DiffuseError, match="has no raw weights"):
        leave(model, weights="raw")


def test_classes_outlive_a_fine_tuning_in_diffusers():
    """diffusers keeps the field that names them when it saves what it has loaded."""
    folder = leave(model_of(conditions=Conditions(classes=("a", "b"))))
    pipe = theirs.DiffusionPipeline.from_pretrained(folder)
    pipe.unet.conv_in.bias.data += 1
    pipe.save_pretrained("tuned")
    assert back(Path("tuned")).classes == ("a", "b")
    pipe.unet.register_to_config(num_class_embeds=9)
    pipe.save_pretrained("other")
    with pytest.raises(DiffuseError, match="num_class_embeds = 9 is not supported"):
        back(Path("other"))


# -- the process ----------------------------------------------------------------------------------


COLOR = Net(config=SMALL, space=PICTURES, out_channels=3, num_classes=0)


@pytest.mark.parametrize("sampler", SCHEDULERS)
@pytest.mark.parametrize("name", [n for n in SCHEDULES if n != "sqrt"])
def test_betas_are_those_of_the_process(here: Path, name: str, sampler: str):
    diffusion = DiffusionConfig(schedule=name)
    fields = scheduler_fields(SCHEDULERS[sampler], diffusion)
    (here / "scheduler_config.json").write_text(json.dumps(fields))
    scheduler = getattr(theirs, SCHEDULERS[sampler].name).from_pretrained(here)
    expected = make_process(diffusion).alpha_bars.float()
    assert torch.allclose(scheduler.alphas_cumprod, expected, rtol=1e-3, atol=1e-6)
    again, _ = read_process(here, COLOR)
    assert again["schedule"] == name
    assert not again.get("zero_terminal_snr")


@pytest.mark.parametrize(
    "changes",
    [
        {"zero_terminal_snr": True, "schedule": "linear"},
        {"log_snr_shift": -1.4},
        {"log_snr_shift": -1.4, "zero_terminal_snr": True},
        {"betas": (0.1, 0.2, 0.5), "rescale_timesteps": False},
        {"num_timesteps": 40, "rescale_timesteps": False, "schedule": "linear"},
        {"target": "eps"},
        {"target": "x0"},
    ],
    ids=str,
)
def test_a_process_comes_back(changes: dict[str, Any]):
    diffusion = DiffusionConfig(**changes)
    folder = leave(model_of(diffusion=diffusion))
    found = back(folder).blueprint
    expected = make_process(diffusion)
    assert torch.allclose(found.process.alpha_bars, expected.alpha_bars, rtol=1e-9, atol=1e-12)
    assert found.process.timesteps.tolist() == expected.timesteps.tolist()
    assert (found.diffusion.target, found.diffusion.variance) == (
        diffusion.target, diffusion.variance,
    )  # fmt: skip
    scheduler = theirs.DDPMScheduler.from_pretrained(folder / "scheduler")
    bars = expected.alpha_bars.float()
    assert torch.allclose(scheduler.alphas_cumprod, bars, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "unipc"])
def test_a_large_variance_comes_back(sampler: str):
    """Also from what diffusers writes of it."""
    folder = leave(model_of(diffusion=DiffusionConfig(variance="large")), sampler=sampler)
    assert back(folder).blueprint.diffusion.variance == "large"
    scheduler = getattr(theirs, SCHEDULERS[sampler].name).from_pretrained(folder / "scheduler")
    scheduler.save_pretrained(folder / "scheduler")
    assert back(folder).blueprint.diffusion.variance == "large"


# -- pictures -------------------------------------------------------------------------------------


class Same:
    """The noise that a pipeline draws with a generator of this seed."""

    def __init__(self, seed: int, shape: tuple[int, ...]) -> None:
        self.draw, self.shape = torch.Generator().manual_seed(seed), shape

    def __call__(self, k: int = 0) -> Tensor:
        return torch.randn(self.shape, generator=self.draw)


def ours(
    model: model_file.StoredModel, sampler: str, steps: int, seed: int, spacing: str = "trailing"
) -> Tensor:
    """The levels of two pictures, from the noise of a seed."""
    own = model.blueprint
    denoiser = own.denoiser(model.network())
    noise = Same(seed, (2, *own.space.shape))
    times = denoiser.process.times(steps, spacing)
    clipped = clip(denoiser, denoiser.process)
    *_, last = SAMPLERS[sampler](clipped, denoiser.process, noise(), times, noise=noise)
    return own.space.to_stored(last.x).int()


def pictures(pipe: Any, steps: int, seed: int, **options: Any) -> Tensor:
    pipe.set_progress_bar_config(disable=True)
    draw = torch.Generator().manual_seed(seed)
    found = pipe(2, draw, num_inference_steps=steps, output_type="np", **options).images
    return torch.from_numpy(found).permute(0, 3, 1, 2).mul(255).round().int()


@pytest.mark.parametrize(
    ("sampler", "variance", "pipeline", "options"),
    [
        ("ddpm", "small", "DDPMPipeline", {}),
        ("ddpm", "large", "DDPMPipeline", {}),
        ("ddpm", "learned", "DDPMPipeline", {}),
        ("ddim", "small", "DDIMPipeline", {"use_clipped_model_output": True}),
        ("dpmpp-2m", "small", "DDPMPipeline", {}),
    ],
)
@torch.no_grad()
def test_a_model_draws_the_same_picture_there(
    sampler: str, variance: str, pipeline: str, options: dict[str, Any]
):
    """Also with fewer steps than timesteps, and no noise in the last one."""
    model = model_of(diffusion=DiffusionConfig(variance=variance, target="x0"))
    pipe = getattr(theirs, pipeline).from_pretrained(leave(model, sampler=sampler))
    spacing = "trailing" if variance == "small" else "linspace"
    found, expected = pictures(pipe, 8, 1, **options), ours(model, sampler, 8, 1, spacing)
    assert float(expected.float().std()) > 10
    assert int((found - expected).abs().max()) <= 2
    assert pictures(pipe, 8, 2, **options).ne(expected).any()


# -- schedulers -----------------------------------------------------------------------------------


def recommending(sampler: str, **more: Any) -> model_file.StoredModel:
    return model_of(sampling=SamplerChoice(sampler=sampler, steps=5), **more)


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp-2m", "dpmpp-2m-sde"])
def test_the_scheduler_is_that_of_the_recommended_sampler(sampler: str):
    index = read(leave(recommending(sampler)), "model_index.json")
    assert index["scheduler"] == ["diffusers", SCHEDULERS[sampler].name]
    assert index["_class_name"] == SCHEDULERS[sampler].pipeline
    assert "num_inference_steps=5" in Path("out/README.md").read_text()


def test_what_no_pipeline_does_is_said(diffuse):
    line = ("convert", "model.safetensors", "--to", "diffusers", "--overwrite")
    model_file.save(Path("model.safetensors"), model_of())
    assert "no pipeline" not in diffuse(*line).err
    assert "runs UniPCMultistepScheduler" in diffuse(*line, "--sampler", "unipc").err
    for sampler in ("unipc", "heun", "ipndm"):
        model_file.save(Path("model.safetensors"), recommending(sampler))
        assert f"no pipeline of diffusers runs {sampler}" in diffuse(*line).err
        assert read(Path("diffusers"), "model_index.json")["scheduler"][1] == "DDPMScheduler"
    model_file.save(Path("model.safetensors"), model_of(conditions=Conditions(classes=("a", "b"))))
    assert "tells a U-Net its class: README.md there has a loop" in diffuse(*line).err


@pytest.mark.parametrize(
    "more", [{"times": (999.0, 5.0)}, {"weak_guidance": 1.5}, {"weak_guidance": 1.0}, {}]
)
def test_a_recommendation_that_diffusers_cannot_follow_is_said(diffuse, more):
    """Its steps may be too few then."""
    reduced = bool(more) and more.get("weak_guidance") != 1
    choice = SamplerChoice(sampler="ddim", steps=2, **more)
    model = model_of(sampling=choice)
    model = replace(model, weak=model.ema, weak_step=1)
    model_file.save(Path("model.safetensors"), model)
    ran = diffuse("convert", "model.safetensors", "out", "--to", "diffusers").ok()
    assert ("so its images will differ" in ran.err) == reduced
    steps = 20 if reduced else 2
    assert f"num_inference_steps={steps}," in Path("out/README.md").read_text()


def test_a_loop_has_no_more_steps_than_the_model():
    short = DiffusionConfig(num_timesteps=10, rescale_timesteps=False)
    leave(model_of(diffusion=short), sampler="ddim")
    assert "num_inference_steps=10," in Path("out/README.md").read_text()


def test_a_learned_variance_is_for_schedulers_that_take_one():
    learned = {"diffusion": DiffusionConfig(variance="learned")}
    folder = leave(recommending("dpmpp-2m", **learned))
    assert read(folder, "model_index.json")["scheduler"][1] == "DDPMScheduler"
    assert read(folder, "scheduler/scheduler_config.json")["variance_type"] == "learned_range"


# -- the card -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sampler", "classes", "variance"),
    [
        ("ddpm", (), "small"),
        ("ddim", (), "small"),
        ("ddim", ("a", "b"), "small"),
        ("unipc", (), "small"),
        ("dpmpp-2m", ("a", "b```"), "small"),
        ("ddpm", ("a", "b"), "learned"),
    ],
)
def test_the_python_of_the_card_draws(sampler: str, classes: tuple[str, ...], variance: str):
    own = {
        "conditions": Conditions(classes=classes),
        "diffusion": DiffusionConfig(variance=variance),
    }
    text = (leave(model_of(**own), sampler=sampler) / "README.md").read_text()
    (block,) = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert ("use_clipped_model_output=True" in block) == (sampler == "ddim")
    block = re.sub(r"(steps=|set_timesteps\()\d+", r"\g<1>4", block)
    names: dict[str, Any] = {}
    exec(compile(block, "README.md", "exec"), names)
    assert len(names["pictures"]) == 4
    if classes:
        assert "Label 2 stands for no class" in text
        assert f"1: {classes[1]}\n" in text


def test_the_card_says_what_the_model_file_knows():
    data = {"fingerprint": "f" * 64, "images": 1234}
    choice = SamplerChoice(sampler="ddim", steps=7)
    text = (leave(model_of(step=5000, data=data, sampling=choice)) / "README.md").read_text()
    digest = finish(model_file.find("model.safetensors")).sha256
    facts = ("5,000", "1,234", "f" * 64, "ddim, 7 steps", "cosine, 1,000 timesteps", digest)
    assert all(fact in text for fact in facts)
    assert "license" not in text


@pytest.mark.parametrize(
    ("sampling", "dropout", "scale"),
    [
        (None, 0.1, "2"),
        (None, 0.0, "1"),  # the row of no class is untrained
        (SamplerChoice("unipc", 7, 3.5), 0.1, "3.5"),  # though the folder draws with another
        (SamplerChoice("ddim", 7, 0.0), 0.1, "0"),
    ],
)
def test_the_cards_loop_guides_as_sample_does(
    sampling: SamplerChoice | None, dropout: float, scale: str
):
    made = model_of(conditions=Conditions(classes=("a", "b")))
    training = {**made.training, "label_dropout": dropout}
    model = dataclasses.replace(made, sampling=sampling, training=training)
    card = leave(model, sampler="ddpm") / "README.md"
    assert f"label, scale = torch.tensor([0, 0, 0, 0]), {scale}\n" in card.read_text()


# -- what diffusers cannot say --------------------------------------------------------------------


def of_unet(**changes: Any) -> dict[str, Any]:
    return {"config": dataclasses.replace(SMALL, **changes)}


REFUSED: list[tuple[str, dict[str, Any]]] = [
    ("patch = 2", of_unet(patch=2)),
    ("multipliers = [2, 2]", of_unet(multipliers=(2, 2))),
    ("block = convnext", of_unet(block="convnext")),
    ("time_embedding = fourier", of_unet(time_embedding="fourier")),
    ("time_width = 16", of_unet(time_width=16)),
    ("heads = 2", of_unet(heads=2, attention=(8, 4))),
    ("heads_up = 2", of_unet(heads=4, heads_up=2)),
    ("target = mu", {"diffusion": DiffusionConfig(target="mu")}),
    ("rescale_timesteps = true over 100", {"diffusion": DiffusionConfig(num_timesteps=100)}),
]
"""More kinds of models are refused in `test_every_model.py`."""


@pytest.mark.parametrize("name", ["dpmpp-2m", "unipc"])
def test_a_solver_knows_of_a_process_that_ends_without_signal(name: str):
    """It takes the logarithm of the SNR, which a flag there keeps from being infinite."""
    own = scheduler_fields(SCHEDULERS[name], DiffusionConfig(schedule="cosine", target="v"))
    assert own["rescale_betas_zero_snr"] is False
    found = scheduler_fields(SCHEDULERS[name], DiffusionConfig(schedule="flow", target="v"))
    kind, finite = getattr(theirs, found.pop("_class_name")), []
    for flagged in (found["rescale_betas_zero_snr"], False):
        solver = kind.from_config({**found, "rescale_betas_zero_snr": flagged})
        solver.set_timesteps(5)
        finite.append(bool(solver.sigmas.isfinite().all()))
    assert finite == [True, False]


@pytest.mark.parametrize(("says", "parts"), REFUSED)
def test_what_diffusers_cannot_say_is_refused_by_its_name(
    diffuse, says: str, parts: dict[str, Any]
):
    model_file.save(Path("model.safetensors"), model_of(**parts))
    ran = diffuse("convert", "model.safetensors", "--to", "diffusers", "-q")
    ran.fails(4, f"model.safetensors: diffusers cannot say {says}")
    assert ran.line.count(". ") == 1  # a hint
    assert [p.name for p in Path().iterdir()] == ["model.safetensors"]


def test_a_variance_of_another_package_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(VARIANCES, "added", VARIANCES["large"])
    with pytest.raises(DiffuseError, match="diffusers cannot say variance = added"):
        leave(model_of(diffusion=DiffusionConfig(variance="added")))


def test_the_presets_that_can_go_are_those_of_the_page():
    page = (Path(__file__).parents[2] / "docs" / "ecosystem.md").read_text(encoding="utf-8")
    (sentence,) = re.findall(r"You can export these \[presets\]\S+ ([^.]+)\.", page)
    listed = set(re.findall(r"`([^`]+)`", sentence))
    assert "where they have no patches, `tiny` and `slim` (below 64 pixels per side)" in " ".join(
        sentence.split()
    )
    process = {f.name for f, _ in option_fields(DiffusionConfig)}
    able = set()
    for name, preset in PRESETS.items():
        side = preset.train.get("size", 64 if name == "iddpm-imagenet64" else 32)
        space = Space(channels=3, size=(side, side))
        network, config = resolve_architecture(TrainConfig(data=""), name, space)
        own = Blueprint(
            space=space,
            network=network,
            config=config,
            conditions=UNTOLD,
            diffusion=DiffusionConfig(**{n: v for n, v in preset.train.items() if n in process}),
        )
        able |= set() if list(find_unsupported(own)) else {name}
    assert able == listed
