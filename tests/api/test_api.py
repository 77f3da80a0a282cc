"""The Python interface does what the commands do, to the same bytes, and prints nothing."""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
import signal
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import do_less, mostly_slow
from lab import QUICK
from PIL import Image

import diffuse_cli as diffuse
from diffuse_cli import api
from diffuse_cli.api.calls import run_work
from diffuse_cli.core import SAMPLERS
from diffuse_cli.core.guidance import clip
from diffuse_cli.sampling.setting_search import FeatureMeasure
from diffuse_cli.system.events import Notice, Progress
from diffuse_cli.system.files import sha256
from diffuse_cli.system.rng import image_noise
from diffuse_cli.training.trainer import Trainer

load, evaluate = diffuse.load, diffuse.evaluate  # where the fixture has the package's name


def pictures(folder):
    """Images of class folders with their classes, in the order in which a folder is read."""
    paths = sorted(folder.rglob("*.png"), key=lambda p: p.relative_to(folder).as_posix())
    return [(Image.open(path), path.parent.name) for path in paths]


@pytest.fixture(autouse=True)
def as_commands_judge(monkeypatch):
    """At the size at which commands that run in process do."""
    do_less(monkeypatch)


@pytest.mark.parametrize("options", [{}, {"batch_size": 2, "sampler": "ddpm", "seed": 3}])
def test_a_model_draws_what_the_command_writes(diffuse, model, options):
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    assert diffuse("sample", model, "-n", 5, "--steps", 3, "-o", "out", *flags).code == 0
    drawn = load(model).sample(5, steps=3, **options)
    written = drawn.save("own")
    assert [p.name for p in written] == [f"{k:05d}.png" for k in range(5)]
    assert [sha256(p) for p in written] == [sha256(Path("out") / p.name) for p in written]
    assert [sha256(Path("out/grid.png"))] == [hashlib.sha256(drawn._repr_png_()).hexdigest()]
    for image, array in zip(drawn, drawn.arrays, strict=True):
        assert np.array_equal(np.asarray(image), array[0])
    part = load(model).sample(range=range(3, 5), steps=3, **options).save("part")
    assert [p.name for p in part] == ["00003.png", "00004.png"]
    assert [sha256(p) for p in part] == [sha256(p) for p in written[3:]]


def test_a_class_is_drawn_as_the_command_draws_it(diffuse, conditional):
    line = ["--class", "light", "--guidance", 1.5, "--range", "2:4", "--steps", 2]
    assert diffuse("sample", conditional, *line, "-o", "out").code == 0
    found = load(conditional)
    assert found.classes == ("dark", "light")
    drawn = found.sample(label="light", guidance=1.5, range=(2, 4), steps=2)
    assert (drawn.start, len(drawn)) == (2, 2)
    assert repr(drawn) == "<Samples 2 to 3: 1x8x8 image>"
    files = [file.data for file in drawn.files()]
    assert files == [Path(f"out/0000{k}.png").read_bytes() for k in (2, 3)]


def test_what_is_known_of_a_model_is_what_info_says(diffuse, model):
    found = load(model)
    assert found.info == diffuse("info", model, "--json").json
    assert (found.sha256, found.step, found.classes) == (sha256(model), 60, ())
    assert found.space.shape == (1, 8, 8)
    assert "1x8x8 image, step 60" in repr(found)


def test_the_denoiser_goes_with_the_samplers_of_the_core(model):
    found = load(model)
    denoiser, drawn = found.denoiser(), found.sample(2, steps=3, sampler="ddim", precision="fp32")
    device = next(iter(found.network().parameters())).device
    noise = image_noise(0, [0, 1], -1, found.space.shape, device)
    process = denoiser.process

    kept = clip(denoiser, process)
    *_, end = SAMPLERS["ddim"](kept, process, noise, process.times(3), noise=lambda k: noise)
    assert np.array_equal(found.space.to_stored(end.x).numpy(), drawn.arrays)


# -- training -------------------------------------------------------------------------------------


