"""The averages of the weights: the one that generates samples, and any length from two."""

from __future__ import annotations

import math
import shutil

import numpy as np
import pytest
import torch
from conftest import MODEL, RUN
from file_operations import FULL, failing
from torch import nn

from diffuse_cli.commands.ema.ema_lengths import LENGTHS
from diffuse_cli.models import tensor_file
from diffuse_cli.system import files
from diffuse_cli.system.errors import OutputError
from diffuse_cli.training.ema_weights import (
    KEPT_LENGTHS,
    EmaAverage,
    PowerAverages,
    Profile,
    combine_weights,
    decay_at,
    fit_profile,
    gamma_of,
    is_update_due,
    list_snapshots,
    read_snapshot,
    save_snapshot,
    snapshot_due,
)
from diffuse_cli.training.optimization import ProgressSchedule


class Net(nn.Module):
    """A network of two numbers, in double precision so that digits can be told, with buffers."""

    def __init__(self):
        super().__init__()
        self.value = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        self.other = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        self.register_buffer("table", torch.zeros(3))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))

    def set(self, value):
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.fill_(value)


def averaged(values, lengths=KEPT_LENGTHS):
    """The averages of a sequence, straight from the definition: beta(t) = (1 - 1/t)^(gamma + 1)."""
    found = dict.fromkeys(lengths, 0.0)
    for t, value in enumerate(values, 1):
        for length in lengths:
            beta = (1 - 1 / t) ** (gamma_of(length) + 1)
            found[length] = beta * found[length] + (1 - beta) * value
    return found


# -- the average that generates samples -----------------------------------------------------------

LARGEST = 0.9999


def test_decay_warms_up_and_never_exceeds_the_largest():
    for update, decay in [(0, 0.0), (1, 0.4053964425), (1000, 0.9943808006), (10**9, LARGEST)]:
        assert decay_at(update, LARGEST) == pytest.approx(decay, abs=1e-10)
    decays = [decay_at(n, 0.99) for n in range(2000)]
    assert decays == sorted(decays)
    assert decays[-1] == 0.99
    assert decay_at(5, 0.0) == 0


def test_the_average_follows_its_recursion():
    """Several updates at once decay like each in turn, and none changes nothing."""
    net = Net()
    model = EmaAverage(net, 0.6)
    expected, update = 0.0, 0
    for value, count in [(1.0, 1), (5.0, 1), (-2.0, 2), (3.0, 4), (9.0, 0), (3.0, 1)]:
        net.set(value)
        model.update(net, count)
        for _ in range(count):
            decay = min(0.6, 1 - (update + 1) ** -0.75)
            expected = decay * expected + (1 - decay) * value
            update += 1
        assert model.updates == update
        assert [float(p) for p in model.net.parameters()] == pytest.approx([expected] * 2)


def test_buffers_are_not_averaged():
    net = Net()
    net.table.fill_(5.0)
    model = EmaAverage(net, LARGEST)
    for value in (1.0, 9.0, 2.0):
        net.table.fill_(value)
        net.count.fill_(int(value))
        model.update(net)
        assert float(model.net.table[0]) in (5.0, value)
        assert int(model.net.count) in (0, int(value))


def test_the_average_is_a_copy_without_gradients_in_eval_mode():
    """Its first update forgets the start."""
    net = Net()
    model = EmaAverage(net, LARGEST)
    net.set(7.0)
    assert float(model.net.value) != 7
    assert not model.net.training
    assert not any(p.requires_grad for p in model.net.parameters())
    assert all(p.requires_grad for p in net.parameters())
    model.update(net)
    assert float(model.net.value) == 7


def test_the_average_is_due_early_often_and_at_the_end():
    assert all(is_update_due(done, 1000) for done in range(1, 65))
    assert [done for done in range(65, 80) if is_update_due(done, 79)] == [68, 72, 76, 79]


# -- lengths --------------------------------------------------------------------------------------


def test_the_exponents_are_those_of_the_paper():
    assert gamma_of(0.05) == pytest.approx(16.97, abs=0.005)
    assert gamma_of(0.10) == pytest.approx(6.94, abs=0.005)
    assert gamma_of(1 / math.sqrt(12)) == pytest.approx(0, abs=1e-9)
    x = (np.arange(200_000) + 0.5) / 200_000
    for length in (0.02, 0.1, 0.27):  # the standard deviation of its profile
        gamma = gamma_of(length)
        p = (gamma + 1) * x**gamma / len(x)
        mean = float(p @ x)
        assert math.sqrt(float(p @ (x - mean) ** 2)) == pytest.approx(length, rel=1e-6)


# -- following ------------------------------------------------------------------------------------


