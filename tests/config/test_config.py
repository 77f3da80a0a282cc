"""Configurations: checked when made, the same after TOML."""

import dataclasses
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffuse_cli.config.eval_options import EmaConfig, EvalConfig, TuneConfig
from diffuse_cli.config.exchange_options import ConvertConfig
from diffuse_cli.config.options import (
    Options,
    field_flag,
    from_text,
    option,
    option_fields,
    read_toml,
    to_toml,
)
from diffuse_cli.config.parsers import parse_bytes, parse_ints, parse_names, parse_size, parse_times
from diffuse_cli.config.sample_options import SampleConfig
from diffuse_cli.config.shared_options import DiffusionConfig
from diffuse_cli.config.task_options import DemoConfig
from diffuse_cli.config.train_options import TrainConfig
from diffuse_cli.system.errors import UsageError, lookup

REQUIRED = {
    DiffusionConfig: {},
    TrainConfig: {"data": "images"},
    SampleConfig: {"model": "m.safetensors"},
    EvalConfig: {"subject": "m.safetensors", "data": "images"},
    TuneConfig: {"subject": "m.safetensors", "data": "images"},
    EmaConfig: {"subject": "m.safetensors", "data": "images"},
    DemoConfig: {"image": "a.png"},
    ConvertConfig: {"source": "pipeline"},
}


def numbers():
    """Every option of every configuration that is a number with a range."""
    return [
        pytest.param(kind, f, spec, id=f"{kind.__name__}.{f.name}")
        for kind in REQUIRED
        for f, spec in option_fields(kind)
        if spec.parse is None and str(f.type).removesuffix(" | None") in ("int", "float")
    ]


def made(kind, **values):
    return kind(**{**REQUIRED[kind], **values})


# -- numbers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "f", "spec"), numbers())
def test_every_number_has_a_range_that_names_its_flag(kind, f, spec):
    wrong = [math.nan, math.inf, -math.inf, 10**400, True, "5", [5]]
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


def test_types_are_checked_where_annotations_are_not_strings():
    fields = [("count", int, option(3, "Count.", low=1))]
    kind = dataclasses.make_dataclass("Counted", fields, bases=(Options,), frozen=True)
    ((count, _),) = option_fields(kind)
    assert kind(count=from_text(count, "4")).count == 4
    for wrong in ("4", 0, True):
        with pytest.raises(UsageError, match="--count must be"):
            kind(count=wrong)


def test_a_number_is_checked_when_it_is_typed():
    fields = {f.name: f for f, _ in option_fields(TrainConfig)}
    assert (from_text(fields["steps"], "7"), from_text(fields["minutes"], "3.5")) == (7, 3.5)
    digits = ["\N{ARABIC-INDIC DIGIT THREE}", "\N{SUPERSCRIPT THREE}"]
    for name, texts in {"steps": ["many", "1.5", "0", "9" * 5000], "minutes": digits}.items():
        for text in texts:
            with pytest.raises(UsageError, match=f"--{name}"):
                from_text(fields[name], text)


@pytest.mark.parametrize("kind", [TrainConfig, SampleConfig])
def test_a_whole_number_becomes_a_float_where_one_is_meant(kind):
    for f, spec in option_fields(kind):
        inside = (spec.low or 0) <= 1 <= (spec.high or 1) and (spec.below or 2) > 1
        if str(f.type).startswith("float") and inside:
            assert type(getattr(made(kind, **{f.name: 1}), f.name)) is float


# -- parsed values --------------------------------------------------------------------------------

GIB, GB = 2**30, 10**9

READ = [
    *((parse_size, typed, size) for typed, size in [
        (64, (64, 64)), ("64", (64, 64)), ("48x64", (48, 64)), ("48X64", (48, 64)),
        ([48, 64], (48, 64)), ((1, 4096), (1, 4096)), ("8x16x16", (8, 16, 16)), ([64], (64,)),
        ([8, 16, 16], (8, 16, 16)),
    ]),
    *((parse_bytes, typed, count) for typed, count in [
        (64, 64), ("0", 0), ("500", 500), ("1k", 1024), ("1kB", 1000), ("1KiB", 1024),
        ("1.5 GiB", 1.5 * GIB), ("500MB", GB / 2), ("8G", 8 * GIB), ("8GB", 8 * GB),
        ("2t", 2048 * GIB), (" 2TB ", 2000 * GB),
    ]),
    (parse_times, "999, 640.5,0", (999.0, 640.5, 0.0)), (parse_times, [999, 0], (999.0, 0.0)),
    (parse_times, 0, (0.0,)),
    (parse_ints, "1,2,2", (1, 2, 2)), (parse_ints, [1, 2], (1, 2)), (parse_ints, 8, (8,)),
    (parse_names, "linear", ("linear",)), (parse_names, ["a", "b"], ("a", "b")),
]  # fmt: skip


@pytest.mark.parametrize(("parse", "typed", "value"), READ)
def test_a_value_is_read(parse, typed, value):
    assert parse(typed) == value


WRONG = {
    parse_size: (
        r"size|side",
        ["", "x", "64x", "x64", "64x64x3x1", "-64", "6.4", "0", "0x5", "4097", "64 x 64", 0, -1,
         4097, 6.4, True, None, [], [64, 64, 3, 1], [64, 0], ["64", "64"], [6.5, 6], [True], {}],
    ),
    parse_bytes: (
        "a number of bytes", ["", "-1", "GB", "1iB", "1 B", "1.2.3", "1 EB", True, None],
    ),
    parse_times: ("falling numbers", [(), "5,5", "4,5", "5,-1", "a", "1,nan", [True]]),
    parse_ints: (r"whole|invalid", ["", [], "1,a", [1, 0], [1.5], [True]]),
    parse_names: ("a name, or a list of names", [["linear", 5]]),
}  # fmt: skip


