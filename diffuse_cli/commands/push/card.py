"""The card of a model: what a stranger wants to know of it, of facts alone."""

from __future__ import annotations

import html
import json
import math
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from diffuse_cli.commands.info.words import model_rows
from diffuse_cli.core.conditions import PAIRS
from diffuse_cli.data.metadata_columns import example
from diffuse_cli.media import MEDIA, judged, suffix
from diffuse_cli.metrics import measured, shown
from diffuse_cli.models.model_report import kind_of
from diffuse_cli.system import files

if TYPE_CHECKING:
    from diffuse_cli.models.model_report import ModelReport

LEFT_OUT = ("model", "file", "title", "data")
"""Rows of `info` that are of the file here, or have a section of their own."""


def card(
    found: ModelReport,
    repo: str,
    license: str,
    *,
    numbers: Mapping[str, Any] | None = None,
    samples: str = "",
    drawn: str = "",
) -> str:
    """The card as Markdown, with the hub's metadata before it.

    Args:
        repo: its ORG/NAME.
        numbers: what `eval --json` printed of the model.
        samples: the name of the picture beside the card, and `drawn` how it was made.
    """
    name = f"hf://{repo}"
    parts = [
        _head(found, license),
        f"# {repo.rpartition('/')[2]}",
        _said(found),
        f"![Samples of the model]({samples})" if samples else "",
        f"Not chosen: the first ones of {_text(drawn)}." if drawn else "",
        _use(name, found),
        "## The model\n\n" + _table(("", ""), _rows(found)),
        _data(found.data),
        _measured(numbers),
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def _head(found: ModelReport, license: str) -> str:
    """The hub's metadata: YAML, of which JSON is a part."""
    space, conditions = found.blueprint.space, found.blueprint.conditions
    drawn = space.medium == "image" and judged(space) and not conditions.given
    values = {
        "license": license,
        "library_name": "diffuse-cli",
        "tags": ["diffuse", "diffusion", "ddpm", space.medium],
        **({"pipeline_tag": "unconditional-image-generation"} if drawn else {}),
    }
    lines = [f"{key}: {json.dumps(value)}" for key, value in values.items()]
    return "\n".join(["---", *lines, "---"])


def _said(found: ModelReport) -> str:
    space, conditions = found.blueprint.space, found.blueprint.conditions
    told = [f"one of {len(conditions.classes):,} classes"] * bool(conditions.classes)
    told += [f"what it is given ({conditions.given.what})"] if conditions.given else []
    told += ["columns of a table"] if conditions.table else []
    what = f", told {' and '.join(told)}" if told else ""
    return (
        f"A diffusion model of {MEDIA[space.medium].MANY} ({kind_of(space)}){_text(what)}: "
        f"{found.parameters:,} parameters, trained for {found.step:,} steps with "
        "`diffuse`."
    )


def _use(name: str, found: ModelReport) -> str:
    """Return lines that sample from it, with an input of the reader's and a value of each column.

    The command and the program have the same options.
    """
    conditions, flags, keywords = found.blueprint.conditions, list[str](), ""
    if conditions.table:
        values = dict(map(example, conditions.table.columns))
        for column, value in values.items():
            flags += ["--on", f"{column}={value}"]
        keywords += f", on={values!r}"
    if conditions.given:
        file = f"input{suffix(found.blueprint.space)}"
        flags += ["--given", file]
        keywords += f", given={file!r}"
        if conditions.given.what != PAIRS:
            flags.append("--degrade")
            keywords += ", degrade=True"
    line = shlex.join(["diffuse", "sample", name, *flags, "-n", "16", "-o", "samples/"])
    return f"""## Use

```
pip install 'diffuse-cli[hub]'
{files.show(line)}
```

```python
import diffuse_cli as diffuse

samples = diffuse.load("{name}").sample(16, seed=0{keywords})
samples.images()
```"""


def _rows(found: ModelReport) -> Iterator[Sequence[str]]:
    yield "SHA-256", f"`{found.sha256}`"
    label = ""
    for own, text in model_rows(found):
        label = own or label
        if label not in LEFT_OUT:
            yield own, _text(text)


def _data(data: Mapping[str, Any]) -> str:
    """What is known of the training data, which are not part of the model."""
    if not data.get("fingerprint"):
        return ""
    rows = [("fingerprint", f"`{_text(str(data['fingerprint']))}`")]
    if isinstance(count := data.get("images"), int):
        held = data.get("held_out")
        out = held.get("images") if isinstance(held, Mapping) else None
        apart = f", {out:,} of them held out" if isinstance(out, int) else ""
        rows.append(("samples", f"{count:,}{apart}"))
    if origin := data.get("origin"):
        rows.append(("origin", _text(str(origin))))
    return (
        "## The data\n\n"
        "The training data are not here. `diffuse info DATA` prints the same fingerprint of the "
        "same data.\n\n" + _table(("", ""), rows)
    )


def _measured(numbers: Mapping[str, Any] | None) -> str:
    if numbers is None:
        return "## Numbers\n\nNothing was measured; `diffuse eval` does."
    values = {
        key: float(value)
        for key, value in numbers.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }
    rows = []
    for number in shown({k: v for k, v in values.items() if k != "seconds"}):
        reference = number.reference(values)
        known = reference is not None and math.isfinite(reference.value)
        cells = (
            number.label,
            f"{measured(values, number.key)}",
            str(reference) if known else "",
        )
        rows.append([_text(cell) for cell in cells])
    counts, settings = numbers["n"], numbers["settings"]
    network, part = dict(numbers["features"]).get("name", ""), numbers.get("part", "")
    how = [
        f"{counts['generated']} generated against {counts['real']} real ({part})",
        f"{settings.get('sampler')}, {settings.get('steps')} steps, seed {settings.get('seed')}",
        *([f"features of {network}"] if network else []),
    ]
    remarks = [f"- {_text(str(remark))}" for remark in numbers["remarks"]]
    parts = [
        "## Numbers",
        "A value, its standard error, and what a perfect model would reach.",
        _table(("", "measured", "reference"), rows),
        _text("; ".join(how)) + ". All of it: [eval.json](eval.json).",
        "\n".join(remarks),
    ]
    return "\n\n".join(filter(None, parts))


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _text(text: str) -> str:
    """A text of a file as it is read, not as Markdown or HTML."""
    safe = html.escape(files.show(text), quote=False)
    return "".join(f"\\{c}" if c in "\\`*_[]|#" else c for c in safe)