def test_the_averages_are_those_of_the_definition():
    """Of a sequence, of whose values some stand for several updates."""
    counts, net = [3, 4, 0, 1, 1, 1, 5], Net()
    values = np.random.default_rng(0).normal(size=len(counts))
    powers = PowerAverages(net)
    for value, count in zip(values, counts, strict=True):
        net.set(value)
        powers.update(net, count)
    expected = averaged(np.repeat(values, counts))
    found = powers.tensors()
    assert [*found] == ["0.05/value", "0.05/other", "0.10/value", "0.10/other"]
    wanted = np.repeat([*expected.values()], 2)
    assert [float(tensor) for tensor in found.values()] == pytest.approx(wanted)
    assert powers.updates == sum(counts)


# -- any other length -----------------------------------------------------------------------------


def test_products_of_profiles_are_their_integrals():
    n, b = 400_000, 90.0
    x = (np.arange(n) + 0.5) / n * b
    for ga, ta, gb in ((3.0, 40.0, 7.0), (7.0, 40.0, 3.0), (2.0, 90.0, 5.0)):
        p = np.where(x <= ta, (ga + 1) * (x / ta) ** ga / ta, 0)
        q = (gb + 1) * (x / b) ** gb / b
        expected = float(p @ q) * b / n
        assert Profile(ga, ta).dot(Profile(gb, b)) == pytest.approx(expected, rel=1e-4)
        assert Profile(gb, b).dot(Profile(ga, ta)) == Profile(ga, ta).dot(Profile(gb, b))


def due_of(steps, count):
    return [s for s in range(1, steps + 1) if snapshot_due(s, ProgressSchedule.of(steps), count)]


def profiles_of(due):
    return [Profile(gamma_of(length), t) for t in due for length in KEPT_LENGTHS]


def test_the_fit_is_the_least_squares_of_profiles_on_a_grid():
    """An oracle that knows nothing of the closed form: columns of numbers, and NumPy. The reference
    code of Karras et al. divides by the sum, too."""
    n, due = 200_000, due_of(100, 5)
    x = (np.arange(n) + 0.5) / n * 100
    columns = [
        np.where(x <= p.updates, (p.gamma + 1) * (x / p.updates) ** p.gamma / p.updates, 0)
        for p in profiles_of(due)
    ]
    wanted = Profile(gamma_of(0.13), 100)
    aim = (wanted.gamma + 1) * (x / 100) ** wanted.gamma / 100
    expected, *_ = np.linalg.lstsq(np.stack(columns, 1), aim, rcond=None)
    found = fit_profile(profiles_of(due), wanted)
    assert found.coefficients == pytest.approx(expected / expected.sum(), abs=2e-3)
    left = aim - np.stack(columns, 1) @ found.coefficients
    error = np.linalg.norm(left) / np.linalg.norm(aim)
    assert found.error == pytest.approx(error, rel=1e-2)


@pytest.mark.parametrize("length", KEPT_LENGTHS)
def test_a_length_that_was_kept_is_itself(length):
    due = due_of(1000, 24)
    found = fit_profile(profiles_of(due), Profile(gamma_of(length), 1000))
    expected = np.zeros(2 * len(due))
    expected[-2 + KEPT_LENGTHS.index(length)] = 1
    assert found.coefficients == pytest.approx(expected, abs=1e-6)
    assert found.error < 1e-6


def keep_snapshots(folder, values, count):
    """The snapshots of the averages of a sequence, in single precision as a run has them, and their
    profiles."""
    net, course = Net().float(), ProgressSchedule.of(len(values))
    powers = PowerAverages(net)
    for step, value in enumerate(values, 1):
        net.set(value)
        powers.update(net)
        if snapshot_due(step, course, count):
            save_snapshot(folder, powers, step, course, count)
    given = [read_snapshot(path) for _, path in list_snapshots(folder)]
    return given, [p for s in given for p in s.profiles.values()]


@pytest.mark.parametrize("count", [2, 3, 24])
def test_coefficients_sum_to_one_and_constant_weights_come_back(tmp_path, count):
    given, profiles = keep_snapshots(tmp_path, [0.7] * 1000, count)
    found = [fit_profile(profiles, Profile(gamma_of(length), 1000)) for length in LENGTHS]
    for each, made in zip(found, combine_weights(given, found), strict=True):
        assert each.coefficients.sum() == pytest.approx(1, abs=1e-12)
        assert made["value"].item() == pytest.approx(0.7, rel=1e-6)


@pytest.mark.parametrize(("count", "tolerance"), [(8, 3e-2), (24, 3e-3), (64, 5e-4)])
def test_a_length_made_afterwards_equals_the_one_averaged_directly(tmp_path, count, tolerance):
    """The values settle as weights do, with noise on them; the more snapshots, the nearer."""
    steps, draw = 2000, np.random.default_rng(1)
    values = np.exp(-np.arange(steps) / 300) + 0.3 * draw.normal(size=steps)
    given, profiles = keep_snapshots(tmp_path, values, count)
    for length in (0.04, 0.07, 0.12, 0.15):
        wanted = Profile(gamma_of(length), steps)
        found = fit_profile(profiles, wanted)
        [made] = combine_weights(given, [found])
        expected = averaged(values, [length])[length]
        spread = 0.3 * math.sqrt(wanted.dot(wanted))
        assert float(made["value"]) == pytest.approx(expected, abs=3 * tolerance * spread), length
        assert found.error < 3 * tolerance, length


