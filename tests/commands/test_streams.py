"""stdout, stderr and terminals: results on the one, everything else on the other."""

from __future__ import annotations

import contextlib
import io
import os
import pty
import re
import subprocess
import sys
import zipfile

import pytest
from conftest import environment, in_process
from lab import write_images

SHORT = ("--steps", 3, "--log-every", 1, "--num-timesteps", 8)
ESCAPE = "\x1b"


@pytest.fixture
def closed():
    """A pipe that nobody reads any more."""
    reading, writing = os.pipe()
    os.close(reading)
    yield writing
    os.close(writing)


def test_stdout_is_the_model_path_alone(fresh, images, recipe, tmp_path):
    more = ("--flip", "--accumulation", 2)
    ran = fresh("train", images, "--config", recipe, *SHORT, *more).ok()
    assert ran.out == "model.safetensors\n"
    assert (tmp_path / "model.safetensors").exists()
    assert "60 images" in ran.err
    assert "step 3/3" in ran.err
    assert "Warning" not in ran.err
    assert ESCAPE not in ran.err


def test_quiet_is_silent(train, diffuse, model, images):
    ran = train(*SHORT, "-q", "--flip", "--accumulation", 2)
    assert (ran.code, ran.err, ran.out) == (0, "", "model.safetensors\n")
    assert diffuse("sample", model, "-n", 1, "--steps", 2, "-q").err == ""
    assert diffuse("eval", model, images, "-n", 4, "--steps", 2, "-q").err == ""


def test_json_is_one_object(train, untimed):
    ran = train(*SHORT, "--json", "--steps", 6, "--log-every", 2)
    assert (ran.json["model"], ran.json["run"]) == ("model.safetensors", "model.run")
    assert (ran.json["step"], ran.json["processes"], ran.json["images"]) == (6, 1, 60)
    assert re.findall(r"^step (\d)/6  loss", ran.err, re.M) == ["2", "4", "6"]
    found = train("--dry-run", "--json").json
    assert found["parameters"] > 10_000
    assert found["memory_bytes"] > 4 * 5 * found["parameters"]
    assert found["config"]["batch_size"] == 8
    assert found["images_seen"] == 8 * found["config"]["steps"]
    assert found["epochs"] == pytest.approx(found["images_seen"] / 54, abs=1e-3)
    assert found["half_size"] is None


CI = {"CI": "true", "GITHUB_ACTIONS": "true", "TF_BUILD": "true", "TERM": "xterm-256color"}
COLOR = re.compile("\x1b\\[[0-9;]*m")


@pytest.mark.parametrize(
    ("changes", "colored"),
    [
        (CI, False),
        ({"TERM": "dumb", "COLUMNS": "20"}, False),
        ({"FORCE_COLOR": "1", "TERM": "xterm"}, True),
        ({"TTY_COMPATIBLE": "1", "TERM": "xterm"}, True),
        ({"FORCE_COLOR": "1", "NO_COLOR": "1", "TERM": "xterm"}, False),
    ],
)
def test_variables_of_automation_make_no_terminal(
    diffuse, monkeypatch, recipe, tmp_path, changes, colored
):
    for name, value in changes.items():
        monkeypatch.setenv(name, value)
    one = write_images(tmp_path / "one", 1)
    ran = diffuse("train", one, "--config", recipe, *SHORT)
    assert (ran.code, ran.out) == (0, "model.safetensors\n")
    assert "1 image" in ran.err
    assert [f"step {k}/3" in ran.err for k in (1, 2, 3)] == [True] * 3
    assert (ESCAPE in ran.err) == colored
    assert ESCAPE not in COLOR.sub("", ran.err)
    assert "\r" not in ran.err
    assert ESCAPE not in diffuse("train", "--help").out


@pytest.fixture
def odd(tmp_path):
    """A zip with a class whose name has letters that ASCII lacks, and a file that is no image."""
    folder, path = write_images(tmp_path / "odd", 8), tmp_path / "odd.zip"
    (folder / "dark" / "日本.png").write_text("not an image")
    with zipfile.ZipFile(path, "w") as archive:
        for file in folder.rglob("*.png"):
            name = str(file.relative_to(folder))
            archive.write(file, name.replace("light", "größe"))
    return path


