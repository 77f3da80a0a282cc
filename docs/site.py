"""Build the documentation as a site, from the pages that one reads in the repository.

    python docs/site.py --strict      build/site/html, or an error where a link leads nowhere
    python docs/site.py --serve       the same, shown and rebuilt

Pages are copied to build/site/docs, where their links are rewritten, formulas become MathML, and a
page of a command gets its options from docs/cli.md. Zensical makes the rest; it needs the extra
[docs], and neither PyTorch nor a network. `DIFFUSE_SOURCE` is the address of the repository, for
links to files that are no pages (as `Source` in `[project.urls]`); without one they are plain text.
If `build/demo` has the page of a model (`diffuse convert MODEL build/demo --to page`), the site
shows it live, with a link in place of `<!-- demo -->` in docs/share.md.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).parents[1]
OUT = ROOT / "build" / "site"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
DEMO = ROOT / "build" / "demo"
SOURCE = os.environ.get("DIFFUSE_SOURCE") or PROJECT.get("urls", {}).get("Source", "")

FENCE = re.compile(r"(^( *)```.*?^\2```$)", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\((?!\w+:)([^)\s]+)\)")
OPTIONS = re.compile(r"^\[All options\]\(\.\./cli\.md#diffuse-([\w-]+)\)$", re.MULTILINE)
IMAGE = re.compile(r'<img src="(?!\w+:)([^"]+)"')
DISPLAY = re.compile(r"\$\$(.+?)\$\$", re.DOTALL)
INLINE = re.compile(r"(`[^`]*`)|(?<![\\$\w])\$(?=\S)((?:[^$`\\]|\\.)+?)(?<=\S)\$(?![\w$])", re.S)

Nav = list[dict[str, "str | Nav"]]

# -- which pages there are -------------------------------------------------------------------------

START = {"README.md": "index.md", "CHANGELOG.md": "changelog.md", "SECURITY.md": "security.md",
         "CONTRIBUTING.md": "contributing.md", "benchmarks/README.md": "benchmarks.md",
         "examples/README.md": "examples.md"}  # fmt: skip
"""Pages beside docs/, and their place on the site."""
TUTORIALS = [
    "first-model", "your-photos", "photos-with-classes", "few-photos", "label-maps", "fields",
    "python",
]  # fmt: skip
"""Pages of docs/tutorials/, in this order."""
GUIDES = ["conditions", "media", "sources", "large-data", "finetuning", "tasks", "evaluation",
          "ensembles", "judge", "baseline", "expect", "share", "trackers", "troubleshooting",
          "scaling", "reliability", "performance"]  # fmt: skip
"""Pages of docs/ that come first, in this order; others follow by name."""


def places() -> dict[str, str]:
    """Where each page of the repository is on the site."""
    pages = (path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "docs").rglob("*.md")))
    return {**START, **{page: page.removeprefix("docs/") for page in pages}}


def title(page: Path) -> str:
    """The first heading, as text."""
    found = re.search(r"^# (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return re.sub(r"[`*$]|\\(?=\W)", "", found[1]) if found else page.stem


def navigation(reference: Nav) -> Nav:
    """The table of contents: what is there, in the order above."""
    docs = ROOT / "docs"
    course: Nav = [{title(path): f"course/{path.name}"}
                   for path in sorted((docs / "course").glob("[0-9][0-9]-*.md"))]  # fmt: skip
    if (docs / "course" / "index.md").exists():
        course.insert(0, {"Overview": "course/index.md"})
    found = [path.stem for path in sorted(docs.glob("*.md"))]
    special = {*GUIDES, "bibliography", "cli", "extending", "formats", "limits", "python",
               "releasing", "theory"}  # fmt: skip
    guides = [*(g for g in GUIDES if g in found), *(stem for stem in found if stem not in special)]
    python = [{title(docs / f"{s}.md"): f"{s}.md"} for s in ("python", "extending") if s in found]
    tutorials = [f"tutorials/{stem}.md" for stem in TUTORIALS]
    nav: Nav = [
        {"Start": "index.md"},
        {"Tutorials": [{title(docs / path): path} for path in tutorials]},
        {"Commands": [*({name: f"commands/{name}.md"} for name in order()),
                      {"All options": "cli.md"}, {"File formats": "formats.md"}]},
        {"Guides": [{title(docs / f"{stem}.md"): f"{stem}.md"} for stem in guides]},
        {"Theory": [{"Module by module": "theory.md"}, {"Bibliography": "bibliography.md"}]},
        {"Course": course},
        {"Python": [*python, *reference]},
        {"Project": [{"Changelog": "changelog.md"}, {"What it does not do": "limits.md"},
                     {"Benchmarks": "benchmarks.md"}, {"Examples": "examples.md"},
                     {"Security": "security.md"}, {"Contributing": "contributing.md"},
                     {"Releasing": "releasing.md"}]},
    ]  # fmt: skip
    return [part for part in nav if all(part.values())]


def order() -> list[str]:
    """The commands in the order of docs/cli.md."""
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    return re.findall(r"^## diffuse (\S+)$", text, re.MULTILINE)


# -- the reference ---------------------------------------------------------------------------------


CORE = "# diffuse_cli.core\n\nDiffusion as a library.\n\n| name | meaning | module |\n|---|---|---|"


def exported(file: Path) -> list[tuple[str, str]]:
    """Names that a package gives out, with their modules, from its block for type checkers."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    names = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    return [(alias.name, str(node.module)) for node in imports
            if str(node.module).startswith("diffuse_cli.")
            for alias in node.names
            if alias.asname == alias.name or alias.name in names]  # fmt: skip


