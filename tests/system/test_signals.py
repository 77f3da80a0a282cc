"""SIGINT and SIGTERM: the last finished step is saved, and the line that goes on is said."""

import os
import pty
import shlex
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import MODEL, RUN, log_rows
from lab import QUICK, write_images
from torch._dynamo.exc import BackendCompilerFailed

from diffuse_cli import app
from diffuse_cli.commands import info
from diffuse_cli.media import image
from diffuse_cli.models import model_file
from diffuse_cli.training import previews as training_previews
from diffuse_cli.training.run_directory import RunDirectory
from diffuse_cli.training.trainer import Trainer


def newest():
    return max(int(p.name[5:]) for p in (RUN / "checkpoints").iterdir())


def typed_again(text):
    """The arguments of the command that a message says goes on."""
    return shlex.split(text.strip().splitlines()[-1].split("Resume with: ")[1])[1:]


def test_a_signal_saves_the_last_step_and_says_how_to_go_on(spawn, diffuse, images, recipe, whole):
    child = spawn("train", images, "--config", recipe, "--steps", 40, "--log-every", 1)
    for line in child.stderr:
        if line.startswith("step 4/"):
            break
    child.send_signal(signal.SIGTERM)
    out, err = child.communicate(timeout=30)
    assert (child.returncode, out) == (143, "")
    assert "Traceback" not in err
    assert f"at step {newest()}: checkpoint saved" in err.splitlines()[-1]
    assert not MODEL.exists()
    assert max(row["step"] for row in log_rows()) == newest()
    assert diffuse(*typed_again(err)).code == 0
    assert MODEL.read_bytes() == whole


@pytest.fixture
def at_step(monkeypatch):
    """Send signals to this process while a step is under way."""

    def send(step, *numbers):
        real = Trainer.step

        def take(self, number):
            if number == step:
                for each in numbers:
                    signal.raise_signal(each)
            return real(self, number)

        monkeypatch.setattr(Trainer, "step", take)

    return send


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_step_under_way_is_finished_first(quick, at_step, number, code):
    at_step(4, number)
    ran = quick("--steps", 9, "-q")
    assert ran.code == code
    assert newest() == 5
    assert "--resume -o model.safetensors" in ran.line


def test_a_second_signal_stops_at_once_and_the_last_checkpoint_stands(quick, at_step, monkeypatch):
    at_step(4, signal.SIGINT, signal.SIGINT)
    assert quick("--steps", 9, "--save-every", 3, "-q").code == 130
    assert newest() == 3
    monkeypatch.undo()
    assert not list(RUN.rglob("*.tmp"))


def test_an_interrupt_of_another_making_ends_as_one(diffuse, monkeypatch):
    """Such as Python raises where no handler of ours is set."""

    def interrupted(*arguments):
        raise KeyboardInterrupt

    for place, name in ((info, "run"), (app, "build")):
        monkeypatch.setattr(place, name, interrupted)
        ran = diffuse("info", "model.safetensors")
        assert (ran.code, ran.out, ran.err.strip()) == (130, "", "")


def test_a_signal_while_images_are_read_leaves_nothing_behind(quick, monkeypatch, tmp_path):
    from diffuse_cli.training import training_data

    def interrupted(*arguments, **options):
        yield from ()
        signal.raise_signal(signal.SIGINT)
        yield from real(*arguments, **options)

    real = training_data.read_images
    monkeypatch.setattr(training_data, "read_images", interrupted)
    assert quick("--steps", 9, "-q").fails(130).err.count("\n") == 1
    assert not list(tmp_path.iterdir())


# -- each phase -----------------------------------------------------------------------------------


def raising(number, real):
    """`real`, with a signal to this process before it begins for the first time."""
    sent = []

    def called(*arguments, **options):
        if not sent:
            sent.append(number)
            signal.raise_signal(number)
        return real(*arguments, **options)

    return called


@pytest.mark.parametrize("where", ["held_out_losses", "draw"])
def test_a_look_at_the_model_is_abandoned_and_the_step_saved(quick, monkeypatch, where):
    """Nothing of it is finished first: an evaluation may take minutes, and holds no state."""
    finished = []

    def interrupted(*arguments, **options):
        signal.raise_signal(signal.SIGTERM)
        finished.append(True)
        yield

    if where == "draw":
        monkeypatch.setattr(training_previews, "generate_batches", interrupted)
    else:
        real = Trainer.held_out_losses
        monkeypatch.setattr(Trainer, where, lambda self: [*interrupted()] and real(self))
    quick("--steps", 9, "--preview-every", 5, "--save-every", 100, "-q").fails(143)
    assert finished == []
    assert newest() == 5
    assert not list((RUN / "previews").glob("*")) if (RUN / "previews").exists() else True
    monkeypatch.undo()


