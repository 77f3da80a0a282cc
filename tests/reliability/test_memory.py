"""Memory that runs out: the part of a batch is halved inside the step, or the option is named."""

from __future__ import annotations

import os
import re
from errno import ENOMEM
from pathlib import Path

import conftest
import pytest
import torch
from conftest import MODEL, RUN, logged, mostly_slow
from PIL import Image
from safetensors.torch import load_file

from diffuse_cli.config.options import read_toml
from diffuse_cli.config.train_options import TrainConfig, from_file
from diffuse_cli.metrics.features import efficientnet_lite0
from diffuse_cli.models import model_file
from diffuse_cli.models.activation_memory import SLACK
from diffuse_cli.system import memory as machine_memory
from diffuse_cli.system.memory import is_out_of_memory
from diffuse_cli.training import previews, step_cost
from diffuse_cli.training.run_directory import RunDirectory
from diffuse_cli.training.step_cost import estimate_memory
from diffuse_cli.training.trainer import Trainer

ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("MPS backend out of memory (MPS allocated: 10 GB)"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"),
    RuntimeError("could not create a primitive"),
    RuntimeError("std::bad_alloc"),
    SystemError("error return without exception set"),
    MemoryError(),
    # Libraries that do not fit.
    ImportError("libgomp.so: failed to map segment from shared object"),
    OSError(ENOMEM, ""),
]


def raising(error):
    def full(*arguments, **options):
        raise error

    return full


@pytest.fixture
def memory(monkeypatch):
    """Let parts of more than so many images fail from a step on; the sizes of parts tried."""

    def limit(images: int, error: Exception = ERRORS[0], since: int = 0) -> list[int]:
        seen: list[int] = []
        real = Trainer.losses

        def losses(self, denoiser, step, positions):
            seen.append(len(positions))
            found = real(self, denoiser, step, positions)
            if step >= since and len(positions) > images:
                raise error
            return found

        monkeypatch.setattr(Trainer, "losses", losses)
        return seen

    return limit


def near(one: Path, other: Path) -> bool:
    """Whether the weights of two models differ by no more than rounding."""
    ours, theirs = load_file(one), load_file(other)
    return all(torch.allclose(ours[name], theirs[name], atol=1e-3) for name in theirs)


def expect_equal_logs(run: Path) -> None:
    for name in ("loss", "grad_norm"):
        assert logged(name) == pytest.approx(logged(name, run), abs=1e-4)


@pytest.mark.parametrize("error", ERRORS[::6], ids=lambda e: str(e)[:20] or "MemoryError")
def test_the_parts_are_halved_and_the_batch_stays(quick, memory, lab, error):
    whole = lab.trained(*lab.quick, "--steps", 4, "--log-every", 1)
    seen = memory(3, error, since=2)
    ran = quick("--steps", 4, "--log-every", 1).ok()
    assert seen == [8] * 3 + [4] + [2] * 4 * 2
    assert "warning: out of memory: from step 3, a batch of 8 images is computed in 4" in ran.err
    assert ran.err.count("out of memory") == 1
    expect_equal_logs(whole.with_suffix(".run"))
    assert near(MODEL, whole)


def test_the_gradient_of_parts_that_did_fit_is_not_counted_twice(quick, monkeypatch, lab):
    """The memory runs out in the second part, when the gradient of the first is there."""
    line = ("--steps", 3, "--accumulation", 2, "--log-every", 1)
    whole = lab.trained(*lab.quick, *line)
    real, failed = Trainer.losses, []

    def losses(self, denoiser, step, positions):
        if step == 1 and positions == range(4, 8):
            failed.append(step)
            raise ERRORS[0]
        return real(self, denoiser, step, positions)

    monkeypatch.setattr(Trainer, "losses", losses)
    assert quick(*line).code == 0
    assert failed == [1]
    expect_equal_logs(whole.with_suffix(".run"))


def test_importance_notes_a_step_once(quick, memory):
    """A pass that failed has seen losses, which must not be counted twice."""
    memory(2)
    line = ("--num-timesteps", 3, "--timestep-draw", "importance")
    assert quick("--steps", 2, *line).code == 0
    assert int(RunDirectory(MODEL).load()[0].history["counts"].sum()) == 2 * 8


def test_a_resume_keeps_the_parts(quick, memory):
    seen = memory(2, since=1)
    quick("--steps", 4, "-o", "whole.safetensors")
    assert seen == [8] * 2 + [4] + [2] * 12
    quick("--steps", 4, "--stop-at", 2)
    seen.clear()
    quick("--steps", 4, "--resume").ok()
    assert seen == [2] * 8
    assert MODEL.read_bytes() == Path("whole.safetensors").read_bytes()