def modules() -> list[Path]:
    """Modules of the core that are documented."""
    core = ROOT / "diffuse_cli" / "core"
    return [path for path in sorted(core.rglob("*.py")) if path != core / "__init__.py"]


def reference(out: Path) -> Nav:
    """Write pages of the docstrings, and return their part of the navigation."""
    out.mkdir(parents=True)
    nav: Nav = []
    names = exported(ROOT / "diffuse_cli" / "api" / "__init__.py")
    if names:
        lines = ["# diffuse_cli", "", "`import diffuse_cli as diffuse`", ""]
        short = "    options:\n      show_root_full_path: false\n"
        names.sort(key=lambda entry: (entry[0][0].isupper(), entry))  # functions first
        lines += [f"::: {module}.{name}\n{short}" for name, module in names]
        (out / "diffuse_cli.md").write_text("\n".join(lines), encoding="utf-8")
        nav.append({"diffuse_cli": "reference/diffuse_cli.md"})
    rows = []
    for name, module in sorted(exported(ROOT / "diffuse_cli" / "core" / "__init__.py")):
        stem = module.removeprefix("diffuse_cli.core.")
        rows.append(f"| `{name}` | {summary(name)} | [`{stem}`]({stem}.md) |")
    (out / "core.md").write_text("\n".join([CORE, *rows, ""]), encoding="utf-8")
    for name in map(dotted, modules()):
        lines = [f"::: {name}", "    options:", "      heading_level: 1", ""]
        (out.parent / reference_of(name)).write_text("\n".join(lines), encoding="utf-8")
    return [*nav, {"diffuse_cli.core": "reference/core.md"}]


def summary(name: str) -> str:
    """The first paragraph about a public name of the core, or the entries of a table."""
    from diffuse_cli import core

    value = getattr(core, name)
    if isinstance(value, core.Registry):
        return ", ".join(f"`{entry}`" for entry in value)
    text = (inspect.getdoc(value) or "") if callable(value) else ""
    parts = " ".join(text.split("\n\n")[0].split()).split("`")
    return "`".join(escaped(part) if k % 2 == 0 else part for k, part in enumerate(parts))