@pytest.mark.parametrize("parse", WRONG)
def test_any_other_value_is_refused(parse):
    words, values = WRONG[parse]
    for value in values:
        with pytest.raises(ValueError, match=words):
            parse(value)


OPTION_VALUES = [
    *((kind, "guidance_interval", value, (0.3, 3.0))
      for kind in (SampleConfig, EvalConfig) for value in ("0.3,3", [0.3, 3], " 0.3 , 3 ")),
    (EvalConfig, "timesteps", "all", "all"), (EvalConfig, "timesteps", "20", 20),
    (DemoConfig, "schedule", "linear", ("linear",)),
    (TrainConfig, "minutes", 3, 3.0),
    *((TrainConfig, "augment", value, names) for value, names in [
        (["none"], ()), ((), ()), ("auto", None), (["flip,shift", "flip"], ("flip", "shift")),
    ]),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "name", "value", "wanted"), OPTION_VALUES)
def test_an_option_has_its_value_also_after_toml(kind, name, value, wanted, tmp_path):
    config = made(kind, **{name: value})
    assert getattr(config, name) == wanted
    (tmp_path / "c.toml").write_text(to_toml(config.to_dict()))
    assert kind.from_dict(read_toml(tmp_path / "c.toml")) == config


REFUSED = [
    *((kind, "guidance_interval", [
        "3,0.3", "1,1", "-1,2", "1", "1,2,3", "a,b", "nan,1", "1,nan", "1,inf", "", 3, [1], True,
    ]) for kind in (SampleConfig, EvalConfig)),
    (EvalConfig, "timesteps", [1.0, 10.5, "1", "many", "", -3, 1, True, [9], math.inf, math.nan]),
    (TrainConfig, "augment", ["", [""], ["none,flip"], ["auto", "flip"], "flip,"]),
    (TrainConfig, "background", ["reddish", 3]),
    (TrainConfig, "steps", ["many", 2.5, [1], {"a": 1}]), (TrainConfig, "lr", ["fast"]),
    (TrainConfig, "flip", [1]), (TrainConfig, "data", [5]), (TrainConfig, "preset", [["tiny"]]),
    (TrainConfig, "schedule", [3]), (TrainConfig, "size", [[1, 2, 3, 4], {"height": 3}]),
    (TrainConfig, "architecture", [5, "tiny"]), (DemoConfig, "schedule", [5, [5]]),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "name", "values"), REFUSED)
def test_a_wrong_value_of_an_option_is_a_usage_error_that_names_it(kind, name, values):
    for value in values:
        with pytest.raises(UsageError) as caught:
            kind.from_dict({**REQUIRED[kind], name: value})
        named = {"architecture": "unet"}.get(name, name.replace("_", "-"))
        assert named in str(caught.value).lower(), value


# -- dictionaries and TOML ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(REQUIRED))
def test_a_configuration_survives_its_toml_and_is_frozen_and_by_keyword(kind, tmp_path):
    path, config = tmp_path / "c.toml", made(kind)
    path.write_text(to_toml(config.to_dict()), encoding="utf-8")
    assert kind.from_dict(read_toml(path)) == config
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seed = 3
    with pytest.raises(TypeError):
        kind("positional")


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
    path.write_bytes(to_toml(config.to_dict()).encode())
    assert TrainConfig.from_dict(read_toml(path)) == config


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("ends", [b"\n", b"\r\n"])
def test_line_ends_and_byte_order_marks_are_of_no_matter(tmp_path, bom, ends):
    path = tmp_path / "c.toml"
    path.write_bytes(bom + ends.join([b"# a comment", b"steps = 7", b'schedule = "linear"', b""]))
    assert read_toml(path) == {"steps": 7, "schedule": "linear"}


@pytest.mark.parametrize(
    "content",
    [b"steps = ", b"\xff\xfe", b"steps = 1\nsteps = 2\n", b"\0", b"a = " + b"[" * 5000, b"{}",
     b"steps = " + b"9" * 5000],
    ids=["cut", "utf-16", "twice", "zero", "deep", "json", "long"],
)  # fmt: skip
def test_what_is_not_toml_is_a_usage_error(tmp_path, content):
    path = tmp_path / "c.toml"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"--config .*c\.toml is not TOML"):
        read_toml(path)


def test_an_unknown_key_is_told_the_nearest():
    with pytest.raises(UsageError, match=r"toml: there is no option 'step'. Did you mean 'steps'"):
        TrainConfig.from_dict({"data": "x", "step": 7}, "c.toml")
    for name, said in {"cosin": "Did you mean 'cosine'", "zzz": "from: linear, cosine"}.items():
        with pytest.raises(UsageError, match=f"--schedule: there is no '{name}'.*{said}"):
            lookup({"linear": 1, "cosine": 2}, name, "--schedule")


def test_control_and_places_can_be_left_out():
    config = made(TrainConfig, out="x.safetensors", stop_at=3)
    whole, plain = config.to_dict(), config.to_dict(control=False, places=False)
    assert {"data", "out", "stop_at", "resume", "log_every"} <= whole.keys()
    assert not {"data", "out", "stop_at", "resume", "overwrite", "workers"} & plain.keys()
    assert {"warmup", "seed", "schedule", "architecture"} <= plain.keys()
    assert "lr" not in whole
    assert "gradient_checkpointing" not in config.to_dict(control=False)


# -- the options as a whole -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(REQUIRED))
def test_every_option_is_explained(kind):
    for f, spec in option_fields(kind):
        assert spec.help.endswith("."), f.name
        assert spec.help[0].isupper(), f.name
        needed = spec.argument and f.default is dataclasses.MISSING
        assert needed == (f.name in REQUIRED[kind]), f.name
