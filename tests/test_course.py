"""The course: its Python prints what the page says, and a chapter has all its parts."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from test_docs import ROOT, find, run_block, script

COURSE = ROOT / "docs" / "course"
CHAPTERS = sorted(COURSE.glob("[0-9]*.md"))
CELL = re.compile(r"^```python\n(.*?)^```\n+^```text\n(.*?)^```$", re.DOTALL | re.MULTILINE)
FENCE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"(!?)\[([^\]]+)\]\(([^)]+)\)")

each_chapter = pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
each_page = pytest.mark.parametrize("path", [*CHAPTERS, COURSE / "index.md"], ids=lambda p: p.stem)


def printed(cell: re.Match[str], path: Path, names: dict[str, Any]) -> str:
    """What a cell prints."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        run_block(cell, path, names)
    return out.getvalue()


def test_there_are_twelve_chapters_in_order():
    assert [int(path.name[:2]) for path in CHAPTERS] == [*range(1, 13)]
    index = (COURSE / "index.md").read_text(encoding="utf-8")
    listed = re.findall(r"\]\((\d\d-[\w-]+\.md)\)", index)
    assert listed == [path.name for path in CHAPTERS]


@each_chapter
def test_the_cells_print_what_the_page_says(path: Path):
    text = path.read_text(encoding="utf-8")
    cells = list(CELL.finditer(text))
    assert len(cells) == text.count("```python\n") in (1, 2, 3)
    names: dict[str, Any] = {"__name__": path.stem}
    for cell in cells:
        assert re.search(r"\d", cell[2])
        assert printed(cell, path, names) == cell[2]


@each_chapter
def test_a_chapter_has_a_picture_and_the_command_that_made_it(path: Path):
    text = path.read_text(encoding="utf-8")
    pictures = [target for mark, _, target in LINK.findall(text) if mark]
    assert pictures
    drawn = re.findall(r'^    "(\w+)": \(', (COURSE / "pictures.py").read_text(), re.MULTILINE)
    for target in pictures:
        place = path.parent / target
        assert place.stat().st_size < 250_000
        with Image.open(place) as image:
            image.verify()
        command = f"python docs/course/pictures.py {place.stem}`"
        if command in text:
            assert place.stem in drawn
        else:
            assert f"-o docs/images/course/{place.name}`" in text


def test_the_pictures_can_be_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pictures = script("course/pictures")
    monkeypatch.setattr(pictures, "IMAGES", tmp_path)
    pictures.main(["posterior", "ranks"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["posterior.png", "ranks.png"]


def test_every_picture_of_the_course_is_shown():
    shown = {
        (path.parent / target).resolve()
        for path in CHAPTERS
        for mark, _, target in LINK.findall(path.read_text(encoding="utf-8"))
        if mark
    }
    assert shown == set((ROOT / "docs" / "images" / "course").iterdir())


@each_chapter
def test_a_chapter_has_three_exercises_with_answers(path: Path):
    text = path.read_text(encoding="utf-8")
    _, exercises = text.split("\n## Exercises\n")
    assert re.findall(r"^\*\*(\d)\.\*\* ", exercises, re.MULTILINE) == ["1", "2", "3"]
    answers = re.findall(
        r"<details>\n<summary>Answer</summary>\n\n(.+?)\n\n</details>", exercises, re.DOTALL
    )
    assert len(answers) == 3 == text.count("<details>") == text.count("</details>")


@each_page
def test_a_page_names_what_exists(path: Path):
    prose = FENCE.sub("", path.read_text(encoding="utf-8"))
    links = [(text, target) for mark, text, target in LINK.findall(prose) if not mark]
    for text, target in links:
        place = path.parent / target.partition("#")[0]
        if text.startswith("`") and place.suffix == ".py" and text.count("."):
            find(text.strip("`"), place.resolve())
    if path in CHAPTERS:
        named = [t for _, t in links if "/diffuse_cli/core/" in t]
        assert len(named) >= 3
        assert [t for _, t in links if "/tests/" in t]


@each_page
def test_mathematics_is_closed(path: Path):
    """A dollar too many, or one with a space inside, turns text into a formula or back."""
    prose = FENCE.sub("", path.read_text(encoding="utf-8"))
    prose = re.sub(r"`[^`\n]*`", "", prose)
    for paragraph in prose.split("\n\n"):
        inline = re.sub(r"^\$\$.+\$\$$", "", paragraph, flags=re.MULTILINE)
        inline = re.sub(r"(?<![\w$])\$(?! )[^$\n]+(?<! )\$(?![\w$])", "", inline)
        assert "$" not in inline, paragraph
        assert "\\tag" not in paragraph, "not drawn everywhere"
