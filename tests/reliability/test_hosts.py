"""Two hosts, each a launcher with one process: one is lost, and the run goes on without it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import environment, free_port

LAUNCHER = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1"]


def losses(run):
    rows = map(json.loads, (Path(run) / "metrics.jsonl").read_text().splitlines())
    return {row["step"]: row["loss"] for row in rows if "loss" in row}


@pytest.fixture
def hosts(tmp_path):
    """Start both; each is a group of processes of its own."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments):
        join = ["--master_addr", "127.0.0.1", "--master_port", str(free_port()), "--node_rank"]
        for k in range(2):
            command = [*LAUNCHER, *join, str(k), "-m", "diffuse_cli", *map(str, arguments)]
            started.append(
                subprocess.Popen(
                    command,
                    cwd=tmp_path,
                    env=environment(),
                    text=True,
                    stderr=subprocess.PIPE,
                    process_group=0,
                )
            )
        return started

    yield start
    for host in started:
        lose(host)
        host.communicate()


def lose(host: subprocess.Popen[str]) -> None:
    """Kill a launcher, and its process, which has a session of its own."""
    children = Path(f"/proc/{host.pid}/task/{host.pid}/children")
    groups = [host.pid, *map(int, children.read_text().split() if children.exists() else [])]
    for group in groups:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)


def test_a_host_is_lost_and_the_other_ends_and_goes_on_alone(hosts, train, images, recipe):
    line = ("--steps", 3000, "--save-every", 10, "--log-every", 1)
    first, second = hosts("train", images, "--config", recipe, *line)
    while not Path("model.run/checkpoints/step-00000010").exists():
        assert first.poll() is None, first.communicate()
        time.sleep(0.05)
    lose(second)
    lost = time.monotonic()
    _, said = first.communicate(timeout=60)
    assert time.monotonic() - lost < 60
    assert first.returncode != 0
    ours = [text for text in said.splitlines() if text.startswith("diffuse: ")]
    assert len(ours) == 1
    assert "process 1 of 2 is gone, and process 0 ends with it" in ours[0]
    assert "exitcode  : 76" in said
    begun = int(max(Path("model.run/checkpoints").iterdir()).name.removeprefix("step-"))
    assert train("--resume", "--log-every", 1, "--stop-at", begun + 5).code == 0
    train(*line, "--stop-at", begun + 5, "-o", "one.safetensors")
    found, expected = losses("model.run"), losses("one.run")
    assert {*found} == {*expected} == {*range(1, begun + 6)}
    assert [*found.values()] == pytest.approx([*expected.values()], abs=1e-3)