def test_a_run_that_split_its_batch_resumes_by_the_same_line(quick, memory, monkeypatch):
    """Its directory has the number of parts, which is not that of the line. More parts are used."""
    monkeypatch.setattr(step_cost, "count_fitting_images", lambda *_: 2)
    line = ("--steps", 4, "--accumulation", 2, "--auto-resume")
    assert "in 4 parts" in quick(*line, "--stop-at", 2).err
    assert "in 4 parts" in quick(*line).ok().err
    seen = memory(8)
    quick("--steps", 5, "--accumulation", 8, "--auto-resume").ok()
    assert seen == [1] * 8
    assert read_toml(RUN / "config.toml")["accumulation"] == 8


def test_a_single_image_that_does_not_fit_names_what_helps(quick, memory):
    memory(0)
    said = "a single image does not fit"
    quick("--steps", 2, "-q").fails(2, said, "--gradient-checkpointing")
    assert not MODEL.exists()


def test_memory_of_the_preview_is_no_reason_to_end(quick, monkeypatch):
    """It is generated in parts, and shows every image."""
    with monkeypatch.context() as patch:
        patch.setattr(previews, "generate_batches", raising(ERRORS[0]))
        ran = quick("--steps", 1).ok()
    assert "out of memory while generating the preview" in ran.err
    sizes = []
    for fitting in (5, 1000):
        monkeypatch.setattr(step_cost, "count_fitting_images", lambda *_, n=fitting: n)
        assert quick("--steps", 1, "--overwrite").code == 0
        sizes.append(Image.open(RUN / "previews/step-00000001.png").size)
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: str(e)[:20] or "MemoryError")
def test_sampling_that_does_not_fit_names_the_option(diffuse, model, instead_of_networks, error):
    instead_of_networks(raising(error))
    diffuse("sample", model, "-q").fails(2, "out of memory", "--batch-size")
    assert not Path("samples").exists()


# -- nothing else is to blame ---------------------------------------------------------------------


def test_weights_of_features_are_not_called_malicious(diffuse, model, images, monkeypatch):
    monkeypatch.setattr(conftest, "builder", lambda: efficientnet_lite0.build)
    monkeypatch.setattr("torch.load", raising(ERRORS[2]))
    line = ("eval", model, images, "-n", 4, "--steps", 2, "--metrics", "kid", "-q")
    ran = diffuse(*line)
    assert (ran.code, ran.line) == (2, "diffuse: out of memory. Try a smaller --batch-size\n")


@pytest.mark.parametrize("error", [ERRORS[2], MemoryError()], ids=["torch", "python"])
def test_a_picture_is_not_called_unreadable(diffuse, model, images, monkeypatch, error):
    monkeypatch.setattr("PIL.Image.Image.convert", raising(error))
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", raising(error))
    ran = diffuse("upscale", model, images / "dark/000.png", "--steps", 2, "-q")
    said = "diffuse: out of memory. Try a smaller --batch-size or --size\n"
    assert (ran.code, ran.line) == (2, said)
    assert not Path("upscaled").exists()


def test_a_network_that_cannot_be_traced_is_no_bug(diffuse, model, monkeypatch):
    """torch.onnx raises an error of its own, with the reason as its cause."""
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    failure = torch.onnx.OnnxExporterError("Failed to export the model")
    failure.__cause__ = ERRORS[2]
    monkeypatch.setattr("torch.onnx.export", raising(failure))
    ran = diffuse("convert", model, "--to", "onnx", "-q")
    said = "out of memory. End other programs, or use a machine with more memory\n"
    assert (ran.code, ran.line) == (2, f"diffuse: {said}")
    assert not Path("model.onnx").exists()


@pytest.mark.parametrize(("error", "memory"), [(PermissionError(1), False), (OSError(12), True)])
def test_a_process_that_may_not_write_code_has_not_run_out_of_memory(monkeypatch, error, memory):
    """oneDNN says the same where a service's settings forbid memory that is written and run."""
    monkeypatch.setattr("mmap.mmap", raising(error))
    assert is_out_of_memory(RuntimeError("could not create a primitive")) is memory
    assert is_out_of_memory(RuntimeError("out of memory"))
    for other in (RuntimeError("shapes do not match"), ValueError("out of memory"), OSError(12),
                  SystemError("bad call")):  # fmt: skip
        assert not is_out_of_memory(other)


# -- before the first step ------------------------------------------------------------------------


@pytest.fixture
def has(monkeypatch):
    """Let the machine have so much memory to give."""
    return lambda count: monkeypatch.setattr(
        machine_memory, "free_memory", lambda device: int(count)
    )


