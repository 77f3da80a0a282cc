"""Training on label maps: how they are found, the planes of the network, and samples of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import MODEL
from lab import QUICK, draw_regions
from PIL import Image

from diffuse_cli.core.conditions import ConditioningArray
from diffuse_cli.core.space import Space
from diffuse_cli.models import model_file
from diffuse_cli.models.image_conditioning import Conditioner
from diffuse_cli.system.errors import DataError

COLORS = [10, 20, 30, 200, 0, 0, 0, 200, 0, 0, 0, 200]
GREYS = [k for level in (0, 127, 254, 60) for k in [level] * 3]


def write_maps(images, levels, palette=None, mode=None):
    """Maps of some levels beside the images."""
    for k, path in enumerate(sorted(images.rglob("*.png"))):
        places = (np.indices((8, 8)).sum(0) + k) // 2 % len(levels)
        picture = Image.fromarray(np.array(levels, np.uint8)[places], "P" if palette else None)
        if palette:
            picture.putpalette(palette)
        there = Path("maps", path.relative_to(images))
        there.parent.mkdir(parents=True, exist_ok=True)
        picture.convert(mode or picture.mode).save(there)


@pytest.mark.filterwarnings("ignore:'mode' parameter")
@pytest.mark.parametrize(
    ("levels", "palette", "mode", "options", "labels"),
    [
        ((0, 1, 2), None, None, "", (0, 1, 2)),
        (range(32), None, None, "", tuple(range(32))),
        (range(33), None, None, "", None),
        ((0, 1), None, None, "", None),
        ((0, 2, 4), None, None, "", None),
        ((1, 2, 3), None, None, "", None),
        ((0, 127, 254), None, None, "", None),
        ((0, 127, 254), None, None, "--given-kind labels", (0, 127, 254)),
        ((0, 1), None, None, "--given-kind labels", (0, 1)),
        ((0, 1, 2), None, None, "--given-kind image", None),
        ((0, 1, 2), None, "RGB", "", (0, 1, 2)),
        ((0, 1, 2), None, "I;16", "", (0, 1, 2)),
        ((0, 1, 2), None, "I;16", "--bits 16", (0, 1, 2)),
        ((200, 210, 220), None, None, "", None),
        ((0, 0, 0), None, None, "", None),
        ((0, 13, 26), None, None, "", None),
        ((0, 1, 3), COLORS, None, "", (0, 1, 3)),
        ((0, 1), COLORS, None, "", None),
        ((0, 1, 2), COLORS, "RGB", "", None),
        ((0, 1, 2), GREYS, None, "", None),
    ],
)
def test_label_maps_are_found_by_a_palette_or_levels_without_a_gap(
    quick, images, levels, palette, mode, options, labels
):
    """Others that use less than a tenth of the levels are warned of."""
    write_maps(images, levels, palette, mode)
    ran = quick("--steps", 1, "--given", "maps", *options.split()).ok()
    assert (f"--given maps: label maps of {len(levels)} labels\n" in ran.err) is bool(labels)
    narrow = not (labels or palette) and max(levels) - min(levels) < 25.5
    _, warned, said = ran.err.partition("warning: --given maps: the images use only levels ")
    found = said.startswith(f"{min(levels)} to {max(levels)} of 0 to 255")
    hint = "or for label maps pass --given-kind labels\n" in said
    assert (bool(warned), found, hint) == (narrow,) * 3
    given = model_file.load(MODEL).blueprint.conditions.given
    assert given.labels == labels
    assert given.channels == (len(labels) if labels else 1 + 2 * bool(palette and palette != GREYS))


@pytest.mark.parametrize(("augment", "least"), [("flip,shift", 1.0), ("rotate,zoom", 0.8)])
def test_the_network_gets_a_plane_of_each_label_that_moves_with_its_image(
    diffuse, lab, shown, augment, least
):
    """The images are the maps themselves."""
    line = ("train", lab["maps"], "--config", QUICK, "--steps", 8, "--given", lab["maps"])
    assert diffuse(*line, "--given-dropout", 0, "--augment", augment).code == 0
    agreement, moved = [], 0
    for x0, cond in shown:
        planes, known = cond["given"].split((3, 1), 1)
        assert {*planes.unique().tolist()} == {0, 1}
        assert bool((planes.sum(1, keepdim=True) == 1).all())
        assert bool((known == 1).all())
        labels = ((x0[:, 0] + 1) * 127.5).round()
        agreement.append(float((planes.argmax(1) == labels).float().mean()))
        moved += int((cond["augment"] != 0).any(1).sum())
    assert np.mean(agreement) >= least
    assert moved > 8


def test_samples_have_the_levels_of_their_labels_however_these_are_spread(diffuse, lab):
    """Maps that no training image has, as 0, 1, 2 and as 0, 127, 254."""
    line = ("train", lab["regions"], "--config", lab["tiny"], "--given", lab["region-maps"])
    options = ("--target", "x0", "--lr", 0.005, "--given-dropout", 0, "--optimizer", "adamw")
    model, maps = lab.trained(*line, *options, "--steps", 100), draw_regions(64)[60:]
    for factor in (1, 127):
        Path(f"maps-{factor}").mkdir()
        for k, labels in enumerate(maps):
            Image.fromarray(labels * np.uint8(factor)).save(f"maps-{factor}/{k}.png")
        given = ("--given", f"maps-{factor}", "--steps", 10, "--precision", "fp32")
        diffuse("sample", model, *given, "-n", 1, "-o", f"out-{factor}").ok()
    once, again = (
        np.stack([np.asarray(Image.open(f"out-{factor}/{k:05d}.png"), float) for k in range(4)])
        for factor in (1, 127)
    )
    assert np.array_equal(once, again)
    assert (np.abs(once[..., None] - [40, 120, 220]).argmin(-1) == maps).mean() >= 0.99


@pytest.mark.parametrize(
    ("labels", "values", "places"),
    [
        ((0, 1, 2), (0, 2), (0, 2)),
        ((0, 1, 2), (127, 254), (1, 2)),
        ((0, 1, 2), (0, 128, 255), (0, 1, 2)),
        ((0, 1, 2), (10, 60, 110), (0, 1, 2)),
        ((0, 127, 254), (0, 1), (0, 1)),
        ((3, 5), (0, 255), (0, 1)),
        ((0, 1, 2), (0, 1, 3), None),
        ((0, 1, 2), (0, 1, 2, 3), None),
        ((0, 1, 2), (0, 1, 255), None),
        ((0, 1, 2, 3, 4), (63, 127, 191), (1, 2, 3)),
        ((0, 5, 9), (1, 4, 10), None),
    ],
)
def test_other_labels_are_those_of_the_model_if_they_are_evenly_spread(labels, values, places):
    names = ("a", "b", "c", "d", "e")[: len(labels)]
    given = ConditioningArray(channels=len(labels), labels=labels, names=names)
    encoder = Conditioner(given, Space(channels=3, size=(1, len(values))))
    maps = np.array(values, np.uint8).reshape(1, 1, 1, -1)
    if places is not None:
        matched = encoder.match_labels(maps, "map.png")
        assert matched.ravel().tolist() == [labels[k] for k in places]
        return
    (unknown, *_) = [value for value in values if value not in labels]
    text = f"label {unknown} is not one of the model's: 0 \\(a\\), "
    with pytest.raises(DataError, match=text):
        encoder.match_labels(maps, "map.png")


def test_a_model_file_has_the_classes_and_info_lists_them(diffuse, lab):
    given = model_file.load(lab["labels"]).blueprint.conditions.given
    assert (given.labels, given.names) == ((0, 1, 2), ("ground", "wood", "sky"))
    maps = np.stack([np.asarray(Image.open(path)) for path in lab["named-maps"].rglob("*.png")])
    fractions = [float((maps == label).mean()) for label in given.labels]
    assert given.fractions == pytest.approx(fractions)
    line = "\ninput       pairs: label maps; dropped from 10%"
    line += f"\nlabels      0 (ground) {fractions[0]:.1%}, 1 (wood) {fractions[1]:.1%}, 2 (sky) "
    assert line in diffuse("info", lab["labels"]).out
    assert diffuse("info", lab["named-maps"], "--json").json["labels"] == pytest.approx(
        dict(zip(("ground", "wood", "sky"), fractions, strict=True))
    )
    assert "labels" not in diffuse("info", lab["images"], "--json").json