@pytest.mark.parametrize(
    "changes",
    [{"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, {"PYTHONIOENCODING": "ascii"}],
)
def test_streams_that_lack_letters_escape_them(fresh, odd, changes):
    ran = fresh("info", odd, env=changes).ok()
    assert "gr\\xf6\\xdfe 4" in ran.out
    assert "skipped          1 file" in ran.out
    assert (ran.out + ran.err).isascii()


def test_what_a_command_says_is_escaped_too(odd, model):
    line = ("eval", model, odd, "-n", 4, "--steps", 2, "--timesteps", 2)
    out, err = (io.TextIOWrapper(io.BytesIO(), "ascii", write_through=True) for _ in range(2))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        assert in_process(line) == 0
    said = [stream.buffer.getvalue().decode("ascii") for stream in (out, err)]
    assert "Fr\\xe9chet" in said[0]
    assert "skipped 1 file" in said[1]


def test_a_reader_of_stdout_that_goes_away_is_no_error(fresh, process, images, model, closed):
    sampling = process("sample", model, "-n", 3, "--steps", 2, stdout=closed)
    for ran in (fresh("info", images, stdout=closed), sampling):
        assert (ran.code, ran.err.count("Traceback"), ran.err.count("Broken")) == (0, 0, 0)


NONE = """
import os, sys
sys.stdin = sys.stdout = sys.stderr = None
os.closerange(0, 3)
"""
"""As Python begins where all three are closed."""


def test_training_ends_well_without_any_stream(process, images, recipe, tmp_path, closed):
    line = ("train", images, "--config", recipe, *SHORT)
    ran = process(*line, stdout=closed)
    assert (ran.code, ran.err.count("Traceback"), ran.err.count("Broken")) == (0, 0, 0)
    ran = process(*line, "-o", "mute.safetensors", stderr=closed)
    assert (ran.code, ran.out) == (0, "mute.safetensors\n")
    assert process(*line, "-o", "none.safetensors", before=NONE).code == 0
    models = {path.read_bytes() for path in tmp_path.glob("*.safetensors")}
    assert len(models) == 1


def test_sampling_begins_and_ends_well_without_any_stream(tmp_path, model):
    shell = '"$0" -m diffuse_cli "$@" >&- 2>&- <&-'
    command = ["bash", "-c", shell, sys.executable, "sample", str(model), "-n", "1", "--steps", "2"]
    assert subprocess.run(command, cwd=tmp_path, env=environment(), timeout=60).returncode == 0
    assert (tmp_path / "samples" / "manifest.json").exists()


@pytest.fixture
def terminal(spawn):
    """Run on a pseudo-terminal; the exit code, and what a person would see."""

    def run(*arguments, **changes):
        master, slave = pty.openpty()
        env = {"TERM": "xterm", **changes}
        child = spawn(*arguments, env=env, stdin=slave, stdout=slave, stderr=slave)
        os.close(slave)
        seen = b""
        with contextlib.suppress(OSError):  # what Linux says when the other side has gone
            while part := os.read(master, 65536):
                seen += part
        os.close(master)
        return child.wait(60), seen.decode()

    return run


def test_a_terminal_has_a_bar_unless_it_is_dumb(terminal, images, recipe):
    code, seen = terminal("train", images, "--config", recipe, "--steps", 9)
    assert code == 0
    assert "training" in seen
    assert re.search(r"\x1b\[[\d;]*m", seen)
    line = ("train", images, "--config", recipe, *SHORT, "--overwrite")
    code, seen = terminal(*line, TERM="dumb")
    assert (code, "step 3/3" in seen, ESCAPE in seen) == (0, True, False)


def test_no_color_is_honored(terminal):
    code, red = terminal("sample", "nowhere")
    assert re.search(r"\x1b\[31m", red)
    code, plain = terminal("sample", "nowhere", NO_COLOR="1")
    assert code == 4
    assert not re.search(r"\x1b\[(3|9)\d[\d;]*m", plain)
