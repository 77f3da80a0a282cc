"""Results that no rearrangement may change: weights, samples and measures, by digest.

On a machine like the one of the record every digest must be equal. On another, whose arithmetic
rounds otherwise, the means and sizes recorded beside them are compared.
"""

from __future__ import annotations

import json

import goldens
import pytest
from conftest import JUDGE, PREVIEW_STEPS, builder

RECORD = json.loads(goldens.GOLDEN.read_text())


@pytest.fixture(scope="module")
def same():
    """Whether this machine rounds as the one of the record does."""
    return goldens.machine() == RECORD["machine"]


@pytest.mark.parametrize("name", goldens.CASES)
def test_results_are_as_recorded(name, same, tmp_path, monkeypatch, pair):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(f"{JUDGE}.build", builder())  # at its full size, but once for all
    # Nothing of a preview is recorded, and memory does not decide a result.
    monkeypatch.setattr("diffuse_cli.training.previews.SAMPLING_STEPS", PREVIEW_STEPS)
    monkeypatch.setattr("diffuse_cli.training.running.images_at_a_time", lambda *_: 100)
    goldens.furnish(tmp_path)
    found = json.loads(json.dumps(goldens.measure(name, lambda *line: pair(*line).out)))
    assert goldens.differences(RECORD["cases"][name], found, same) == []


def test_the_record_has_every_case_and_no_other():
    assert list(RECORD["cases"]) == list(goldens.CASES)
