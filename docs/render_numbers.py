"""Render what metrics say of their numbers into docs/evaluation.md; a test compares the two.

python docs/render_numbers.py
"""

from __future__ import annotations

from pathlib import Path

from diffuse_cli.metrics import QUESTIONS, Measurement, MetricNumber, numbers

PAGE = Path(__file__).with_name("evaluation.md")
START, END = "<!-- numbers: python docs/render_numbers.py -->\n", "<!-- end of numbers -->\n"


def row(number: MetricNumber) -> str:
    """A line of the table."""
    ideal = number.ideal
    reference = (
        f"`{ideal}`" if isinstance(ideal, str) else "" if ideal is None else Measurement(ideal)
    )
    better, tolerance = number.direction_text, number.tolerance
    close = (
        f"`{tolerance}`" if isinstance(tolerance, str) else "" if tolerance is None else tolerance
    )
    cells = f"`{number.key}`", number.label, number.says, better, reference, close
    return f"| {' | '.join(map(str, cells))} |"


def table() -> str:
    """All numbers by the question that they answer."""
    lines = []
    for key, question in QUESTIONS.items():
        rows = [row(number) for number in numbers() if number.question == key]
        if rows:
            head = (
                "| key | metric | description | better | reference | close within |\n"
                + "|---" * 6
                + "|"
            )
            lines += [f"**{question.title}** {question.says}".strip(), "", head, *rows, ""]
    return "\n".join(lines)


def render(page: str) -> str:
    """The page with the tables as they are now."""
    before, rest = page.split(START)
    _, after = rest.split(END)
    return f"{before}{START}\n{table()}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(render(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
