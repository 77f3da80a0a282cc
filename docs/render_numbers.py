"""Render the descriptions of metrics into docs/evaluation.md, which a test compares with them.

python docs/render_numbers.py
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from diffuse_cli.metrics import QUESTIONS, MetricNumber, numbers

PAGE = Path(__file__).with_name("evaluation.md")
START, END = "<!-- numbers: python docs/render_numbers.py -->\n", "<!-- end of numbers -->\n"


def quote(value: float | str) -> str:
    """Return the key of another value as code, or a number."""
    return f"`{value}`" if isinstance(value, str) else f"{value:g}"


def best_value(number: MetricNumber) -> str:
    """Return the better direction, the reference and the tolerance in words."""
    parts = [number.direction_text] if number.direction_text else []
    if number.ideal is not None:
        words = {"reference": "best is", "below": "best is at most"}.get(number.direction)
        if words:
            parts = []
        parts.append(f"{words or 'reference'} {quote(number.ideal)}")
    if number.tolerance is not None:
        parts.append(f"close within {quote(number.tolerance)}")
    return ", ".join(parts)


def rows_of(question: str) -> Iterator[str]:
    """Yield the lines of the table of a question. A part is named after its metric."""
    whole = ""
    for number in numbers():
        if number.question == question:
            label = number.label
            if number.part and label.startswith(("of ", "at ")):
                label = f"{whole} {label}"
            if not number.part:
                whole = label
            yield f"| `{number.key}` | **{label}.** {number.says} | {best_value(number)} |"


def table() -> str:
    """Return all numbers by the question that they answer."""
    lines = []
    for key, question in QUESTIONS.items():
        rows = [*rows_of(key)]
        if rows:
            head = "| key | metric | best value |\n|---|---|---|"
            lines += [f"**{question.title}** {question.says}".strip(), "", head, *rows, ""]
    return "\n".join(lines)


def render(page: str) -> str:
    """Return the page with the tables as they are now."""
    before, rest = page.split(START)
    _, after = rest.split(END)
    return f"{before}{START}\n{table()}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(render(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
