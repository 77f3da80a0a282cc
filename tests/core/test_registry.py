"""Tables list the names of other packages' entries, and import an entry when it is looked up."""

import itertools
import os
from importlib.metadata import EntryPoint, EntryPoints
from types import SimpleNamespace

import pytest

from diffuse_cli.app import build_command, main
from diffuse_cli.core import NETWORKS, registry
from diffuse_cli.core.registry import InvalidArgument, Modules, Registry, SkippedExtension

GROUPS = (
    "things", "formats", "metrics", "media", "fits", "features", "sources", "optimizers", "presets",
    "variances", "networks", "degradations", "spacings", "masks", "restorations", "targets",
    "samplers", "schedules", "losses", "weightings",
)  # fmt: skip
"""All but the commands: `--help` lists what their modules say."""


@pytest.fixture
def loaded(monkeypatch):
    """The names of the entry points that were imported; each table has one, `added`."""
    names = []

    class Point(EntryPoint):
        def load(self):
            names.append(self.group)
            return max

    pairs = itertools.product(GROUPS, ("added", "own"))
    points = [Point(name, f"somewhere:{name}", f"diffuse.{group}") for group, name in pairs]
    monkeypatch.setattr(registry, "entry_points", lambda: EntryPoints(points))
    forget()
    yield names
    forget()


def forget():
    """What has been found, and the commands whose help names it."""
    registry.extension_points.cache_clear()
    build_command.cache_clear()


@pytest.fixture(params=["registry", "modules"])
def table(request, tmp_path):
    if request.param == "registry":
        return Registry("things", {"own": min})
    for name in ("own", "_part", "shared"):
        (tmp_path / f"{name}.py").touch()
    return Modules("things", "package", [str(tmp_path)], helpers=("shared",))


def test_names_are_listed_without_an_import_and_an_entry_is_imported_when_it_is_looked_up(
    table, loaded
):
    assert list(table) == list(table.keys()) == ["own", "added"]
    assert len(table) == len(table.items()) == 2
    assert "added" in table
    assert "other" not in table
    assert loaded == []
    assert table["added"] is table.get("added") is max
    assert set(loaded) == {"diffuse.things"}
    with pytest.raises(KeyError):
        table["other"]


@pytest.mark.parametrize("value", ["no_such_package", "os:nothing"])
def test_a_loop_over_entries_skips_those_that_cannot_be_loaded(monkeypatch, value):
    things = Registry("things", {"own": min})
    points = {name: EntryPoint(name, at, "") for name, at in (("broken", value), ("ok", "os:sep"))}
    monkeypatch.setattr(registry, "extension_points", lambda: {"things": points})
    with pytest.warns(SkippedExtension, match="cannot be loaded"):
        assert [*things.items()] == [("own", min), ("ok", os.sep)]
    with pytest.warns(SkippedExtension, match="cannot be loaded"):
        assert [*things.values()] == [min, os.sep]
    assert [*things] == ["own", "broken", "ok"]
    with pytest.raises(InvalidArgument, match="cannot be loaded"):
        things["broken"]


def test_our_own_entry_wins_and_is_known_by_its_old_name_too(loaded):
    things = Registry("things", {"own": min}, aliases={"old": "own"})
    assert things["old"] is things["own"] is min
    assert [things.current(name) for name in ("old", "own", "other")] == ["own", "own", "other"]
    assert "old" in things
    assert "old" not in list(things)
    assert loaded == []


@pytest.mark.parametrize("command", ["train", "sample", "eval", "noise-demo", "convert"])
def test_help_names_entries_without_an_import(command, loaded, capsys):
    assert main([command, "--help"]) == 0
    assert "added" in capsys.readouterr().out
    assert loaded == []


def test_a_network_of_another_package_can_leave_out_what_has_a_default(monkeypatch):
    module = SimpleNamespace(Config=dict, build=min, describe=max, OF_SIZE={"depth"})
    monkeypatch.setitem(NETWORKS, "added", module)
    network = NETWORKS["added"]
    assert network.OF_SIZE == module.OF_SIZE
    assert network.at_width({"width": 8, "depth": 2}, 16, False) == {"depth": 2}
    del module.describe
    with pytest.raises(InvalidArgument, match="added cannot be loaded: it has no describe"):
        NETWORKS["added"]