def test_images_in_memory_train_to_the_bytes_of_the_command_also_after_a_break(lab, tmp_path):
    out, data = tmp_path / "model.safetensors", pictures(lab["images"])
    whole = lab.trained(*lab.quick, "--steps", 6)
    torch.manual_seed(5)
    own = torch.get_rng_state()
    events = diffuse.train(data, steps=6, out=out, config=QUICK)
    step = next(e for e in events if isinstance(e, diffuse.Step) and e.step == 3)
    assert step.steps == 6
    events.close()
    assert not out.exists()
    *_, trained = diffuse.train(data, out=out, resume=True)
    assert isinstance(trained, diffuse.Trained)
    assert trained.model == out
    assert out.read_bytes() == whole.read_bytes()
    assert torch.equal(torch.get_rng_state(), own)
    assert sorted(p.name for p in (tmp_path / "model.run/checkpoints").iterdir()) == [
        "step-00000003", "step-00000006",
    ]  # fmt: skip


def test_a_run_in_memory_whose_samples_are_noise_names_the_call_that_trains_more(
    images, tmp_path, monkeypatch
):
    monkeypatch.setattr(FeatureMeasure, "is_noise", lambda self, kid: (yield from ()) or True)
    options = {"config": QUICK, "eval_every": 2, "eval_images": 6}
    out = tmp_path / "model.safetensors"
    *_, trained = diffuse.train(pictures(images), steps=2, out=out, **options)
    call = trained.advice.partition("Train longer: ")[2]
    assert call == f"diffuse.train(data, out={str(out)!r}, resume=True, steps=4)"


def in_turn(trainings):
    live = list(trainings)
    while live:
        live = [each for each in live if next(each, None) is not None]


def in_threads(trainings):
    ready, ended = threading.Barrier(len(trainings)), []

    def run(training):
        ready.wait()
        ended.append([*training][-1])

    threads = [threading.Thread(target=run, args=(each,)) for each in trainings]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ended) == len(trainings)


@pytest.mark.parametrize("run", mostly_slow([in_threads, in_turn], always=1))
def test_trainings_of_one_process_do_not_change_each_other(images, tmp_path, monkeypatch, run):
    """Neither by PyTorch's generators nor by Accelerate's state, which are the whole process's."""
    has = {"cpu_name": "AMD", "avx512_bf16": True}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has)
    small = {"width": 24, "multipliers": [1], "blocks": 1, "attention": [], "groups": 4}
    shared = {"steps": 2, "batch_size": 8, "num_timesteps": 50, "unet": {**small, "dropout": 0.5}}
    ways = [{"accumulation": 2}, {"precision": "fp32", "seed": 1}, {"seed": 2}]

    data = pictures(images)

    def trainings(name):
        for k, way in enumerate(ways):
            yield diffuse.train(data, out=tmp_path / f"{name}{k}.safetensors", **shared, **way)

    for training in trainings("alone"):
        assert isinstance([*training][-1], diffuse.Trained)
    run([*trainings("together")])
    for k in range(len(ways)):
        one, other = (sha256(tmp_path / f"{name}{k}.safetensors") for name in ("alone", "together"))
        assert one == other


def test_samples_in_memory_cannot_be_generated_while_they_are_read(model, tmp_path):
    """A thread that reads would wait for the training, which waits for it; or change its state."""
    generator, black = load(model), np.zeros((8, 8), np.uint8)

    class Generated:
        """Samples of a model, from the second time on if `later`."""

        def __init__(self, generate, later=False):
            self.generate, self.prepare_input = generate, set[int]() if later else set(range(4))

        def __len__(self):
            return 4

        def __getitem__(self, k):
            if k in self.prepare_input:
                self.generate()
            self.prepare_input.add(k)
            return black

    def sample():
        return generator.sample(1, steps=1)

    def train(data, name="new"):
        out = tmp_path / f"{name}.safetensors"
        return [*diffuse.train(data, out=out, config=QUICK, steps=1, workers=2)]

    said = "samples cannot be generated while a command reads them from memory"
    for generate in (sample, generator.denoiser, lambda: train([black] * 4, "inner")):
        with pytest.raises(diffuse.UsageError, match=said):
            train(Generated(generate))
    with pytest.raises(diffuse.UsageError, match=said):
        evaluate(model, Generated(sample), steps=1)
    with pytest.raises(diffuse.DataError):  # all are unreadable
        train(Generated(sample, later=True))
    assert len(sample()) == 1
    assert not list(tmp_path.iterdir())


