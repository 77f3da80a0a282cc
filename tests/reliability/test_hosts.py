"""Two hosts, each a launcher with one process: one is lost, and the run goes on without it.

Each is a network namespace with an address of its own, where these may be made; else both are on
the loopback of this machine.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import free_port, log_rows
from forked_launchers import StandIns
from process_server import Forked

HOST = """
import ctypes, os, sys
if {name!r}:  # the namespace of this host
    libc = ctypes.CDLL(None, use_errno=True)
    with open("/run/netns/{name}") as place:
        assert libc.setns(place.fileno(), 0x40000000) == 0, os.strerror(ctypes.get_errno())
"""
LAUNCH = """
os.setpgid(0, 0)
sys.argv = {line}
from torch.distributed.run import main
main()
sys.exit(0)
"""
"""A launcher that has everything imported already; what it starts begins as `diffuse` does."""


def losses(run):
    return {row["step"]: row["loss"] for row in log_rows(run) if "loss" in row}


@dataclass(frozen=True)
class Network:
    """Two hosts: the namespace of each, the address of the first, and their device."""

    names: Sequence[str]
    address: str
    device: str


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@pytest.fixture
def network() -> Iterator[Network]:
    """Two network namespaces on one cable, or the loopback."""
    names = [f"diffuse-{os.getpid()}-{k}" for k in "ab"]
    try:
        if shutil.which("ip") is None:
            raise OSError
        for name in names:
            ip("netns", "add", name)
        ends = ("eth0", "netns", names[0], "type", "veth", "peer", "eth0", "netns", names[1])
        ip("link", "add", *ends)
        for k, name in enumerate(names, 1):
            ip("-n", name, "addr", "add", f"10.77.0.{k}/24", "dev", "eth0")
            for device in ("eth0", "lo"):
                ip("-n", name, "link", "set", device, "up")
        yield Network(names, "10.77.0.1", "eth0")
    except (OSError, subprocess.CalledProcessError):
        yield Network(("", ""), "127.0.0.1", "lo")
    finally:
        for name in names:
            with contextlib.suppress(OSError, subprocess.CalledProcessError):
                ip("netns", "del", name)


@pytest.fixture
def hosts(spawn, network, tmp_path):
    """Start both; each is a group of processes of its own. The one that is lost is forked, and what
    its launcher starts stands in for it; the other begins as `diffuse` does."""
    started: list[Forked] = []
    stand_ins = StandIns(tmp_path.with_name(f"{tmp_path.name}-stand-ins"))

    def start(*arguments):
        line = ["torchrun", "--nnodes", "2", "--nproc_per_node", "1"]
        line += ["--master_addr", network.address, "--master_port", str(free_port())]
        for k, name in enumerate(network.names):
            command = ["--node_rank", str(k), "-m", "diffuse_cli", *map(str, arguments)]
            before = (HOST + LAUNCH).format(name=name, line=line + command)
            env = {"GLOO_SOCKET_IFNAME": network.device}
            env |= {"PYTHONPATH": str(stand_ins.folder)} if k else {}
            started.append(spawn(before=before, env=env))
        first, launcher = started
        given, env = stand_ins.asked(1, launcher)
        started.append(spawn(*given, env=env, before=HOST.format(name=network.names[1])))
        return first, started[1:]

    yield start
    lose(*started)


def lose(*hosts: Forked) -> None:
    """Kill launchers with their processes, which have sessions of their own."""
    for host in hosts:
        children = Path(f"/proc/{host.pid}/task/{host.pid}/children")
        groups = [host.pid, *map(int, children.read_text().split() if children.exists() else [])]
        host.kill()
        for group in groups:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)


@pytest.mark.slow
def test_a_host_is_lost_and_the_other_ends_and_goes_on_alone(hosts, train, images, recipe):
    line = ("--steps", 3000, "--save-every", 2, "--log-every", 1)
    first, second = hosts("train", images, "--config", recipe, *line)
    while not [*Path("model.run/checkpoints").glob("step-*")]:
        assert first.poll() is None, first.communicate()
        time.sleep(0.05)
    lose(*second)
    _, said = first.communicate(timeout=300)  # else it hangs
    assert first.returncode != 0
    ours = [text for text in said.splitlines() if text.startswith("diffuse: ")]
    assert len(ours) == 1
    assert "process 1 of 2 has ended, so process 0 ends too" in ours[0]
    assert "exitcode  : 76" in said
    begun = int(max(Path("model.run/checkpoints").iterdir()).name.removeprefix("step-"))
    assert train("--resume", "--log-every", 1, "--stop-at", begun + 2).code == 0
    train(*line, "--stop-at", begun + 2, "-o", "one.safetensors")
    found, expected = losses("model.run"), losses("one.run")
    assert {*found} == {*expected} == {*range(1, begun + 3)}
    assert [*found.values()] == pytest.approx([*expected.values()], abs=1e-4)