@pytest.mark.parametrize("at", [2, 4])
def test_a_look_that_was_abandoned_is_made_up_for(quick, monkeypatch, lab, at):
    """What is measured and remembered is what a run that nothing stopped has, at the end too."""
    options = ("--steps", 4, "--preview-every", 2, "--log-every", 1)
    whole = lab.trained(*lab.quick, *options)
    real = Trainer.held_out_losses

    def interrupted(self):
        if self.ema.updates == at:
            signal.raise_signal(signal.SIGTERM)
        return real(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "held_out_losses", interrupted)
        assert quick(*options, "-q").code == 143
        assert "--resume" in quick(*options, "-q", "--resume").err  # and again
    assert newest() == at
    assert quick(*options, "-q", "--resume").code == 0
    assert looks(RUN) == looks(whole.with_suffix(".run"))
    assert [s for s, _ in looks(RUN)] == [2, 4]
    assert previews(RUN) == previews(whole.with_suffix(".run"))
    one, other = (RunDirectory(path).load()[0].state for path in (MODEL, whole))
    assert one["watch"] == other["watch"]
    monkeypatch.setattr(Trainer, "held_out_losses", lambda self: pytest.fail("measured again"))
    assert quick(*options, "-q", "--resume").code == 0


def looks(run):
    return [(m["step"], m["held_out_loss"]) for m in log_rows(run) if "held_out_loss" in m]


def previews(run):
    return {path.name: path.read_bytes() for path in (run / "previews").iterdir()}


def test_compiling_is_abandoned(quick, monkeypatch):
    """The first step of a run that compiles may take minutes, and nothing is lost with it."""
    monkeypatch.setattr("torch.compile", lambda net, **options: net)
    finished = []

    def step(self, number):
        signal.raise_signal(signal.SIGTERM)
        finished.append(number)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", step)
        ran = quick("--steps", 4, "--compile", "-q")
    assert (ran.code, finished) == (143, [])
    assert "at step 0: no step was taken yet" in ran.line
    assert "--resume" in ran.line
    assert quick("--resume", "--stop-at", 2).code == 0
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", step)
        ran = quick("--resume", "-q")
    assert (ran.code, finished) == (143, [])
    assert "at step 2: its checkpoint is complete" in ran.line
    assert quick("--resume", "-q").code == 0


@pytest.mark.parametrize(
    ("error", "at_once"),
    [
        (RuntimeError("no compiler\nat all"), False),
        (AssertionError(), False),
        (RuntimeError("not on Python 3.15+"), True),
    ],
    ids=["first step", "no words", "at once"],
)
def test_a_network_that_cannot_be_compiled_says_what_to_do(quick, monkeypatch, error, at_once):
    """Whether at once, in the first step or while its time is measured. The value that a run
    recorded holds until another is typed."""

    def fail(net, **options):
        def refuse(*inputs):
            raise BackendCompilerFailed(None, error, None)

        if at_once:
            raise error
        net.register_forward_pre_hook(refuse)
        return net

    monkeypatch.setattr("torch.compile", fail)
    said = (str(error) or "AssertionError").splitlines()[0]
    for length in (("--minutes", 0.1), ("--steps", 2)):
        ran = quick(*length, "--compile", "--overwrite", "-q")
        ran.fails(2, f"the network cannot be compiled: {said}. Try --no-compile")
    if not at_once:  # there is a run already
        assert quick("--resume", "-q").code == 2
        assert quick("--no-compile", "--auto-resume", "-q").code == 0
        assert "compile = false" in (RUN / "config.toml").read_text()


@pytest.mark.parametrize(
    ("place", "name", "code", "step"),
    [
        (RunDirectory, "save", 143, 3),
        (model_file, "save", 0, 4),  # there is nothing left to do
    ],
    ids=["checkpoint", "model"],
)
def test_a_signal_while_a_checkpoint_is_written_lets_it_be_whole(
    quick, monkeypatch, lab, place, name, code, step
):
    """Or a model file."""
    with monkeypatch.context() as patch:
        patch.setattr(place, name, raising(signal.SIGTERM, getattr(place, name)))
        ran = quick("--steps", 4, *(("--save-every", 2) if code else ()), "-q")
    assert (ran.code, ran.out) == (code, "" if code else "model.safetensors\n")
    assert newest() == step
    assert not code or quick("--resume", "-q").code == 0
    assert MODEL.read_bytes() == lab.trained(*lab.quick, "--steps", 4).read_bytes()


@pytest.fixture
def terminal(spawn, images, recipe):
    """A training on a terminal of its own, where a person can press Ctrl-C."""
    master, slave = pty.openpty()
    child = spawn(
        "train", images, "--config", recipe, "--steps", 100_000, "--save-every", 9,
        "--log-every", 1,
        env={"TERM": "xterm"}, stdin=slave, stdout=slave, stderr=slave, terminal=True,
    )  # fmt: skip
    os.close(slave)
    yield child, master
    child.kill()
    child.wait()
    os.close(master)


