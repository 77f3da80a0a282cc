"""Configurations: checked when made, the same after TOML."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffuse_cli.config.eval_options import EmaConfig, EvalConfig, TuneConfig
from diffuse_cli.config.exchange_options import ConvertConfig
from diffuse_cli.config.options import (
    Options,
    field_flag,
    from_dict,
    from_text,
    option,
    option_fields,
    read_toml,
    to_dict,
    to_toml,
)
from diffuse_cli.config.parsers import (
    parse_bytes,
    parse_ints,
    parse_names,
    parse_size,
    parse_times,
)
from diffuse_cli.config.sample_options import SampleConfig
from diffuse_cli.config.shared_options import DiffusionConfig
from diffuse_cli.config.task_options import DemoConfig
from diffuse_cli.config.train_options import TrainConfig
from diffuse_cli.system.errors import UsageError, lookup

REQUIRED: dict[type, dict[str, Any]] = {
    DiffusionConfig: {},
    TrainConfig: {"data": "images"},
    SampleConfig: {"model": "m.safetensors"},
    EvalConfig: {"subject": "m.safetensors", "data": "images"},
    TuneConfig: {"subject": "m.safetensors", "data": "images"},
    EmaConfig: {"subject": "m.safetensors", "data": "images"},
    DemoConfig: {"image": "a.png"},
    ConvertConfig: {"source": "pipeline"},
}


def numbers() -> list[Any]:
    """Every option of every configuration that is a number with a range."""
    found = []
    for kind in REQUIRED:
        for f, spec in option_fields(kind):
            if spec.parse is None and str(f.type).removesuffix(" | None") in ("int", "float"):
                found.append(pytest.param(kind, f, spec, id=f"{kind.__name__}.{f.name}"))
    return found


def made(kind: type, **values: Any) -> Any:
    return kind(**{**REQUIRED[kind], **values})


# -- numbers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "f", "spec"), numbers())
def test_every_number_has_a_range_that_names_its_flag(kind, f, spec):
    wrong: list[Any] = [math.nan, math.inf, -math.inf, 10**400, True, "5", [5]]
    assert spec.low is not None
    wrong.append(spec.low - 1 if str(f.type).startswith("int") else spec.low - 1e-7)
    if spec.high is not None:
        wrong.append(spec.high + 1)
    if spec.below is not None:
        wrong.append(spec.below)
    if str(f.type).startswith("int"):
        wrong.append(spec.low + 0.5)
    for value in wrong:
        with pytest.raises(UsageError) as caught:
            made(kind, **{f.name: value})
        assert field_flag(f) in str(caught.value), value
        assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "--steps must be at least 1, not 0"),
        ({"lr": math.nan}, "--lr must be a finite number, not nan"),
        ({"lr": 11}, "--lr must be at most 10, not 11"),
        ({"num_timesteps": 1}, "--num-timesteps must be at least 2"),
        ({"seed": -1}, "--seed must be at least 0"),
        ({"steps": 2.5}, "--steps must be a whole number, not 2.5"),
        ({"flip": 1}, "--flip must be true or false, not 1"),
        ({"schedule": 3}, "--schedule must be text, not 3"),
        ({"ema_decay": 1}, "--ema-decay must be below 1, not 1"),
        ({"label_dropout": 1.0000001}, "--label-dropout must be at most 1, not 1.0000001"),
        ({"seed": 2**63}, "--seed must be at most 9223372036854775807, not 9223372036854775808"),
        ({"size": "wide"}, "--size 'wide': a size is a number of pixels, or HEIGHTxWIDTH"),
        ({"background": "reddish"}, "--background 'reddish'"),
        ({"background": 3}, "--background 3"),
        ({"batch_size": 2, "accumulation": 3}, "--accumulation must not exceed --batch-size"),
        ({"resume": True, "overwrite": True}, "--resume and --overwrite exclude each other"),
        ({"loss": "vlb", "weighting": "min-snr"}, "--weighting does not go with --loss vlb"),
    ],
    ids=str,
)
def test_a_wrong_training_option_is_named(options: dict[str, Any], message: str):
    with pytest.raises(UsageError) as caught:
        made(TrainConfig, **options)
    assert message in str(caught.value)


def test_types_are_checked_where_annotations_are_not_strings():
    fields = [("count", int, option(3, "Count.", low=1))]
    kind = dataclasses.make_dataclass("Counted", fields, bases=(Options,), frozen=True)
    ((count, _),) = option_fields(kind)
    assert kind(count=from_text(count, "4")).count == 4
    for wrong in ("4", 0, True):
        with pytest.raises(UsageError, match="--count must be"):
            kind(count=wrong)


def test_a_number_is_checked_when_it_is_typed():
    steps = next(f for f, _ in option_fields(TrainConfig) if f.name == "steps")
    assert from_text(steps, "7") == 7
    for wrong in ("many", "1.5", "0", "9" * 5000):
        with pytest.raises(UsageError, match="--steps"):
            from_text(steps, wrong)


def test_an_option_that_the_sampler_does_not_take_is_refused():
    assert made(SampleConfig, eta=0.5).eta == 0.5  # the model file may recommend ddim
    with pytest.raises(UsageError, match="--eta: the sampler 'ddpm' has none"):
        made(SampleConfig, sampler="ddpm", eta=0.5)


def test_gradient_checkpointing_is_no_part_of_a_model():
    config = made(TrainConfig, gradient_checkpointing=True)
    assert "gradient_checkpointing" not in to_dict(config, control=False)


def test_whole_floats_are_fine_where_a_float_is_meant():
    assert made(TrainConfig, lr=1, minutes=3).minutes == 3


@pytest.mark.parametrize("kind", [TrainConfig, SampleConfig])
def test_a_whole_number_becomes_a_float_where_one_is_meant(kind: type):
    for f, spec in option_fields(kind):
        inside = (spec.low or 0) <= 1 <= (spec.high or 1) and (spec.below or 2) > 1
        if str(f.type).startswith("float") and inside:
            assert type(getattr(made(kind, **{f.name: 1}), f.name)) is float


@pytest.mark.parametrize("value", [1.0, 10.5, "1", "many", "", -3, 1, True, [9]], ids=repr)
def test_timesteps_of_eval_are_a_number(value):
    with pytest.raises(UsageError, match="--timesteps"):
        made(EvalConfig, timesteps=value)


def test_timesteps_of_eval_may_be_all():
    assert made(EvalConfig, timesteps="all").timesteps == "all"
    assert made(EvalConfig, timesteps="20").timesteps == 20


# -- parsed values --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "size"),
    [
        (64, (64, 64)), ("64", (64, 64)), ("48x64", (48, 64)), ("48X64", (48, 64)),
        ([48, 64], (48, 64)), ((1, 4096), (1, 4096)),
        ("8x16x16", (8, 16, 16)), ([64], (64,)), ([8, 16, 16], (8, 16, 16)),
    ],
    ids=str,
)  # fmt: skip
def test_a_size_is_height_and_width(typed, size):
    assert parse_size(typed) == size


@pytest.mark.parametrize(
    "typed",
    ["", "x", "64x", "x64", "64x64x3x1", "-64", "6.4", "0", "0x5", "4097", "64 x 64", 0, -1,
     4097, 6.4, True, None, [], [64, 64, 3, 1], [64, 0], ["64", "64"], [6.5, 6], [True], {}],
    ids=repr,
)  # fmt: skip
def test_what_is_not_a_size_is_refused(typed):
    with pytest.raises(ValueError, match=r"size|side"):
        parse_size(typed)


@pytest.mark.parametrize(
    ("typed", "count"),
    [
        (64, 64), ("0", 0), ("500", 500), ("1k", 1024), ("1kB", 1000), ("1KiB", 1024),
        ("1.5 MiB", 1.5 * 2**20), ("500MB", 500_000_000), ("8G", 2**33), ("8GB", 8_000_000_000),
        ("2t", 2**41), (" 2TB ", 2 * 10**12),
    ],
)  # fmt: skip
def test_bytes_have_units_of_1000_or_1024(typed, count):
    assert parse_bytes(typed) == count


@pytest.mark.parametrize("typed", ["", "-1", "GB", "1iB", "1 B", "1.2.3", "1 EB", True, None])
def test_what_is_no_number_of_bytes_is_refused(typed):
    with pytest.raises(ValueError, match="a number of bytes"):
        parse_bytes(typed)


def test_times_fall_to_0_at_least():
    assert parse_times("999, 640.5,0") == parse_times([999, 640.5, 0]) == (999.0, 640.5, 0.0)
    assert parse_times(0) == (0.0,)
    for value in ((), "5,5", "4,5", "5,-1", "a", "1,nan", [True]):
        with pytest.raises(ValueError, match="falling numbers"):
            parse_times(value)


def test_lists_of_whole_numbers():
    assert parse_ints("1,2,2") == parse_ints([1, 2, 2]) == (1, 2, 2)
    assert parse_ints(8) == (8,)
    for wrong in ("", [], "1,a", [1, 0], [1.5], [True]):
        with pytest.raises(ValueError, match=r"whole|invalid"):
            parse_ints(wrong)


def test_names_are_one_or_several():
    assert parse_names("linear") == ("linear",)
    assert parse_names(["linear", "cosine"]) == ("linear", "cosine")
    with pytest.raises(ValueError, match="a name, or a list of names"):
        parse_names(["linear", 5])


@pytest.mark.parametrize("kind", [SampleConfig, EvalConfig])
def test_an_interval_is_two_rising_numbers(kind: type, tmp_path: Path):
    for value in ("0.3,3", [0.3, 3], " 0.3 , 3 "):
        config = made(kind, guidance_interval=value)
        assert config.guidance_interval == (0.3, 3.0)
        (tmp_path / "c.toml").write_text(to_toml(to_dict(config)))
        assert from_dict(kind, read_toml(tmp_path / "c.toml")) == config
    for value in (
        "3,0.3",
        "1,1",
        "-1,2",
        "1",
        "1,2,3",
        "a,b",
        "nan,1",
        "1,nan",
        "1,inf",
        "",
        3,
        [1],
        True,
    ):
        with pytest.raises(UsageError, match="--guidance-interval"):
            made(kind, guidance_interval=value)


# -- dictionaries and TOML ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(REQUIRED))
def test_a_configuration_survives_its_toml(kind: type, tmp_path: Path):
    path = tmp_path / "c.toml"
    config = made(kind)
    path.write_text(to_toml(to_dict(config)), encoding="utf-8")
    assert from_dict(kind, read_toml(path)) == config


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 10**8), st.floats(0, 10), st.text(min_size=1, max_size=20), st.booleans(),
    st.integers(0, 2**63 - 1), st.tuples(st.integers(1, 4096), st.integers(1, 4096)),
)  # fmt: skip
def test_any_values_survive_toml(tmp_path_factory, steps, lr, data, flip, seed, size):
    data = data.encode("utf-8", "ignore").decode()
    config = TrainConfig(
        data=data, steps=steps, lr=lr, flip=flip, seed=seed, size=size, minutes=2.5,
        architecture={"width": 64, "multipliers": [1, 2]},
    )  # fmt: skip
    path = tmp_path_factory.mktemp("toml") / "c.toml"
    path.write_bytes(to_toml(to_dict(config)).encode())
    assert from_dict(TrainConfig, read_toml(path)) == config


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("ends", [b"\n", b"\r\n"])
def test_line_ends_and_byte_order_marks_are_of_no_matter(tmp_path: Path, bom: bytes, ends: bytes):
    path = tmp_path / "c.toml"
    path.write_bytes(bom + ends.join([b"# a comment", b"steps = 7", b'schedule = "linear"', b""]))
    assert read_toml(path) == {"steps": 7, "schedule": "linear"}


@pytest.mark.parametrize(
    "content",
    [
        b"steps = ",
        b"\xff\xfe",
        b"steps = 1\nsteps = 2\n",
        b"\0",
        b"a = " + b"[" * 5000,
        b"{}",
        b"steps = " + b"9" * 5000,
    ],
    ids=["cut", "utf-16", "twice", "zero", "deep", "json", "long"],
)
def test_what_is_not_toml_is_a_usage_error(tmp_path: Path, content: bytes):
    path = tmp_path / "c.toml"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"--config .*c\.toml is not TOML"):
        read_toml(path)


def test_a_missing_configuration_is_a_usage_error(tmp_path: Path):
    with pytest.raises(UsageError, match="No such file"):
        read_toml(tmp_path / "absent.toml")
    with pytest.raises(UsageError, match="Is a directory"):
        read_toml(tmp_path)


def test_an_unknown_key_is_told_the_nearest():
    with pytest.raises(UsageError, match=r"no option 'step'. Did you mean 'steps'"):
        from_dict(TrainConfig, {"data": "x", "step": 7})
    with pytest.raises(UsageError, match=r"c.toml: there is no option 'batchsize'"):
        from_dict(TrainConfig, {"data": "x", "batchsize": 7}, "c.toml")


@pytest.mark.parametrize("kind", [k for k, needed in REQUIRED.items() if needed])
def test_what_is_missing_is_named(kind: type):
    metavar = next(spec.metavar for f, spec in option_fields(kind) if f.name in REQUIRED[kind])
    with pytest.raises(UsageError, match=f"{metavar} is missing"):
        from_dict(kind, {})


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (TrainConfig, {"steps": "many"}),
        (TrainConfig, {"steps": [1]}),
        (TrainConfig, {"steps": {"a": 1}}),
        (TrainConfig, {"lr": "fast"}),
        (TrainConfig, {"data": 5}),
        (TrainConfig, {"preset": ["tiny"]}),
        (TrainConfig, {"size": [1, 2, 3, 4]}),
        (TrainConfig, {"size": {"height": 3}}),
        (TrainConfig, {"architecture": 5}),
        (TrainConfig, {"architecture": "tiny"}),
        (EvalConfig, {"timesteps": [50]}),
        (EvalConfig, {"timesteps": math.inf}),
        (EvalConfig, {"timesteps": math.nan}),
        (EvalConfig, {"timesteps": 10.7}),
        (DemoConfig, {"schedule": 5}),
        (DemoConfig, {"schedule": [5]}),
    ],
    ids=lambda v: v.__name__ if isinstance(v, type) else str(v),
)
def test_a_wrong_type_from_toml_is_a_usage_error(kind: type, values: dict[str, Any]):
    with pytest.raises(UsageError):
        from_dict(kind, {**REQUIRED[kind], **values})


def test_one_name_is_as_good_as_a_list_of_one():
    assert made(DemoConfig, schedule="linear").schedule == ("linear",)
    assert made(DemoConfig, schedule=["linear", "cosine"]).schedule == ("linear", "cosine")


def test_control_and_places_can_be_left_out():
    config = made(TrainConfig, out="x.safetensors", stop_at=3)
    whole, plain = to_dict(config), to_dict(config, control=False, places=False)
    assert {"data", "out", "stop_at", "resume", "log_every"} <= whole.keys()
    assert not {"data", "out", "stop_at", "resume", "overwrite", "workers"} & plain.keys()
    assert {"warmup", "seed", "schedule", "architecture"} <= plain.keys()
    assert "lr" not in whole


# -- the options as a whole -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(REQUIRED))
def test_every_option_is_explained(kind: type):
    for f, spec in option_fields(kind):
        assert spec.help.endswith("."), f.name
        assert spec.help[0].isupper(), f.name
        needed = spec.argument and f.default is dataclasses.MISSING
        assert needed == (f.name in REQUIRED[kind]), f.name


@pytest.mark.parametrize("kind", list(REQUIRED))
def test_configurations_are_frozen_and_by_keyword(kind: type):
    config = made(kind)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seed = 3
    with pytest.raises(TypeError):
        kind("positional")


def test_an_unknown_name_is_told_the_nearest_or_all():
    table = {"linear": 1, "cosine": 2}
    with pytest.raises(UsageError, match=r"--schedule: there is no 'cosin'. Did you mean 'cosine'"):
        lookup(table, "cosin", "--schedule")
    with pytest.raises(UsageError, match="Choose from: linear, cosine"):
        lookup(table, "zzz", "--schedule")


@pytest.mark.parametrize(
    ("value", "names"),
    [
        (["none"], ()),
        ((), ()),
        ("auto", None),
        (["flip,shift", "flip"], ("flip", "shift")),
        ("", "error"),
        ([""], "error"),
        (["none,flip"], "error"),
        (["auto", "flip"], "error"),
        ("flip,", "error"),
    ],
)
def test_augmentations_are_names_or_one_word_for_all(value: Any, names: Any):
    if names != "error":
        assert TrainConfig(data="", augment=value).augment == names
        return
    with pytest.raises(UsageError, match="none, auto, or names such as flip,shift"):
        TrainConfig(data="", augment=value)


@pytest.mark.parametrize("minutes", ["\N{ARABIC-INDIC DIGIT THREE}", "\N{SUPERSCRIPT THREE}"])
def test_numbers_have_the_digits_0_to_9(minutes: str):
    fields = {f.name: f for f, _ in option_fields(TrainConfig)}
    with pytest.raises(UsageError, match="--minutes must be a number"):
        from_text(fields["minutes"], minutes)
    assert from_text(fields["minutes"], "3.5") == 3.5
