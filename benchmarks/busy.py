"""What does waiting at barriers cost, on an idle machine and beside a busy process?

Threads of OpenMP that wait for each other spin for a while before they sleep. That saves a little
where every thread has a core, and costs nearly everything where one has to share: the others spin
through the time that it needs. Ours is a training step of `tiny`; diffusers' is its own U-Net of
comparable cost, both in float32. Each contender is a process with an environment; a round takes
a few steps of each. A busy process is one loop of Python. Prints JSON and, on stderr, a table:
`of_idle` is the share of its speed as it comes on an idle machine, and `of_fair`
its share of what one thread reaches beside the busy process.

    python benchmarks/busy.py > benchmarks/results/busy.json
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import common
import peers
import torch
from steps import (
    Act,
    Apart,
    Setting,
    interleave,
    ours,
    peak,
    plan,
    say,
    serve,
    show,
    significant,
    timed,
)
from steps import theirs as their_step

from diffuse_cli.system.devices import open_accelerator

SIZE, BATCH, STEPS = 32, 16, 2
OURS, DIFFUSERS = "diffuse", "diffusers"

WAITING: dict[str, dict[str, str]] = {
    "as it comes": {},
    "OMP_WAIT_POLICY=passive": {"OMP_WAIT_POLICY": "passive"},
    "GOMP_SPINCOUNT=0": {"GOMP_SPINCOUNT": "0"},
    "GOMP_SPINCOUNT=1000": {"GOMP_SPINCOUNT": "1000"},
    "GOMP_SPINCOUNT=3000": {"GOMP_SPINCOUNT": "3000"},
    "GOMP_SPINCOUNT=10000": {"GOMP_SPINCOUNT": "10000"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
"""The environments that are compared; `as it comes` is that of PyTorch alone."""

SET = sorted({name for chosen in WAITING.values() for name in chosen})


def step(who: str) -> Act:
    """A few training steps."""
    if who == OURS:
        with open_accelerator("fp32") as accelerator:
            one, _ = ours(
                plan(SIZE, preset="tiny", batch_size=BATCH, precision="fp32"), accelerator
            )
    else:
        torch.manual_seed(0)
        net = peers.diffusers_unet(peers.blueprint("tiny", 3, SIZE))
        best = Setting(channels_last=True, fused=True)
        one = their_step(net, best, BATCH, SIZE, torch.device("cpu"))
    return lambda: [one() for _ in range(STEPS)]


@contextlib.contextmanager
def beside(busy: int) -> Iterator[None]:
    """So many processes that never rest."""
    found = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
    try:
        yield
    finally:
        for process in found:
            process.kill()
            process.wait()


def rank_above(process: int, alone: bool) -> None:
    """Let a process go before everything else that the machine does, or after all among it."""
    policy = os.SCHED_RR if alone else os.SCHED_OTHER
    for thread in Path(f"/proc/{process}/task").iterdir():
        os.sched_setscheduler(int(thread.name), policy, os.sched_param(int(alone)))


def compare(who: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Every way of waiting, idle and beside a busy process."""
    bare = {name: value for name, value in os.environ.items() if name not in SET}
    acts = {
        name: Apart(__file__, "--one", who, env={**bare, **chosen})
        for name, chosen in WAITING.items()
    }
    for act in acts.values():
        act()
        if options.alone:
            rank_above(act.process.pid, True)
    speeds = {
        name: {"idle": significant(STEPS * BATCH / min(seconds))}
        for name, seconds in interleave(acts, options.rounds).items()
    }
    with beside(options.busy):
        for name, act in acts.items():
            if options.alone:
                rank_above(act.process.pid, False)
            # The mean: what a loaded machine does to single steps belongs to the answer.
            mean = sum(timed(act) for _ in range(options.busy_rounds)) / options.busy_rounds
            speeds[name]["busy"] = significant(STEPS * BATCH / mean)
            say(f"{who}, {name}: {mean:.3g} s beside others")
    for act in acts.values():
        act.end()
    idle, fair = speeds["as it comes"]["idle"], speeds["one thread"]["busy"]
    return [
        {
            "contender": who,
            "waiting": name,
            "images_per_s_idle": found["idle"],
            "of_idle": significant(found["idle"] / idle, 3),
            "images_per_s_busy": found["busy"],
            "of_fair": significant(found["busy"] / fair, 3),
        }
        for name, found in speeds.items()
    ]


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--only", choices=(OURS, DIFFUSERS))
    parser.add_argument("--busy-rounds", type=int, default=2)
    parser.add_argument("--busy", type=int, default=1, help="processes that never rest")
    parser.add_argument(
        "--alone",
        action="store_true",
        help="where the machine is not idle: the first part by real-time priority (Linux, root)",
    )
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        serve(step(options.one), peak())
        return
    rows = [row for who in (OURS, DIFFUSERS) if options.only in (None, who)
            for row in compare(who, options)]  # fmt: skip
    show(rows)
    print(json.dumps({"batch_size": BATCH, "rows": rows, "machine": common.machine()}, indent=1))


if __name__ == "__main__":
    main()