def read_until(master, words):
    seen = b""
    while words is None or words not in seen:
        try:
            part = os.read(master, 65536)
        except OSError:
            part = b""
        if not part:
            break
        seen += part
    return seen.decode(errors="replace")


def wait_for_a_checkpoint(child, step):
    while not (RUN / f"checkpoints/step-{step:08d}/manifest.json").exists():
        assert child.poll() is None
        time.sleep(0.01)


def test_ctrl_c_once_on_a_terminal_saves_and_says_how_to_go_on(tmp_path, terminal, diffuse):
    child, master = terminal
    read_until(master, b"loss")
    os.write(master, b"\x03")
    seen = read_until(master, None)
    assert child.wait(30) == 130
    assert "Traceback" not in seen
    assert f"interrupted at step {newest():,}: checkpoint saved" in " ".join(seen.split())
    assert "\x1b[?25h" in seen  # the cursor is back


def test_ctrl_c_twice_on_a_terminal_stops_at_once(tmp_path, terminal, diffuse, monkeypatch):
    """The second press comes while the step that the first one waits for is under way."""

    child, master = terminal
    wait_for_a_checkpoint(child, 9)
    os.kill(child.pid, signal.SIGSTOP)  # both are there when it goes on
    os.write(master, b"\x03")
    os.kill(child.pid, signal.SIGINT)
    os.kill(child.pid, signal.SIGCONT)
    os.write(master, b"\x03\x03\x03")
    seen = read_until(master, None)
    assert child.wait(30) == 130
    assert "Traceback" not in seen
    found, passed = RunDirectory(MODEL).load()
    assert found is not None
    assert passed == []
    assert not list(Path().rglob("*.tmp"))


def test_the_line_that_goes_on_has_the_options_that_a_run_does_not_keep(diffuse, at_step):
    """Names with spaces in them are quoted."""
    data, out = write_images(Path("my images"), 8), "a b.safetensors"
    at_step(1, signal.SIGINT)
    typed = ("--gradient-checkpointing", "--strict", "--cache", "1MiB", "--save-every", 7)
    typed = (*typed, "--keep", "last", "-o", out)
    ran = diffuse("train", data, "--config", QUICK, "--steps", 3, "--stop-at", 2, *typed)
    command = typed_again(ran.err)
    assert command[:3] == ["train", str(data), "--resume"]
    kept = ["--strict", "--cache", str(2**20), "--gradient-checkpointing", "--save-every", "7"]
    assert sorted(command[3:]) == sorted([*kept, "--keep", "last", "-o", out])
    assert diffuse(*command).code == 0


def test_a_signal_is_not_taken_for_a_damaged_image(diffuse, images, monkeypatch):
    """What reads images of strangers catches whatever they make libraries raise."""
    stopped = replace(image.MEDIUM, read=lambda *a: signal.raise_signal(signal.SIGINT))
    monkeypatch.setattr(image, "MEDIUM", stopped)
    ran = diffuse("info", images, "--workers", 1, "-q")
    assert (ran.code, ran.out) == (130, "")


def test_a_signal_while_sampling_ends_it_without_a_traceback(diffuse, model, instead_of_networks):
    instead_of_networks(lambda: signal.raise_signal(signal.SIGTERM))
    assert diffuse("sample", model, "-q").fails(143).err.count("\n") == 1
    assert not Path("samples").exists()


MOMENTS = {
    "unwinding": "diffuse_cli.sampling.journal.SamplingRecord.abandon",
    "saying": "diffuse_cli.commands._cli.Console.fail",
    "leaving": "diffuse_cli.system.processes.world_size",
}
"""What is called after a first signal, in this order."""

AGAIN = """
import os, signal
from importlib import import_module
def patch(name, make):
    place, _, name = name.rpartition(".")
    owner = import_module(place) if place.islower() else getattr(
        import_module(place.rpartition(".")[0]), place.rpartition(".")[2]
    )
    setattr(owner, name, make(getattr(owner, name)))
def again(real):
    def called(*arguments):
        if {before}:
            os.kill(os.getpid(), {number})
        found = real(*arguments)
        os.kill(os.getpid(), {number})
        return found
    return called
noise = "diffuse_cli.sampling.generation.image_noise"
patch(noise, lambda real: lambda *a: os.kill(os.getpid(), {number}))
patch("{moment}", again)
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("before", [True, False])
def test_a_second_signal_ends_quietly_whenever_it_comes(
    process, model, moment, number, code, before
):
    values = {"number": int(number), "moment": MOMENTS[moment], "before": before}
    ran = process("sample", model, "-q", before=AGAIN.format(**values))
    assert (ran.code, ran.out) == (code, "")
    assert "Traceback" not in ran.err
    assert ran.err.count("\n") == (moment != "unwinding" and (moment, before) != ("saying", True))