def defines(path: Path, name: str) -> bool:
    """Whether a module has a function, class or variable of this name, of its own."""
    nodes = ast.parse(path.read_text(encoding="utf-8")).body
    targets = [target for node in nodes for target in getattr(node, "targets", [node])]
    targets += [node.target for node in nodes if isinstance(node, ast.AnnAssign)]
    return name in {getattr(node, "name", getattr(node, "id", None)) for node in targets}


def reference_of(module: str) -> str:
    """The place of the page of a module."""
    return f"reference/{module.removeprefix('diffuse_cli.core.')}.md"


def dotted(path: Path) -> str:
    """The name of a module."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


# -- what becomes of a page ------------------------------------------------------------------------


class Page:
    """A page of the repository on its way to the site."""

    def __init__(self, name: str, known: dict[str, str]) -> None:
        self.name, self.known = name, known
        self.folder = PurePosixPath(known[name]).parent

    def target(self, link: str) -> str:
        """The path in the repository that a link means."""
        return os.path.normpath(PurePosixPath(self.name).parent / link).replace(os.sep, "/")

    def to(self, place: str) -> str:
        """A place on the site, as seen from this page."""
        return os.path.relpath(place, self.folder).replace(os.sep, "/")

    def link(self, found: re.Match[str]) -> str:
        """A link as it is on the site."""
        mark, words, link = found.groups()
        path, hash, anchor = link.partition("#")
        if not path:
            return found[0]
        target = self.target(path)
        if target.startswith("docs/images/") or target.endswith((".png", ".gif")):
            return f"{mark}[{words}]({self.to(target.removeprefix('docs/'))})"
        if target in self.known:
            return f"[{words}]({self.to(self.known[target])}{hash}{anchor})"
        if (ROOT / target) in modules():
            name = dotted(ROOT / target)
            stem, _, member = words.strip("`").partition(".")
            if name.endswith(f".{stem}") and defines(ROOT / target, member.partition(".")[0]):
                return f"[{words}][{name}.{member}]"
            return f"[{words}]({self.to(reference_of(name))})"
        return f"[{words}]({SOURCE}/blob/HEAD/{target})" if SOURCE else words

    def prose(self, text: str) -> str:
        """Text without fenced code."""
        text = DISPLAY.sub(lambda found: f"\n\n{equation(found[1])}\n\n", text)
        text = INLINE.sub(lambda found: found[1] or f"<span>{mathml(found[2], False)}</span>", text)
        text = LINK.sub(self.link, text)
        image = lambda found: f'<img src="{self.to(self.target(found[1]).removeprefix("docs/"))}"'  # noqa: E731
        return IMAGE.sub(image, text)

    def text(self) -> str:
        """The page."""
        text = (ROOT / self.name).read_text(encoding="utf-8")
        text = OPTIONS.sub(options, text)
        parts = FENCE.split(text)
        kept = [part for k, part in enumerate(parts) if k % 3 != 2]
        kept[::2] = [self.prose(part) for part in kept[::2]]
        return "".join(kept)


Rows = dict[str, list[tuple[str, str]]]
"""Flags and their help, by the title of their group."""


def rows_of(block: str) -> Rows:
    """Return the arguments and options of a help of docs/cli.md."""
    groups: Rows = {}
    for part in block.strip().split("\n\n"):
        title, *lines = part.splitlines()
        rows: list[tuple[str, str]] = []
        for line in lines:
            left, right = line[2:30].strip(), line[32:].strip()
            if rows and (not left or rows[-1][0].endswith("/")):
                flags, text = rows.pop()
                left, right = f"{flags} {left}".strip(), f"{text} {right}".strip()
            rows.append((left, right))
        groups[title.rstrip(":")] = rows
    return groups


def options(found: re.Match[str]) -> str:
    """Return the help of a command as lists, with the options that it shares with others."""
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    sections = re.split(r"^## ", page, flags=re.MULTILINE)
    shared, own = (next(part for part in sections if part.startswith(f"{title}\n"))
                   for title in ("Shared options", f"diffuse {found[1]}"))  # fmt: skip
    block, names = own.split("\n```\n")[1:]
    usage = block.partition("\n\n")[0]
    groups = rows_of(block[block.index("\nArguments:\n") : block.index("\n\nExamples:\n")])
    in_every, in_several = (rows_of(part) for part in shared.split("\n```\n")[1::2])
    named = {*re.findall(r"`(-[\w-]+)`", names)}
    for every, shared_groups in ((False, in_several), (True, in_every)):
        for title, rows in shared_groups.items():
            kept = [row for row in rows if every or named & {*re.split(r"[\s,/]+", row[0])}]
            if kept:
                groups.setdefault(title, []).extend(kept)
    parts = [f"## Options\n\n`{usage.removeprefix('Usage: ')}`"]
    for title, rows in groups.items():
        parts.append(f"### {title}")
        parts += [f"`{left}`\n:   {escaped(right)}" for left, right in rows]
    return "\n\n".join(parts)


def escaped(text: str) -> str:
    """Text that Markdown leaves alone."""
    return re.sub(r"[|*_`\\$\[\]<>~]", lambda found: f"&#{ord(found[0])};", text)


def equation(latex: str) -> str:
    """A formula on a line of its own, with its number if it has one."""
    latex, *numbers = re.split(r"\\tag\{([^}]*)\}", latex)
    number = "".join(f"<span>({part})</span>" for part in numbers if part.strip())
    return f'<div class="equation"><div>{mathml(latex, True)}</div>{number}</div>'


def mathml(latex: str, display: bool) -> str:
    """A formula as MathML, in a form that Markdown leaves alone."""
    from math_core import LatexToMathML

    made = LatexToMathML().convert_with_local_state(" ".join(latex.split()), displaystyle=display)
    return re.sub(r"[|*_`\\$\[\]]", lambda found: f"&#{ord(found[0])};", made)


# -- the whole -------------------------------------------------------------------------------------


def stage() -> None:
    """Write the pages and the configuration."""
    shutil.rmtree(OUT, ignore_errors=True)
    docs = OUT / "docs"
    shutil.copytree(ROOT / "docs" / "images", docs / "images")
    nav = navigation(reference(docs / "reference"))
    known = places()
    for name, place in known.items():
        path = docs / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(Page(name, known).text(), encoding="utf-8")
    shutil.copy(ROOT / "docs" / "site.css", docs)
    if DEMO.exists():
        shutil.copytree(DEMO, docs / "demo")
        page = docs / "share.md"
        link = "[Try the page of a model](demo/index.html)."
        page.write_text(page.read_text(encoding="utf-8").replace("<!-- demo -->", link))
    config = tomllib.loads((ROOT / "docs" / "site.toml").read_text(encoding="utf-8"))
    config |= {"nav": nav, "site_description": PROJECT["description"]}
    config |= {"repo_url": SOURCE} if SOURCE else {}
    # JSON is YAML, the one format that Zensical and MkDocs both read.
    (OUT / "mkdocs.yml").write_text(json.dumps(config, indent=1), encoding="utf-8")


def main() -> int:
    """Build or show the site."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--strict", action="store_true", help="fail on any warning")
    parser.add_argument("--serve", action="store_true", help="show the site at localhost:8000")
    parser.add_argument("--requirements", action="store_true", help="print what must be installed")
    typed = parser.parse_args()
    if typed.requirements:
        print(*PROJECT["optional-dependencies"]["docs"], sep="\n")
        return 0
    stage()
    program = [sys.executable, "-m", "zensical", "serve" if typed.serve else "build"]
    flags = ["--strict"] if typed.strict else []
    return subprocess.run([*program, *flags, "-f", "mkdocs.yml"], cwd=OUT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
