"""Phrases that read as if translated, in docs, docstrings and messages: `python tests/prose.py`.

Each rule is a pattern and the words to use instead. `--check` fails if there are more findings of a
kind than in `prose.json`, so that they only become fewer. `--lower` writes lower numbers there.
"""

from __future__ import annotations

import ast
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
BASELINE = Path(__file__).with_suffix(".json")

RULES = {
    r"\b(?:is|are|was|were|be|been) told\b|\buntold\b": "conditioned on",
    r"\bwhat (?:\w+ ){0,3}(?:is|are) given\b": "the condition, the input",
    r"\b(?:of|by|from|with|in|and|than|for|as|on|at|or) what (?!to\b|else\b)\w+": "a noun",
    r"\bwhat becomes? of\b": "how X is handled",
    r"\b(?:is|are|than|as|with|by|to|from|has|or|and|for|in|on) (?:that|those) of\b": "the noun",
    r"\b(?:real|other|blurred|generated|held-out|good|known|longer|shorter) ones\b": "the noun",
    r"(?<![Tt]here )\b(?:is|are|was|were) no (?!longer|more\b|such|need|way|reason)\w+": "is not a",
    r"\bdr(?:aws?|ew|awing|awn) (?:\w+ ){0,2}(?:images?|samples?|pictures?|sounds?)\b": "generate",
    r"\b(?:images?|samples?|pictures?|sounds?) (?:that )?(?:are |is |were )?drawn\b": "generated",
    r"\bgo(?:es|ing)? on\b|\bwent on\b": "resume, continue",
    r"\b(?:but for|anything but|nothing but|none but|but those)\b": "except",
    r"\b(?:so|as) many\b(?! as\b)": "the number",
    r"\b(?:of (?:its|their|our) own|\w+ of yours)\b": "its own X, your X",
    r"\bto the (?:last|same) (?:byte|bit)s?\b": "byte for byte",
    r"\bprocessors?\b": "CPU",
    r"(?<!standard )\bdeviations?\b": "standard deviation",
    r"\btrainings\b|\ba training(?! (?:step|run|set|image|sample|loop))\b": "a run",
    r"\bsays? (?:what|where|how|which|whether|why)\b|\b(?:is|are|was|were) said\b": "lists",
    r"\bbeside\b": "next to, compared with",
    r"(?:^|(?<=[.:;] ))(?:Nothing|Nobody|No one)\b": "say what happens",
    r"(?:^|(?<=[.;] ))Of (?:arrays?|sounds?|images?|several|a|an|the)\b": "for, with",
    r"\b(?:images|steps|seconds?|evaluations?|bytes?) an? (?:second|image|step|sample)\b": "per",
    r";": "two sentences",
}
OPENING = re.compile(r"(?:What|That|Those|Its|How|Where|Whose|From|By|Of|As|In|To)\b")
UNREAD = re.compile(r"``.+?``|`[^`]*`|\$[^$]*\$|(?<=\])\([^)\s]*\)|https?://\S+|<[^>]*>|&\w+;")
GENERATED = {"cli.md", "bibliography.md", "CHANGELOG.md"}


def paragraphs(text: str) -> Iterator[str]:
    """Yield the paragraphs of a page or a docstring, without code and formulas."""
    text = re.sub(r"^ *(```|\$\$).*?^ *\1.*?$", "", text, flags=re.DOTALL | re.MULTILINE)
    for block in re.split(r"\n\s*\n|\n(?=\s*(?:[-*#|>]|\d+\.))", re.sub(r"<!--.*?-->", "", text)):
        yield UNREAD.sub("", " ".join(block.split())).lstrip("-*#|> ")


def texts(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the kind and the words of each paragraph: of a page, or of the strings of a module."""
    source = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        yield from (("docs", words) for words in paragraphs(source))
        return
    nodes = [*ast.walk(ast.parse(source))]
    standing = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    for node in nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            kind = "docstring" if id(node) in standing else "message"
            if kind == "docstring" or len(re.findall(r"[a-z]{2,}", node.value)) >= 4:
                yield from ((kind, words) for words in paragraphs(node.value))


def findings(path: Path) -> Iterator[tuple[str, str, str]]:
    """Yield the kind, the words around and the advice of each suspicious phrase of a file."""
    for kind, words in texts(path):
        for pattern, advice in RULES.items():
            for found in re.finditer(pattern, words):
                yield kind, words[max(0, found.start() - 30) : found.end() + 30], advice
        if kind == "docstring" and OPENING.match(words):
            yield kind, words[:60], "begin with a verb or a noun"


def files() -> Iterator[Path]:
    """Yield the pages and modules that are read."""
    for pattern in ("*.md", "docs/**/*.md", "diffuse_cli/**/*.py"):
        yield from (path for path in sorted(ROOT.glob(pattern)) if path.name not in GENERATED)


def counts() -> dict[str, int]:
    """Return the number of findings of each kind."""
    return dict(Counter(kind for path in files() for kind, *_ in findings(path)))


def main() -> None:
    """List all findings, compare their numbers with the baseline, or lower it."""
    if "--check" in sys.argv:
        most = json.loads(BASELINE.read_text())
        if higher := {kind: n for kind, n in counts().items() if n > most[kind]}:
            sys.exit(f"more suspicious phrases than in {BASELINE.name}: {higher}")
        return
    if "--lower" in sys.argv:
        old, now = json.loads(BASELINE.read_text()), counts()
        BASELINE.write_text(json.dumps({k: min(n, now.get(k, 0)) for k, n in old.items()}) + "\n")
        return
    for path in files():
        for kind, words, advice in findings(path):
            print(f"{path.relative_to(ROOT)}: {kind}: ...{words}... -> {advice}")


if __name__ == "__main__":
    main()
