"""The style sheet: for paper and screens of any width, light and dark."""

from __future__ import annotations

from importlib import resources

_COLORS = {
    "paper": ("#ffffff", "#14171c"),
    "panel": ("#f5f6f8", "#1e2229"),
    "ink": ("#1c2128", "#e4e8ee"),
    "faint": ("#57606a", "#a3adb9"),
    "rule": ("#d4d9df", "#3a414b"),
    "first": ("#0a5bb5", "#69b1ff"),
    "second": ("#b34a00", "#ff9d57"),
    "third": ("#1a7240", "#5fd08d"),
    "fourth": ("#8a3ea8", "#d69af0"),
    "fifth": ("#0b6a73", "#4fd0da"),
    "sixth": ("#b3124f", "#ff8fb3"),
    "seventh": ("#6b5d00", "#e0c84a"),
}

LIGHT, DARK = ({name: both[i] for name, both in _COLORS.items()} for i in range(2))
"""Every text colour has a contrast of 4.5 or more on paper and panel."""


def css() -> str:
    """The style sheet; print is light."""
    rules = resources.files("diffuse_cli.report") / "templates" / "style.css"
    dark = f"@media screen and (prefers-color-scheme: dark) {{ {_variables(DARK, 'dark')} }}"
    return f"{_variables(LIGHT, 'light')}\n{dark}\n{rules.read_text('utf-8')}"


def _variables(colors: dict[str, str], scheme: str) -> str:
    values = "; ".join(f"--{name}: {value}" for name, value in colors.items())
    return f":root {{ color-scheme: {scheme}; {values} }}"
