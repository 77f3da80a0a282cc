"""The plan of the house, and a count of what stands in it: `python tests/house.py`.

`--check` fails if a file breaks the plan, or if a figure is above `house.json`, so that they only
fall. `--record` writes the figures of today there.
"""

from __future__ import annotations

import ast
import io
import json
import os
import subprocess
import sys
import tokenize
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "diffuse_cli"
BASELINE = Path(__file__).with_suffix(".json")
VAGUE_NAMES = frozenset(Path(__file__).with_name("vague_names.txt").read_text().split())
"""Names of variables that do not say what they hold."""

FLOORS: tuple[tuple[str, ...], ...] = (
    ("core",),
    ("system",),
    ("media", "config"),
    ("data", "models", "metrics"),
    ("sampling", "pages"),
    ("training", "evaluation"),
    ("commands", "api"),
    ("app",),
    ("__main__",),
)
"""From the ground up. A package imports from itself and from lower floors; packages of one floor do
not import each other."""


def modules() -> dict[str, Path]:
    """Return the files by dotted name: `core.process`, `core`, and "" for the root."""
    paths = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        paths[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return paths


def tree_of(path: Path, *, run_time: bool = False) -> ast.Module:
    """Return the syntax tree of a file, without its `if TYPE_CHECKING:` blocks if at run time."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return at_run_time(tree) if run_time else tree


def at_run_time(tree: ast.Module) -> ast.Module:
    """Return the module without its `if TYPE_CHECKING:` blocks."""

    class Without(ast.NodeTransformer):
        def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
            self.generic_visit(node)
            return node.orelse if "TYPE_CHECKING" in ast.dump(node.test) else node

    return Without().visit(tree)


def imported(tree: ast.AST, module: str) -> Iterator[str]:
    """Yield full names of what a module imports, also in functions and under TYPE_CHECKING."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module.split(".")[: -node.level]
                base = ".".join([*package, *filter(None, [base])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def packages_of(names: Iterable[str]) -> set[str]:
    """Return the packages among imported names: `diffuse_cli.core.process` is core."""
    packages = {name for floor in FLOORS for name in floor}
    parts = (name.split(".") for name in names)
    return {part[1] for part in parts if part[0] == "diffuse_cli" and len(part) > 1} & packages


def arrows(*, run_time: bool = False) -> dict[str, set[str]]:
    """Return the files that each file imports, by dotted name."""
    files = modules()
    graph = {}
    for name, path in files.items():
        # Importing `a.b` names `a` too, whose file runs first; only the file that is meant counts.
        imports = set(imported(tree_of(path, run_time=run_time), f"diffuse_cli.{name}"))
        names = {i.removeprefix("diffuse_cli.") for i in imports if i.startswith("diffuse_")}
        longest = {full for full in names if full in files}
        inner = {full.rpartition(".")[0] for full in longest}
        named = {full.rpartition(".")[0] for full in names if full not in files}
        graph[name] = {full for full in longest if full not in inner - named} - {name}
    return graph


def circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Return the groups of files that import each other (Tarjan 1972)."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    groups: list[list[str]] = []

    def visit(name: str) -> None:
        order[name] = low[name] = len(order)
        stack.append(name)
        for neighbor in sorted(graph[name]):
            if neighbor not in order:
                visit(neighbor)
                low[name] = min(low[name], low[neighbor])
            elif neighbor in stack:
                low[name] = min(low[name], order[neighbor])
        if low[name] == order[name]:
            k = stack.index(name)
            group, stack[k:] = stack[k:], []
            if len(group) > 1:
                groups.append(sorted(group))

    for name in graph:
        if name not in order:
            visit(name)
    return groups


def lines_of_code(path: Path) -> int:
    """Count the lines with code: neither blank, nor a comment, nor part of a docstring."""
    text = path.read_text(encoding="utf-8")
    docs: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.Expr(ast.Constant(str())):
                docs |= set(range(node.lineno, (node.end_lineno or 0) + 1))
    skipped = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT,
               tokenize.ENCODING, tokenize.ENDMARKER)  # fmt: skip
    rows: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in skipped:
            rows |= set(range(token.start[0], token.end[0] + 1))
    return len(rows - docs)


def own_imports(tree: ast.Module) -> list[ast.ImportFrom]:
    """Return the statements that import from the package, also under TYPE_CHECKING."""
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    return [node for node in nodes if node.level or (node.module or "").startswith("diffuse_cli")]


def variables(tree: ast.Module) -> list[str]:
    """Return the names of variables, at each assignment, and of arguments."""
    nodes = [*ast.walk(tree)]
    names = [n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]
    return names + [node.arg for node in nodes if isinstance(node, ast.arg)]


def figures() -> tuple[dict[str, float], dict[str, str]]:
    """Return the figures that must not rise, and the files with the largest."""
    paths = modules()
    trees = {name: tree_of(path) for name, path in paths.items()}
    code = sum(map(lines_of_code, paths.values()))
    lengths = {name: len(path.read_text().splitlines()) for name, path in paths.items()}
    imports = {name: own_imports(tree) for name, tree in trees.items()}
    counts = {name: len({(n.level, n.module) for n in imports[name]}) for name in imports}
    names = [name for tree in trees.values() for name in variables(tree)]
    num_vague = sum(name in VAGUE_NAMES for name in names)
    num_imported = sum(len(node.names) for nodes in imports.values() for node in nodes)
    return {
        "lines of code": code,
        "files": len(paths),
        "longest file": max(lengths.values()),
        "own names imported per 1,000 lines of code": round(1000 * num_imported / code),
        "own modules imported per file": round(sum(counts.values()) / len(counts), 1),
        "own modules imported by one file": max(counts.values()),
        "vague variables, %": round(100 * num_vague / len(names), 1),
    }, {
        "longest file": max(lengths, key=lengths.__getitem__),
        "own modules imported by one file": max(counts, key=counts.__getitem__),
    }


def classes() -> dict[str, list[str]]:
    """Return the modules that define a class of each name."""
    places: dict[str, list[str]] = defaultdict(list)
    for name, path in modules().items():
        for node in tree_of(path).body:
            if isinstance(node, ast.ClassDef):
                places[node.name].append(name)
    return places


def stems() -> dict[str, list[str]]:
    """Return the modules of each stem."""
    places: dict[str, list[str]] = defaultdict(list)
    for name in modules():
        places[name.rpartition(".")[2]].append(name)
    return places


def private_names() -> set[str]:
    """Return names with one underscore that the package defines, also of attributes and files."""
    names = {path.stem for path in modules().values()}
    for path in modules().values():
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names.add(node.name)
            elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
                names.add(node.id if isinstance(node, ast.Name) else node.attr)
    return {name for name in names if name.startswith("_") and not name.endswith("_")}


def reaches_inside() -> dict[str, list[str]]:
    """Return what tests take from inside the package, by file: names of things as dotted strings,
    to replace them, and private names."""
    private, files, reaches = private_names(), modules(), defaultdict(list)

    def reach(node: ast.AST) -> Iterator[str]:
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            place = node.value.removeprefix("diffuse_cli.")
            owner = place.rpartition(".")[0]
            owners = {owner, owner.rpartition(".")[0]} & files.keys() - {""}
            if owners and place != node.value and place not in files:
                yield node.value
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("diffuse_cli"):
            yield from (alias.name for alias in node.names if alias.name in private)
        elif isinstance(node, ast.Attribute) and node.attr in private:
            if ast.unparse(node.value) not in ("self", "cls"):
                yield ast.unparse(node)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("setattr"):
            if any(isinstance(part, ast.JoinedStr) for part in node.args[:1]):
                yield ast.unparse(node.args[0])
            yield from (
                part.value for part in node.args[1:2]
                if isinstance(part, ast.Constant) and part.value in private
            )  # fmt: skip

    tests = Path(__file__).parent
    for path in sorted(tests.rglob("*.py")):
        for node in ast.walk(tree_of(path)):
            reaches[str(path.relative_to(tests))].extend(reach(node))
    return {name: names for name, names in reaches.items() if names}


ALLOWED_IN_CORE = {"torch", "numpy", "diffuse_cli"} | set(sys.stdlib_module_names)
BANNED_IN_CORE = {"os", "pathlib"}
"""No file is read or written there, and nothing is printed."""

OF_NO_PACKAGE = {"fuzz", "golden", "reliability", "test_benchmarks", "test_code_blocks",
                 "test_course", "test_docs", "test_entry_points", "test_layering",
                 "test_packaging", "test_refusals", "test_site", "test_tutorials"}  # fmt: skip
"""Folders and files of tests that concern the whole program."""

README_WORDS, SCREEN_LINES, HELP_WORDS = 900, 30, 15
"""The most words of README, lines of `-h` on a small terminal, and words of a help text."""


def misplaced_imports() -> Iterator[str]:
    """Yield imports from a higher floor or another package of the same floor."""
    for name, path in modules().items():
        found = packages_of(imported(tree_of(path), f"diffuse_cli.{name}"))
        package = name.split(".")[0]
        floor = next((k for k, names in enumerate(FLOORS) if package in names), -1)
        allowed = {package, *(lower for names in FLOORS[:floor] for lower in names)}
        if not name:  # the root, which every module imports
            found = packages_of(imported(tree_of(path, run_time=True), "diffuse_cli"))
            allowed = {"system"}
        elif floor < 0:
            yield f"{name} has no floor in FLOORS"
        yield from (f"{name} imports {other}" for other in sorted(found - allowed))


def impure_core() -> Iterator[str]:
    """Yield imports and calls of the core that only the rest of the package may have."""
    for name, path in modules().items():
        if name.split(".")[0] != "core":
            continue
        tree = tree_of(path)
        tops = {full.split(".")[0] for full in imported(tree, f"diffuse_cli.{name}")}
        calls = {node.func.id for node in ast.walk(tree)
                 if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}  # fmt: skip
        odd = (tops - ALLOWED_IN_CORE) | (tops & BANNED_IN_CORE) | (calls & {"print", "open"})
        yield from (f"{name} uses {other}" for other in sorted(odd))


def misplaced_tests() -> Iterator[str]:
    """Yield tests that are not in the folder of a package."""
    tests = Path(__file__).parent
    places = {name for floor in FLOORS for name in floor} | OF_NO_PACKAGE
    for path in tests.rglob("test_*.py"):
        part = path.relative_to(tests).parts[0].removesuffix(".py")
        if part not in places:
            yield f"{path.name} is in no folder of a package"


def long_texts() -> Iterator[str]:
    """Yield README and help texts that are too long."""
    from diffuse_cli.commands import COMMANDS
    from diffuse_cli.config.options import option_fields

    words = len((PACKAGE.parent / "README.md").read_text(encoding="utf-8").split())
    if words > README_WORDS:
        yield f"README.md has {words} words"
    for command, module in COMMANDS.items():
        texts = {field.name: spec.help for field, spec in option_fields(module.CONFIG)}
        for name, text in {**texts, "summary": COMMANDS.read_summary(command)}.items():
            if len(text.split()) > HELP_WORDS or ". " in text or not text.endswith("."):
                yield f"{command}, {name}: {text}"
        ran = subprocess.run(
            [sys.executable, "-m", "diffuse_cli", command, "-h"],
            env={**os.environ, "COLUMNS": "80"}, capture_output=True, text=True, check=True,
        )  # fmt: skip
        if len(ran.stdout.splitlines()) > SCREEN_LINES:
            yield f"diffuse {command} -h is longer than a small terminal"


def risen_figures() -> Iterator[str]:
    """Yield the figures above those of `house.json`."""
    limits, (now, places) = json.loads(BASELINE.read_text()), figures()
    yield from (f"{name}: {now[name]} instead of {limits[name]} {places.get(name, '')}"
                for name in now if now[name] > limits[name])  # fmt: skip


def check() -> None:
    """Exit with what breaks the plan, if anything does."""
    faults = [*misplaced_imports(), *impure_core(), *misplaced_tests(), *long_texts()]
    faults += [f"files import each other: {group}" for group in circles(arrows(run_time=True))]
    if faults := [*faults, *risen_figures()]:
        sys.exit("\n".join(faults))


def main() -> None:
    """Print the counts, check them, or write the figures that must not rise."""
    if "--check" in sys.argv:
        check()
        return
    limited, places = figures()
    if "--record" in sys.argv:
        BASELINE.write_text(json.dumps(limited, indent=2) + "\n")
        return
    paths, graph = modules(), arrows()
    between = {
        (package, other_package)
        for name, imports in graph.items()
        for package, other_package in ((name.split(".")[0], i.split(".")[0]) for i in imports)
        if package and other_package and package != other_package
    }
    lengths = {name: len(path.read_text().splitlines()) for name, path in paths.items()}
    rows: list[tuple[str, object]] = [
        ("packages", sum((path / "__init__.py").exists() for path in PACKAGE.iterdir())),
        ("modules beside them", sorted(p.stem for p in PACKAGE.glob("*.py"))),
        ("arrows between packages", len(between)),
        ("circles of files, at run time", circles(arrows(run_time=True))),
        ("circles of files, with types", circles(graph)),
        *((label, f"{n:,} {places.get(label, '')}".strip()) for label, n in limited.items()),
        ("files above 400 lines", [n for n, c in lengths.items() if c > 400]),
        ("lines", sum(lengths.values())),
        ("class names used again", {n: w for n, w in classes().items() if len(w) > 1}),
        ("file stems used again", {n: w for n, w in stems().items() if len(w) > 1}),
        ("arrows by package", dict(Counter(package for package, _ in between))),
        ("what tests take from inside", sum(map(len, reaches_inside().values()))),
    ]
    for label, value in rows:
        print(f"{label}: {value}")


if __name__ == "__main__":
    main()