# -- a run ----------------------------------------------------------------------------------------

KEEP = ("--ema-lengths", 4)


def saved(run=RUN):
    return {step: path.read_bytes() for step, path in list_snapshots(run / "ema")}


@pytest.fixture
def kept(lab):
    """The folder of a run of 16 steps that keeps 4 snapshots."""
    return lab.trained(*lab.quick, "--steps", 16, *KEEP).parent


def test_keeping_them_changes_nothing_else(quick, kept):
    assert quick("--steps", 16).code == 0
    assert MODEL.read_bytes() == (kept / MODEL).read_bytes()
    assert [*saved(kept / RUN)] == [4, 8, 12, 16]
    snapshot = read_snapshot(kept / RUN / "ema/step-00000012.safetensors")
    assert snapshot.step == 12
    assert [p.updates for p in snapshot.profiles.values()] == [12, 12]
    assert not (RUN / "ema").exists()
    assert not list(RUN.rglob("powers.safetensors"))
    assert "ema_lengths" not in (RUN / "config.toml").read_text()


def test_the_average_of_a_run_is_that_of_its_weights(quick, each_step):
    raw = []
    each_step(after=lambda own, step: raw.append(own.net.patch_out.weight[0, 0].item()))
    quick("--steps", 12, *KEEP)
    assert len({*raw}) == 12
    found = tensor_file.read(RUN / "ema/step-00000012.safetensors")
    for length, value in averaged(raw).items():
        here = found[f"{length:.2f}/patch_out.weight"][0, 0]
        assert float(here) == pytest.approx(value, rel=1e-4)


@pytest.mark.parametrize("stop", [8, 13])
def test_stopped_and_resumed_keeps_the_same_snapshots(quick, kept, stop):
    quick("--steps", 16, *KEEP, "--stop-at", stop)
    assert quick("--resume").code == 0
    assert saved() == saved(kept / RUN)
    assert MODEL.read_bytes() == (kept / MODEL).read_bytes()


def test_snapshots_and_previews_of_a_course_that_was_left_go(quick):
    quick("--steps", 16, *KEEP, "--preview-every", 4, "--stop-at", 6)
    shutil.copytree(RUN, "kept")
    quick("--resume", "--stop-at", 14)
    for name in ("ema", "previews"):
        shutil.copytree(RUN / name, f"kept/{name}", dirs_exist_ok=True)
    shutil.rmtree(RUN)
    shutil.move("kept", RUN)
    quick("--resume", "--stop-at", 7)
    assert [*saved()] == [4]
    assert sorted(int(path.stem[5:]) for path in (RUN / "previews").iterdir()) == [4, 6, 7]
    quick("--steps", 16, "--overwrite")
    assert not (RUN / "ema").exists()


def test_a_longer_run_thins_them(quick, kept, copy_run, lab):
    copy_run(*lab.quick, "--steps", 16, *KEEP)
    quick("--resume", "--steps", 24)
    assert [*saved()] == [12, 18, 24]


def test_a_snapshot_is_whole_or_not_there(tmp_path, monkeypatch):
    powers = PowerAverages(Net().float())
    save_snapshot(tmp_path, powers, 1, ProgressSchedule.of(4), 4)
    monkeypatch.setattr(files, "operation", failing("rename", FULL))
    with pytest.raises(OutputError):
        save_snapshot(tmp_path, powers, 2, ProgressSchedule.of(4), 4)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001.safetensors"]


def test_the_estimate_of_memory_covers_them(quick, step_takes):
    step_takes(1.0)
    without = quick("--dry-run", "--json").json
    kept = quick("--dry-run", "--json", *KEEP).json
    more = len(KEPT_LENGTHS) * 4 * without["parameters"]
    assert kept["memory_bytes"] - without["memory_bytes"] == more


def test_what_is_no_snapshot_is_refused(tmp_path):
    path = tmp_path / "step-00000001.safetensors"
    for text in (
        None,
        "[]",
        '{"lengths": [0.05]}',
        '{"lengths": [0.05], "updates": 1e999, "step": 1}',
        '{"lengths": [0], "updates": 1, "step": 1}',
        '{"lengths": [0.05], "updates": 0, "step": 1}',
    ):
        metadata = text and {"diffuse.ema": text}
        tensor_file.write(path, {"a": torch.zeros(1)}, metadata)
        with pytest.raises(ValueError, match="not a snapshot"):
            read_snapshot(path)
    assert list_snapshots(tmp_path) == [(1, path)]
