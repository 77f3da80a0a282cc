"""Run directory of a model file: checkpoints, metrics and previews.

model.best.safetensors        with --eval-every, next to it: the model with the lowest KID
model.run/
  config.toml                 the resolved configuration
  checkpoints/step-00001000/  model, ema (a model file), optimizer, history: safetensors,
                              state.json, manifest.json
  metrics.jsonl               a line every --log-every steps
  ema/step-00001000.safetensors   with --ema-lengths: snapshots of averages of other lengths
  index.html                  the page of the run
  previews/                   a grid of samples every --preview-every steps
  cache/                      the decoded images, while a run is active
  index/                      the properties of each file of a set that the cache does not hold
  lock                        locked by the process of the run
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffuse_cli.config import options, train_options
from diffuse_cli.system import (
    ModelFileError,
    OutputError,
    UsageError,
    files,
    outputs,
    replace_nonfinite,
    run_reader,
)

if TYPE_CHECKING:
    from torch import Tensor

    from diffuse_cli.config.train_options import TrainConfig
    from diffuse_cli.models.blueprint import Blueprint
    from diffuse_cli.models.model_file import StoredModel

KEPT = 2
"""Checkpoints to keep, including the newest."""

TENSORS = ("model", "ema", "optimizer", "history", "best", "powers", "critic")
"""Tensor files of a checkpoint."""

OPTIONAL = ("best", "powers", "critic")
"""Tensor files that are left out if they are empty."""


@dataclass(frozen=True)
class Checkpoint:
    """State of a run after `step` steps. Random numbers come from the seed.

    Attributes:
        history: the losses that choose timesteps.
        best: the weights with the lowest KID so far.
        powers: the averages of other lengths.
        critic: the weights and the optimizer of a distillation's critic.
        about: the metadata that makes the EMA weights a model file.
    """

    step: int
    model: Mapping[str, Tensor]
    ema: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    history: Mapping[str, Tensor]
    state: Mapping[str, Any]
    best: Mapping[str, Tensor] = field(default_factory=dict)
    powers: Mapping[str, Tensor] = field(default_factory=dict)
    critic: Mapping[str, Tensor] = field(default_factory=dict)
    about: Mapping[str, str] = field(default_factory=dict)


class RunDirectory:
    """Run directory of the model file at `model`."""

    def __init__(self, model: str | Path) -> None:
        self.model = Path(model)
        outputs.check_suffix(self.model, ".safetensors")
        self.best = self.model.with_suffix(run_reader.BEST)
        self.path = self.model.with_suffix(".run")
        self.config = self.path / run_reader.CONFIG
        self.metrics = self.path / run_reader.METRICS
        self.page = self.path / "index.html"
        self.previews = self.path / "previews"
        self.cache = self.path / "cache"
        self.index = self.path / "index"
        self.logs = self.path / "logs"
        self.checkpoints = self.path / run_reader.CHECKPOINTS
        self.snapshots = self.path / "ema"

    def exists(self) -> bool:
        """Whether a run has started here. A failed start leaves a folder with only a lock."""
        return self.config.exists()

    def write_config(self, config: TrainConfig, steps: int) -> None:
        """Write config.toml of a run that takes this number of steps, as far as it is known."""
        values = train_options.to_file(replace(config, steps=steps), control=False)
        if config.minutes is not None:
            values["minutes"] = config.minutes
        files.write_text(self.config, options.to_toml(values))

    def check_free(self, config: TrainConfig) -> None:
        """Refuse to replace a model, a run, or a best model of another run.

        Raises:
            OutputError: one exists without --overwrite, belongs to another run, or cannot be
                written.
            UsageError: --overwrite would replace or remove the model of --init.
        """
        over = config.overwrite
        if not config.resumes:
            if over and config.init:
                outputs.check_other_than(self.model, config.init)
                source = Path(config.init).resolve()
                if source.is_relative_to(self.path.resolve()) or source == self.best.resolve():
                    text = f"--overwrite would remove {files.show(config.init)}"
                    hint = "Choose another -o"
                    raise UsageError(text, hint, code="output_is_input", path=config.init)
            hint = "Resume with --resume, replace it with --overwrite, or choose another -o"
            outputs.check_free(self.model, over, hint=hint)
            outputs.check_free(self.config, over, hint=hint, folder=self.path)
        if config.eval_every:
            if RunDirectory(self.best).exists():
                text = f"{files.show(self.best)} belongs to another run"
                raise OutputError(text, "Choose another -o", code="output_foreign", path=self.best)
            hint = "Choose another -o, or replace it with --overwrite"
            outputs.check_free(self.best, over or self._has_best(), hint=hint)

    def _has_best(self) -> bool:
        """Whether the run of this directory writes its best model."""
        with contextlib.suppress(UsageError):
            return self.exists() and "eval_every" in options.read_toml(self.config)
        return False

    @contextlib.contextmanager
    def hold_lock(self, config: TrainConfig | None = None) -> Iterator[None]:
        """Lock the directory, and remove the folder afterwards if no run has started in it.

        Args:
            config: the configuration of a run that starts here. It is checked under the lock,
                because an active run is the first error to report.

        Raises:
            BusyError: another process has the lock.
            OutputError: as `check_free`.
        """
        try:
            with outputs.hold_lock(self.path / run_reader.LOCK), outputs.hold_output(self.model):
                try:
                    self._remove_temporary_files()
                    if config:
                        self.check_free(config)
                    yield
                finally:
                    files.remove(self.cache)
        finally:
            if not self.exists():
                with contextlib.suppress(OSError):  # another process uses it, or it has other files
                    self.path.rmdir()

    @contextlib.contextmanager
    def remove_local_cache(self) -> Iterator[None]:
        """Remove the cache of another machine than the first afterwards, if its disk is local.

        On a shared disk there is the lock of the first process, which removes the cache.
        """
        try:
            yield
        finally:
            if not (self.path / run_reader.LOCK).exists():
                with contextlib.suppress(OutputError, OSError):
                    files.remove(self.cache)
                    self.path.rmdir()

    def _remove_temporary_files(self) -> None:
        """Remove temporary files of a killed process."""
        for folder in (self.path, self.checkpoints, self.previews, self.snapshots):
            files.remove_leftovers(folder)
        if self._has_best():
            files.remove_leftovers(self.model.parent, re.escape(self.best.name))

    def clear(self) -> None:
        """Remove an earlier run and its models, except this run's lock and cache."""
        if self._has_best():
            files.remove(self.best)
        folders = (self.checkpoints, self.previews, self.logs, self.snapshots)
        for path in (*folders, self.metrics, self.config):
            files.remove(path)
        files.remove(self.model)

    def save(self, checkpoint: Checkpoint) -> Path:
        """Write a checkpoint, and remove old checkpoints once it is on disk."""
        from diffuse_cli.models import tensor_file

        def fill(folder: Path) -> None:
            for name in TENSORS:
                tensors = getattr(checkpoint, name)
                if tensors or name not in OPTIONAL:
                    path = folder / f"{name}.safetensors"
                    about = checkpoint.about if path.name == run_reader.AVERAGE else None
                    tensor_file.write(path, tensors, about)
            files.write_json(folder / "state.json", {**checkpoint.state, "step": checkpoint.step})
            sums = {path.name: files.sha256(path) for path in sorted(folder.iterdir())}
            files.write_json(folder / run_reader.MANIFEST, {"files": sums, "step": checkpoint.step})

        path = self.checkpoints / f"step-{checkpoint.step:08d}"
        files.write_folder(path, fill)
        # Newer checkpoints are damaged or belong to an earlier run: they must not count.
        complete = run_reader.list_checkpoints(self.checkpoints)
        position = complete.index(path)
        for old in [*complete[:position], *complete[position + KEPT :]]:
            files.remove(old)
        return path

    def load(self) -> tuple[Checkpoint | None, list[str]]:
        """Read the newest intact checkpoint, and return a sentence for each damaged newer one."""
        from diffuse_cli.models import tensor_file

        passed: list[str] = []
        for path in run_reader.list_checkpoints(self.checkpoints):
            if why := run_reader.find_damage(path):
                passed.append(f"{files.show(path)} is damaged ({why}): using an earlier checkpoint")
                continue
            state = json.loads((path / "state.json").read_text())
            # A verified checkpoint has all of its files.
            paths = {name: path / f"{name}.safetensors" for name in TENSORS}
            tensors: dict[str, Any] = {
                n: tensor_file.read(p) if p.exists() else {} for n, p in paths.items()
            }
            return Checkpoint(step=state["step"], state=state, **tensors), passed
        return None, passed

    def blueprint(self) -> Blueprint | None:
        """Read the run's blueprint from a checkpoint or the model file, or None without them."""
        from diffuse_cli.models import model_file

        for path in (*run_reader.list_checkpoints(self.checkpoints), self.model):
            with contextlib.suppress(ModelFileError):
                return model_file.load(path, weights=False).blueprint
        return None

    def write(self, path: Path, model: StoredModel) -> None:
        """Write a model file unless it has this model already."""
        from diffuse_cli.models import model_file

        if not model_file.has_model(path, model):
            model_file.save(path, model)

    def newest_step(self) -> int | None:
        """Return the step of the newest complete checkpoint without reading it."""
        paths = run_reader.list_checkpoints(self.checkpoints)
        return next(map(run_reader.checkpoint_step, paths), None)

    def log(self, **values: Any) -> None:
        """Append a line to metrics.jsonl. Values that are not finite become null."""
        files.append_line(self.metrics, json.dumps(replace_nonfinite(values)))

    def rewind(self, step: int) -> None:
        """Remove previews, snapshots and metrics after `step`, and an incomplete last line."""
        for path in (*self.previews.glob("step-*"), *self.snapshots.glob("step-*")):
            number = path.stem.removeprefix("step-")
            if number.isdecimal() and int(number) > step:
                files.remove(path)
        if not self.metrics.exists():
            return
        lines = []
        for line in self.metrics.read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError):
                if json.loads(line)["step"] <= step:
                    lines.append(line + "\n")
        files.write_text(self.metrics, "".join(lines))