def test_pairs_and_what_is_drawn_from_may_be_in_memory(images, tmp_path):
    whole = [image for image, _ in pictures(images)]
    given = [image.point(lambda level: 255 - level) for image in whole]
    out = tmp_path / "model.safetensors"
    *_, trained = diffuse.train(whole, given=iter(given), steps=2, out=out, config=QUICK)
    assert isinstance(trained, diffuse.Trained)
    model = load(trained.model)
    assert model.info["given"]["what"] == "pairs"
    one, two = model.sample(2, given=given[0], steps=2), model.sample(1, given=given[:3], steps=2)
    assert (len(one), len(two)) == (2, 3)
    assert np.array_equal(one.arrays[0], two.arrays[0])


@pytest.mark.parametrize("given_up", [False, True])
def test_ctrl_c_within_a_step_saves_a_checkpoint(images, tmp_path, monkeypatch, given_up):
    """Also where the loop ends before the training does."""
    step = Trainer.step

    def interrupted(self, done):
        if done == 2:
            signal.raise_signal(signal.SIGINT)
        return step(self, done)

    monkeypatch.setattr(Trainer, "step", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # jobs may ignore it
    out = tmp_path / "model.safetensors"
    events = diffuse.train(images, steps=9, out=out, config=QUICK)
    if given_up:
        assert diffuse.Step(3, 9) in events  # which ends a loop there
        events.close()
    else:
        with pytest.raises(KeyboardInterrupt, match="interrupted at step 3: checkpoint saved"):
            list(events)
    assert (tmp_path / "model.run/checkpoints/step-00000003").is_dir()
    assert signal.signal(signal.SIGINT, before) is signal.default_int_handler


class Ended(list):
    """Samples whose iterator is at its end."""

    def __getitem__(self, index):
        return next(iter(()))


def test_what_can_be_refused_is_refused_at_once_with_the_packages_errors(
    images, model, tmp_path, capfd
):
    out = tmp_path / "model.safetensors"
    train, sample = partial(diffuse.train, images, out=out), partial(load(model).sample, 1)
    for call, options, said in (
        (train, {"stepz": 3}, "Did you mean 'steps'"),
        (train, {"steps": 0}, "^steps must be at least 1"),
        (train, {"steps": 3, "minutes": 1}, "exclude each other"),
        (train, {"dry_run": True}, "dry_run: only the command"),
        (train, {"config": {"dry_run": True}}, "dry_run: only the command"),
        (train, {"augment": "x"}, "augment: there is no 'x'"),
        (train, {"augment": ""}, "augment ''"),
        (train, {"config": 7}, "config: 7 is not a path, and not a mapping"),
        (sample, {"sampler": "unipk"}, r"no 'unipk'\."),
        (sample, {"steps": 1000}, "^steps"),
        (sample, {"out": "drawn"}, "out: only the command writes files"),
        (partial(evaluate, model, images), {"metrics": ["kidd"]}, "Did you mean 'kid'"),
    ):
        with pytest.raises(diffuse.UsageError, match=said):
            call(**options)
    for data, options, said in (
        (images, {"schedule": "cosin"}, "no 'cosin'"),
        ([1, 2], {}, "sample 0 of 2: a int is not a Pillow image"),
        (Ended([1, 2]), {}, r"sample 0 of 2: .* StopIteration"),
    ):
        with pytest.raises(diffuse.DiffuseError, match=said):
            list(diffuse.train(data, out=out, **options))
    for no_data in ({"a": 1}, {0: "a.png"}, 7):
        for call in (lambda data: diffuse.train(data, out=out), partial(diffuse.evaluate, model)):
            with pytest.raises(diffuse.UsageError, match="is not a path, and not samples"):
                call(no_data)
    with pytest.raises(diffuse.OutputError, match="there is no run"):
        train(resume=True)
    with pytest.raises(diffuse.ModelFileError, match="no such model file"):
        diffuse.load(tmp_path / "none.safetensors")
    assert not out.exists()
    assert capfd.readouterr() == ("", "")


# -- measuring ------------------------------------------------------------------------------------


def test_an_evaluation_has_the_numbers_of_the_command(diffuse, model, images, caplog):
    ran = diffuse("eval", model, images, "-n", 6, "--steps", 2, "--timesteps", 3, "--json")
    with caplog.at_level(logging.INFO, "diffuse"):
        found = evaluate(load(model), images, n=6, steps=2, timesteps=3)
    assert any("the held-out part" in record.message for record in caplog.records)
    assert {**found.json, "seconds": 0} == {**ran.json, "seconds": 0}
    assert json.loads(json.dumps(found.json)) == found.json
    assert found["kid"] == (ran.json["kid"], ran.json["kid_standard_error"])
    assert (found.part, found.real, found.generated) == ("held-out", 6, 6)
    assert len(found) < len(found.numbers)
    chosen = evaluate(model, images, n=6, timesteps=3, metrics=["likelihood"]).json
    assert (chosen["n"], "kid" in chosen) == ({"real": 6, "generated": 0}, False)
    assert chosen["bits_per_dim"] == ran.json["bits_per_dim"]


def test_what_was_loaded_is_measured_whatever_has_become_of_its_file(model, images, tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(model.read_bytes())
    found, loaded = load(path), load(path)
    wanted = evaluate(found, images, n=4, timesteps=2, metrics=["likelihood"])
    path.unlink()
    again = evaluate(loaded, images, n=4, timesteps=2, metrics=["likelihood"])
    assert again.numbers == wanted.numbers
    assert again.json["settings"] == wanted.json["settings"]


def test_drawn_samples_are_measured_against_samples_in_memory(model, images):
    drawn, seen = load(model).sample(4, steps=2), []
    found = evaluate(
        drawn, [image for image, _ in pictures(images)], metrics=["marginals"], progress=seen.append
    )
    assert (found.real, found.generated) == (60, 4)
    assert {n.partition("_")[0] for n in found} & {"marginal", "mean", "shift", "distance"}
    assert seen


def test_drawn_arrays_are_read_as_they_are_written(tmp_path):
    """Where their channels are last, also those of the model."""
    fields = np.random.default_rng(0).normal(size=(48, 8, 8, 3)).astype(np.float32)
    out = tmp_path / "fields.safetensors"
    *_, trained = diffuse.train(fields, steps=2, out=out, config=QUICK)
    drawn = load(trained.model).sample(4, steps=2)
    assert drawn.arrays.shape == (4, 3, 8, 8)
    found = evaluate(drawn, fields, metrics=["marginals"])
    assert (found.real, found.generated) == (48, 4)
    same = evaluate([*np.moveaxis(drawn.arrays, 1, -1)], fields, metrics=["marginals"])
    assert found["wasserstein"].value == pytest.approx(same["wasserstein"].value)


def test_notices_are_logged_and_work_whose_progress_fails_is_closed(caplog):
    """Or it keeps its locks as long as somebody keeps the traceback."""
    ended = []

    def work():
        try:
            yield Notice("as it should be")
            yield Notice("as it should not be", warning=True)
            yield Progress("sampling", 0, 1)
        finally:
            ended.append(True)

    def fail(event):
        raise KeyboardInterrupt

    begun = work()
    with caplog.at_level(logging.INFO, "diffuse"), pytest.raises(KeyboardInterrupt):
        run_work(begun, fail)
    said = [(record.levelname, record.message) for record in caplog.records]
    assert said == [("INFO", "as it should be"), ("WARNING", "as it should not be")]
    assert ended


def test_every_name_is_there_and_no_other():
    assert None not in [getattr(diffuse, name) for name in diffuse.__all__]
    public = {n for n, own in vars(api).items() if n[0] != "_" and not inspect.ismodule(own)}
    assert {"__version__", *public} == {*diffuse.__all__} <= {*dir(diffuse)}
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        diffuse.trian  # noqa: B018