@pytest.mark.parametrize(
    ("more", "megabytes", "hint"),
    [
        (("--dry-run", "--gradient-checkpointing"), 0.5, "Try --size 16, or a smaller --width"),
        (("--minutes", 1), 0.1, "Try a smaller --size or --width, or --preset tiny"),
        ((), 0.3, "Try a smaller --size or --width, or --preset tiny"),
    ],
)
def test_a_run_that_cannot_fit_is_refused_before_anything_is_made(
    train, has, instead_of_networks, more, megabytes, hint
):
    has(megabytes * 1e6)
    instead_of_networks()
    train("--size", 256, *more, "-q").fails(2, "one image of 256x256 takes", hint)
    assert not RunDirectory(MODEL).exists()


LARGE = [("tiny", 256), ("base", 256), ("tiny", 512), ("small", 512), ("base", 512)]


@pytest.mark.parametrize(("preset", "size"), mostly_slow(LARGE))
def test_a_run_or_the_one_that_is_suggested_instead_fits(
    diffuse, images, has, step_takes, preset, size
):
    step_takes(1.0)
    line = ("train", images, "--preset", preset, "--dry-run", "-q", "--batch-size", 8)
    has(8 * 2**30)
    assert diffuse(*line, "--size", size).code == 0
    if preset == "base":
        has(0.75 * 2**30)
        ran = diffuse(*line, "--size", size)
        way = re.search(r"Try (--size \d+)", ran.line)[1]
        assert diffuse(*line, *way.split()).code == 0


def test_a_batch_that_does_not_fit_is_split_and_said(quick, has, memory, untimed, lab):
    whole = lab.trained(*lab.quick, "--steps", 2)
    seen = memory(8)
    config = TrainConfig.from_dict(from_file(read_toml(whole.with_suffix(".run") / "config.toml")))
    needs = estimate_memory(config, model_file.load(whole).blueprint, "cpu")
    has(needs.total_bytes(2, SLACK["cpu"]) + 10)
    ran = quick("--steps", 2).ok()
    assert seen == [2] * 8
    assert "a batch of 8 images does not fit into memory at once" in ran.err
    assert "--accumulation 4" in ran.err
    assert read_toml(RUN / "config.toml")["accumulation"] == 4
    assert near(MODEL, whole)
    has(needs.total_bytes(1))
    assert quick("--steps", 2, "--dry-run", "--json").json["config"]["accumulation"] == 8
    has(needs.total_bytes(1) - 1)
    ran = quick("--steps", 2, "-o", "third.safetensors")
    assert "an image does not fit into memory" in ran.err
    assert "--gradient-checkpointing" in ran.err
    assert near(Path("third.safetensors"), whole)


def test_what_is_free_is_the_least_that_the_system_its_groups_and_limits_leave(monkeypatch):
    import resource

    files, real, page = {}, Path.read_text, os.sysconf("SC_PAGE_SIZE")

    def read_text(path, *arguments, **options):
        if str(path).startswith(("/proc/", "/sys/")):
            return files.get(str(path), "")
        return real(path, *arguments, **options)

    assert 0 < machine_memory.free_memory("cpu") < machine_memory.UNLIMITED
    monkeypatch.setattr(Path, "read_text", read_text)
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (resource.RLIM_INFINITY,) * 2)
    files["/proc/meminfo"] = "MemTotal: 9000 kB\nMemAvailable: 8000 kB\n"
    files["/proc/self/statm"] = "100 50 10"
    files["/proc/self/cgroup"] = "0::/user/own"
    assert machine_memory.free_memory("cpu") == 8000 * 1024
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (1100 * page, resource.RLIM_INFINITY))
    assert machine_memory.free_memory("cpu") == 1000 * page
    for group, limit in (("", "max"), ("/user", "1000"), ("/user/own", "1200")):
        folder = f"/sys/fs/cgroup{group}/memory"
        files |= {f"{folder}.max": limit, f"{folder}.current": "700"}
        files[f"{folder}.stat"] = "anon 500\ninactive_file 50"
    assert machine_memory.free_memory("cpu") == 1000 - (700 - 50)


@pytest.mark.parametrize("device", ["cuda", "xpu"])
def test_memory_that_the_allocator_has_cached_is_free(monkeypatch, device):
    own = getattr(torch, device)
    for name, found in (
        ("mem_get_info", (100, 1000)),
        ("memory_reserved", 50),
        ("memory_allocated", 20),
    ):
        monkeypatch.setattr(own, name, lambda found=found: found)
    assert machine_memory.free_memory(device) == 130
