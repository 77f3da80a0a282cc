"""The style sheet: for paper and screens of any width, light and dark."""

from __future__ import annotations

LIGHT = {
    "paper": "#ffffff",
    "panel": "#f5f6f8",
    "ink": "#1c2128",
    "faint": "#57606a",
    "rule": "#d4d9df",
    "first": "#0a5bb5",
    "second": "#b34a00",
    "third": "#1a7240",
    "fourth": "#8a3ea8",
    "fifth": "#0b6a73",
    "sixth": "#b3124f",
    "seventh": "#6b5d00",
}
"""Every text colour has a contrast of 4.5 or more on paper and panel."""

DARK = {
    "paper": "#14171c",
    "panel": "#1e2229",
    "ink": "#e4e8ee",
    "faint": "#a3adb9",
    "rule": "#3a414b",
    "first": "#69b1ff",
    "second": "#ff9d57",
    "third": "#5fd08d",
    "fourth": "#d69af0",
    "fifth": "#4fd0da",
    "sixth": "#ff8fb3",
    "seventh": "#e0c84a",
}

_RULES = """
* { box-sizing: border-box }
html { -webkit-text-size-adjust: 100% }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 50rem; background: var(--paper);
  color: var(--ink); font: 1rem/1.55 system-ui, sans-serif }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .4rem; overflow-wrap: anywhere }
h2 { font-size: 1.25rem; margin: 2.8rem 0 .6rem; padding-top: .8rem;
  border-top: 1px solid var(--rule) }
h3 { font-size: 1rem; margin: 1.6rem 0 .4rem }
p, ul { margin: .6rem 0; max-width: 44rem }
ul { padding-left: 1.2rem }
li { margin: .35rem 0 }
a { color: var(--first) }
small, .faint, figcaption { color: var(--faint); font-size: .875rem }
code, pre { font-family: ui-monospace, monospace; font-size: .85rem; overflow-wrap: anywhere }
pre { background: var(--panel); border: 1px solid var(--rule); border-radius: 4px;
  padding: .7rem .8rem; white-space: pre-wrap; margin: .6rem 0 }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1rem; margin: 1rem 0; font-size: .9rem }
.verdict { background: var(--panel); border-left: 4px solid var(--first); padding: .3rem 1rem;
  margin: 1rem 0 }
.verdict ul { max-width: none }
.warns strong { color: var(--second) }
tbody th.part { padding-left: 1rem }
.verdict h2 { border: 0; margin: .5rem 0 .2rem; padding: 0; font-size: 1rem }
.wide { overflow-x: auto; margin: .8rem 0 }
table { border-collapse: collapse; width: 100%; font-size: .92rem }
th, td { text-align: left; vertical-align: top; padding: .4rem .9rem .4rem 0;
  border-bottom: 1px solid var(--rule) }
thead th { color: var(--faint); font-size: .82rem; white-space: nowrap }
tbody th { font-weight: 600 }
tbody th small { display: block; font-weight: 400; max-width: 30rem }
td { font-variant-numeric: tabular-nums }
.metrics thead th { width: 21% }
.metrics thead th:first-child { width: 58% }
.metrics td, .counts td, .counts thead th + th { white-space: nowrap }
.settings td { overflow-wrap: anywhere }
.settings th { white-space: nowrap; font-weight: 400; color: var(--faint) }
figure { margin: 1.1rem 0; break-inside: avoid }
figure svg { display: block; width: 100%; max-width: 42rem; height: auto }
svg * { stroke-linejoin: round; stroke-linecap: butt }
img { image-rendering: pixelated; display: block; max-width: 100%; background: #fff;
  outline: 1px solid var(--rule); -webkit-print-color-adjust: exact; print-color-adjust: exact }
.images { display: flex; flex-wrap: wrap; gap: 5px; margin: .6rem 0 }
.sides { display: grid; grid-template-columns: 1fr 1fr; gap: 1.6rem }
.classes { table-layout: fixed }
.classes thead th:first-child { width: 16% }
.classes th { min-width: 5rem; max-width: 9rem; overflow-wrap: anywhere }
.classes td .images { margin: 0; gap: 3px }
.twins { display: grid; grid-template-columns: repeat(auto-fill, minmax(10.5rem, 1fr)); gap: 1rem }
.twins figure { margin: 0 }
.twins .images { margin: 0 0 .2rem }
details { margin: 1rem 0 }
summary { cursor: pointer; color: var(--first) }
@media (max-width: 40rem) {
  body { padding: 1rem .8rem 3rem }
  h1 { font-size: 1.4rem }
  .sides { grid-template-columns: 1fr; gap: .4rem }
  .metrics td { white-space: normal }
  .metrics th, .metrics td { padding-right: .6rem }
  .classes, .classes tbody, .classes tr, .classes th, .classes td { display: block; border: 0;
    max-width: none }
  .classes thead { display: none }
  .classes td::before { content: attr(data-side); color: var(--faint); font-size: .82rem }
}
@media print {
  body { max-width: none; padding: 0; font-size: 10pt }
  nav, details { display: none }
  h2, h3 { break-after: avoid }
  tr, img, .verdict, .twins figure { break-inside: avoid }
  .wide { overflow: visible }
  a { color: inherit; text-decoration: none }
}
"""


def css() -> str:
    """The style sheet; print is light."""
    dark = f"@media screen and (prefers-color-scheme: dark) {{ {_variables(DARK, 'dark')} }}"
    return f"{_variables(LIGHT, 'light')}\n{dark}{_RULES}"


def _variables(colors: dict[str, str], scheme: str) -> str:
    values = "; ".join(f"--{name}: {value}" for name, value in colors.items())
    return f":root {{ color-scheme: {scheme}; {values} }}"
