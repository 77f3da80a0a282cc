"""The site is made of the pages that one reads in the repository; `.ci/run` builds all of it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import typer
from test_docs import ROOT, script

import diffuse_cli
from diffuse_cli import core
from diffuse_cli.app import build
from diffuse_cli.commands._cli.help import group_parameters


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Any:
    """docs/site.py as a module, without an address of the repository."""
    module = script("site")
    monkeypatch.setattr(module, "SOURCE", "")
    return module


@pytest.mark.parametrize(
    ("text", "made"),
    [
        ("[x](tasks.md#methods)", "[x](tasks.md#methods)"),
        ("[x](../README.md)", "[x](index.md)"),
        ("[x](../CHANGELOG.md#unreleased)", "[x](changelog.md#unreleased)"),
        ("[x](#here) [x](https://example.org)", "[x](#here) [x](https://example.org)"),
        ("![x](images/a.png)", "![x](images/a.png)"),
        ("[`t.test_x`](../tests/t.py)", "`t.test_x`"),
        (
            "[`process.Process.rewind`](../diffuse_cli/core/process.py)",
            "[`process.Process.rewind`][diffuse_cli.core.process.Process.rewind]",
        ),
        (
            "[schedules.py](../diffuse_cli/core/schedules.py)",
            "[schedules.py](reference/schedules.md)",
        ),
        ("[x](commands/train.md)", "[x](commands/train.md)"),
    ],
)
def test_links_lead_to_their_place_on_the_site(site: Any, text: str, made: str):
    assert site.Page("docs/theory.md", site.places()).prose(text) == made


def test_links_from_the_readme_and_from_folders(site: Any):
    readme = site.Page("README.md", site.places())
    assert readme.prose('<img src="docs/images/a.png" width="4">') == (
        '<img src="images/a.png" width="4">'
    )
    assert readme.prose("[x](docs/tasks.md)") == "[x](tasks.md)"
    page = site.Page("docs/commands/train.md", site.places())
    assert page.prose("![x](../images/a.png)") == "![x](../images/a.png)"
    assert page.prose("[x](../../benchmarks/README.md#y)") == "[x](../benchmarks.md#y)"


def test_with_an_address_files_that_are_no_pages_are_linked(
    site: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(site, "SOURCE", "https://example.org/d")
    made = site.Page("docs/theory.md", site.places()).prose("[x](../tests/test_docs.py)")
    assert made == "[x](https://example.org/d/blob/HEAD/tests/test_docs.py)"


def test_formulas_become_mathml_and_code_and_dollars_do_not(site: Any):
    pytest.importorskip("math_core")
    page = site.Page("docs/theory.md", site.places())
    made = page.prose("A $x_0 \\mid y$, `$x$` and\n\n$$\\frac{a}{b}$$\n\nat $5 or $6.")
    assert made.count("<math") == 2
    assert made.count('display="block"') == 1
    assert "`$x$`" in made
    assert made.endswith("at $5 or $6.")
    assert not set("|*_`$") & {*made[made.index("<math") : made.index("</math>")]}
    numbered = page.prose("$$\\alpha \\tag{3}$$").strip()
    assert numbered.endswith("</math></div><span>(3)</span></div>")
    with pytest.raises(Exception, match="nocommand"):
        page.prose("$\\nocommand$")


def test_options_stand_where_their_page_is_linked(site: Any):
    text = site.Page("docs/commands/sample.md", site.places()).text()
    assert (
        "\n## Options\n\n`diffuse sample [OPTIONS] MODEL`\n\n### Arguments\n\n`MODEL`\n:   " in text
    )
    assert "`-n N`\n:   Number of images (with --given, for each input)." in text
    assert "`--grid / --no-grid`\n:   Write grid.png" in text
    assert "[All options]" not in text


def test_the_site_has_every_option_of_every_command(site: Any):
    """Also the options that docs/cli.md lists once for all commands."""
    group = build()
    root = typer.Context(group, info_name="diffuse")
    for name, command in group.commands.items():
        parameters = command.get_params(typer.Context(command, info_name=name, parent=root))
        rows = [row for rows in group_parameters(parameters).values() for row in rows]
        link = site.OPTIONS.search(f"[All options](../cli.md#diffuse-{name})")
        found = re.findall(r"^`(.+)`\n:   (.*)$", site.options(link), re.MULTILINE)
        assert sorted(found) == sorted((flags, site.escaped(text)) for flags, text in rows), name


def test_every_page_is_in_the_table_of_contents(site: Any, tmp_path: Path):
    def leaves(nav: Any) -> list[str]:
        if isinstance(nav, str):
            return [nav]
        return [leaf for part in nav for value in part.values() for leaf in leaves(value)]

    found = leaves(site.navigation(site.reference(tmp_path / "reference")))
    assert len(found) == len({*found})
    assert {*site.places().values()} <= {*found}
    written = {path.stem for path in (tmp_path / "reference").glob("*.md")}
    assert {Path(leaf).stem for leaf in found if leaf.startswith("reference/")} <= written
    assert "networks.unet" in written


def test_the_reference_lists_the_public_names(site: Any):
    package = ROOT / "diffuse_cli"
    names = {name for name, _ in site.exported(package / "api" / "__init__.py")}
    assert names == {*diffuse_cli.__all__} - {"__version__"}
    assert {name for name, _ in site.exported(package / "core" / "__init__.py")} == {*core.__all__}
