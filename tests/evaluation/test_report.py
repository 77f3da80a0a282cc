"""The page of `eval --report`: whole, safe, the same every time, and readable in a browser."""

import json
import re
import shlex
import shutil
from base64 import b64decode
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from browser import Browser, needs_browser
from conftest import in_process, log_rows, mostly_slow
from jinja2 import UndefinedError
from lab import write_images
from PIL import Image

from diffuse_cli import metrics
from diffuse_cli.config.eval_options import EvalConfig
from diffuse_cli.config.options import to_arguments
from diffuse_cli.evaluation import metric_inputs
from diffuse_cli.evaluation.examples import OF_CLASS, SAMPLES, TWINS
from diffuse_cli.evaluation.report import COLORS
from diffuse_cli.evaluation.results import strip_folders
from diffuse_cli.metrics import METRICS, Measurement, Metric, Words
from diffuse_cli.pages import charts, curves, templates
from diffuse_cli.pages.templates import environment, render
from diffuse_cli.system import plural

QUICK = ("--steps", 4, "--precision", "fp32", "--timesteps", 5)
HOSTILE = '<script>alert(1)</script> & "x"'.replace("/", "∕")
"""A class name; a folder's name has no slash, so a character that looks like it."""

SECTIONS = [
    "samples", "numbers", "distributions", "classes", "bits", "training", "nearest", "repeat",
]  # fmt: skip

VOID = frozenset({"br", "col", "hr", "img", "link", "meta"})
"""Elements without an end tag."""


class Page(HTMLParser):
    """A page taken apart: its elements, links and words; balanced, or an error."""

    def __init__(self, source):
        super().__init__(convert_charrefs=True)
        self.source = source
        self.open = []
        self.elements = []
        self.words = []
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        names = [name for name, _ in attributes]
        assert len(set(names)) == len(names), attributes
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, self.getpos()

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.words))

    def of(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    def values(self, name):
        return [a[name] or "" for _, a in self.elements if name in a]

    @property
    def json(self):
        """The numbers at the end of the page."""
        return json.loads(self.words[max(i for i, w in enumerate(self.words) if w[:1] == "{")])


def read(path="page.html"):
    return Page(Path(path).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def whole(conditional, images, tmp_path_factory):
    """The page of a model with classes, measured against its training data."""
    path = tmp_path_factory.mktemp("report") / "whole.html"
    line = ["eval", conditional, images, "-n", 8, *QUICK, "--ode-steps", 2, "--report", path, "-q"]
    assert in_process(line, plots=True) == 0
    return path


# -- what is on it --------------------------------------------------------------------------------


def test_the_page_has_every_section_asks_for_nothing_and_names_its_parts(whole):
    page = read(whole)
    headings = [a["id"] for a in page.of("h2") if a.get("id")]
    assert headings == SECTIONS
    assert [a["href"] for a in page.of("a")] == [f"#{name}" for name in SECTIONS]
    assert len(page.of("h1")) == len(page.of("title")) == 1
    for name in ("src", "href", "xlink:href", "action", "data", "poster", "srcset"):
        assert all(v.startswith(("data:image/png;base64,", "#")) for v in page.values(name))
    assert "://" not in page.source.replace("http://www.w3.org/2000/svg", "")
    assert "url(" not in re.sub(r"url\(#", "", page.source)
    assert "@import" not in page.source
    assert not {tag for tag, _ in page.elements} & {"script", "iframe", "object", "embed", "link"}
    assert not [n for _, a in page.elements for n in a if n.startswith("on")]
    (policy,) = (a["content"] for a in page.of("meta") if "http-equiv" in a)
    assert policy.startswith("default-src 'none'")
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    wanted = [v[1:] for v in page.values("href") + page.values("xlink:href")]
    wanted += page.values("aria-labelledby") + re.findall(r"url\(#([^)]+)\)", page.source)
    assert len(wanted) > 20
    assert {*wanted} <= {*ids}
    assert len(page.of("table")) > 5
    assert all(a.get("scope") in ("row", "col") for a in page.of("th"))
    assert all(a.get("aria-label") and a.get("role") == "img" for a in page.of("svg"))


def test_every_number_is_on_the_page_with_its_error(whole):
    """A metric that is added without words is shown among other numbers, and is in the JSON."""
    page = read(whole)
    found = page.json
    named = {name for name in found if name.endswith("_standard_error")}
    assert len(named) > 10
    known = {number.key: number for number in metrics.numbers()}
    assert len(known) == len([*metrics.numbers()])
    of_given = ("answers", "ensembles")  # of a model that is given
    given = {n.key for n in known.values() if n.question in of_given}
    # 8 images have no estimate of the one, nats are of floats, random features of other media.
    nats = {"nats_per_dim", "nats_per_dim_ode"}
    assert {*known} - {*found} == {*given, *nats, "frechet_infinity", "kid_random"}
    outside = {
        "subject", "data", "n", "classes", "terms", "details", "part", "features", "settings",
        "seconds", "model", "fingerprints", "made_with", "plot", "pairs", "report", "remarks",
    }  # fmt: skip
    measured = {k: v for k, v in found.items() if k not in outside}
    assert [n.key for n in metrics.select_numbers(measured)] == [k for k in known if k in found]
    for key in {*known} & {*found}:
        assert f"{known[key].label} {known[key].says} " in page.text
        quoted = Measurement(found[key], found.get(f"{key}_standard_error", 0))
        assert (known[key].unquoted(found) or str(quoted)) in page.text
    for floor in ("kid_floor", "frechet_floor"):
        assert str(Measurement(found[floor], found[f"{floor}_standard_error"])) in page.text
    for values in found["classes"].values():
        assert str(Measurement(values["kid"], values.get("kid_standard_error", 0))) in page.text


NEW = """
from diffuse_cli.metrics import MetricNumber, Remark

NEEDS = ()
NUMBERS = (
    MetricNumber("sheen", "sheen <b>", "How they shine.", "higher", 50.0, "variety", axis="lux",
           by_class=True),
)

def compute(evaluation):
    return {"sheen": 41.25, "sheen_standard_error": 0.5}

def remarks(facts):
    yield Remark("sheen", "poor", f"{facts['sheen']} is dull")
"""


def test_a_metric_is_one_file(diffuse, conditional, images, tmp_path, monkeypatch):
    """Its number and its remark are in the table, the JSON and the page by themselves."""
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "sheen.py").write_text(NEW)
    monkeypatch.setattr(metrics, "__path__", [*metrics.__path__, str(tmp_path / "new")])
    monkeypatch.setitem(METRICS.entries, "sheen", f"{metrics.__name__}.sheen")
    line = ("eval", conditional, images, "-n", 4, *QUICK, "--report", "page.html")
    table = [re.split(r"\s\s+", row) for row in diffuse(*line).out.splitlines()]
    assert ["sheen <b>", "41.25 ± 0.50", "50"] in table
    assert sum("sheen <b>" in cell for row in table for cell in row) == 2  # and of each class
    page = read()
    assert "sheen <b> How they shine. Higher is better. 41.25 ± 0.50 50" in page.text
    assert any("Plot: " in a["aria-label"] and "sheen" in a["aria-label"] for a in page.of("svg"))
    assert page.json["sheen"] == page.json["classes"]["dark"]["sheen"] == 41.25
    assert "sheen: 41.25 ± 0.50 is dull" in page.json["remarks"]
    assert "Sheen: 41.25 ± 0.50 is dull." in page.text


def test_the_images_are_those_that_were_measured(whole, conditional, images, diffuse):
    """Generated image k is the one that `sample` draws; all are named for who cannot see them."""
    page = read(whole)
    shown = page.of("img")
    assert all(image["alt"] for image in shown)
    named = [image["alt"] for image in shown]
    assert "generated image 3 of class light" in named
    assert sum(alt.startswith("real image") and "class dark" in alt for alt in named) > 1
    assert sum("nearest training image" in alt for alt in named) == 8
    generated = re.findall(r"^generated image (\d+) of class (\w+)$", "\n".join(named), re.M)
    labels = dict(reversed(generated))  # the first of each: those of one class are counted anew
    assert {*labels.values()} == {"dark", "light"}
    asked = [option for k in range(8) for option in ("--class", labels[str(k)])]
    diffuse("sample", conditional, "-n", 8, *QUICK[:4], *asked)
    for k in range(8):
        drawn = np.asarray(Image.open(f"samples/{k:05d}.png"), int)
        image = shown[named.index(f"generated image {k} of class {labels[str(k)]}")]
        assert np.abs(pixels(image) - drawn).max() <= 2
    known = {np.asarray(Image.open(p)).tobytes() for p in images.rglob("*.png")}
    nearest = [i for i in shown if "nearest training image" in i["alt"]]
    assert all(pixels(image).astype(np.uint8).tobytes() in known for image in nearest)


def pixels(image):
    data = b64decode(image["src"].removeprefix("data:image/png;base64,"))
    return np.asarray(Image.open(BytesIO(data)), int)


def test_the_command_of_a_page_gives_its_numbers_and_the_same_bytes(
    diffuse, whole, conditional, images
):
    def steady(source):
        return re.sub(r"(seconds\D{1,40})[\d.]+", r"\1", source.replace("&#34;", '"'))

    page = read(whole)
    found = page.json
    for value in (
        found["settings"]["model_sha256"], found["features"]["weights_sha256"],
        found["features"]["name"], found["features"]["resize"], found["fingerprints"]["data"],
        *found["made_with"].values(),
    ):  # fmt: skip
        assert value in page.text
    assert {"torch", "python", "diffuse", "device"} <= {*found["made_with"]}
    line = next(w for w in page.words if w.startswith("diffuse eval"))
    assert shlex.split(line) == [
        "diffuse", "eval", conditional.name, images.name, "--precision", "fp32", "--steps", "4",
        "--timesteps", "5", "--ode-steps", "2", "-n", "8", "--report", whole.name,
    ]  # fmt: skip
    places = {path.name: path for path in (conditional, images, whole)}
    arguments = [places.get(word, word) for word in shlex.split(line)[1:]]
    again = strip_folders(diffuse(*arguments, "--overwrite", "--json", plots=True).json)
    assert {**again, "seconds": 0} == {**page.json, "seconds": 0}
    second = whole.read_text(encoding="utf-8").replace(" --overwrite", "")
    assert steady(page.source) == steady(second)
    assert len(second) < 500_000


def test_arguments_make_the_configuration_again(monkeypatch):
    from diffuse_cli.commands import eval as command

    seen = []
    monkeypatch.setattr(command, "run", lambda config, console: seen.append(config))
    for given in (
        {"guidance_interval": (0.1, 9.0), "weights": "raw", "n": 3},
        {"subject": "a model's.safetensors", "strict": True, "timesteps": "all"},
        {"overwrite": True, "background": "#ffffff", "eta": 0.5, "sampler": "ddim"},
    ):
        config = EvalConfig.from_dict({"subject": "m", "data": "d", **given})
        assert in_process(["eval", *to_arguments(config)]) == 0
        assert seen.pop() == config


def test_what_the_model_draws_is_named_by_its_shape():
    given = dict.fromkeys(("title", "version", "policy", "style", "subject", "data"), "")
    settings = {"sampler": "ddim", "steps": 9, "seed": 0}
    for shape, words in (
        ([1, 8, 16], "grey images of 8 pixels high and 16 wide of 2 classes"),
        ([2, 8, 8], "2-channel images of 8 × 8 pixels of 2 classes"),
        ([2, 64], "images of 2 × 64 values of 2 classes"),
    ):
        model = {"shape": shape, "step": 9, "parameters": 9, "classes": ["a", "b"]}
        found = SimpleNamespace(model=model, settings=settings, generated=9, real=9, part="all",
                                verdict="", words=Words("images", "pixels"))  # fmt: skip
        how = {"color": COLORS, "plural": plural, "verdict": [], "sections": []}
        page = render("page", **given, **how, result=found)
        assert f"generates {words}." in re.sub(r"\s+", " ", page)


# -- subjects -------------------------------------------------------------------------------------


def test_a_page_says_why_parts_are_missing(diffuse, model, monkeypatch):
    """Of a model without its run, against data that it was not trained on: pairs, classes, and
    curves. A number without words is there. The page is written in place of an earlier file."""
    shutil.copy(model, "alone.safetensors")
    other = write_images(Path("other"), 14, seed=9)
    Path("page.html").write_text("earlier")
    metric = Metric((), lambda evaluation: {"sheen_of_images": 41.25})
    monkeypatch.setattr(metric_inputs, "METRICS", {**METRICS, "sheen": metric})
    line = ("eval", "alone.safetensors", other, "-n", 4, *QUICK, "--report", "page.html")
    assert diffuse(*line, "--overwrite", "-q").code == 0
    text = read().text
    for said in (
        "are copies of training images", "Not available: ", "Other metrics",
        "DATA must be the model's own training data", "sheen of images 41.25",
        "There are no classes to compare: the model has no classes",
        "alone.run/metrics.jsonl is missing or empty",
    ):  # fmt: skip
        assert said in text


def test_copies_are_called_copies(diffuse, images, tmp_path):
    (tmp_path / "copies").mkdir()
    for k, path in enumerate(sorted(images.rglob("*.png"))):
        shutil.copy(path, tmp_path / "copies" / f"{k}.png")
    ran = diffuse("eval", "copies", images, "--report", "deep/page.html", "--pairs", "pairs.png")
    assert ran.out.splitlines()[-2:] == ["pairs.png", "deep/page.html"]
    assert min(Image.open("pairs.png").size) > 300
    assert "memorization: 90%" in ran.out
    page = read("deep/page.html")
    assert page.text.count("Memorization: 90% of the generated images in features") == 2
    assert "image 0: 0.00 in" in page.text
    assert page.json["memorized_z_pixels"] > 3
    assert page.json["memorized_features"] == page.json["memorized_pixels"] == 0.9


def test_names_are_text_and_nothing_else_and_folders_have_neither_bits_nor_curves(
    diffuse, images, tmp_path
):
    """Class folders and paths may be called anything."""
    data, theirs = tmp_path / f"data {HOSTILE}", write_images(tmp_path / "theirs", 14, seed=9)
    shutil.copytree(images, data)
    for folder in (data, theirs):
        (folder / "dark").rename(folder / HOSTILE)
    ran = diffuse("eval", theirs, data, "--report", "page.html", "--json")
    assert ran.json["report"] == "page.html"
    page = read()
    assert not page.of("script")
    assert "<script" not in page.source.lower()
    assert page.text.count(HOSTILE) > 4
    assert any(HOSTILE in alt for alt in page.values("alt"))
    assert {*page.json["classes"]} == {HOSTILE, "light"}
    assert [a["id"] for a in page.of("h2") if a.get("id")] == SECTIONS
    assert "A folder of images has no likelihood" in page.text
    assert "A folder of images has no training" in page.text
    assert "bits per dimension" not in page.text
    assert page.json["fingerprints"].keys() == {"data", "subject"}
    assert len({*page.json["fingerprints"].values()}) == 2
    assert page.json["fingerprints"]["subject"] in page.text
    assert page.json == strip_folders(ran.json)


# -- curves ---------------------------------------------------------------------------------------


def test_the_curves_are_those_of_the_models_run(diffuse, quick, images):
    line = ("--steps", 4, "--eval-every", 2, "--eval-images", 4, "--log-every", 1)
    assert quick(*line).code == 0
    found = curves.read_curves(Path("model.run/metrics.jsonl"))
    assert {*found} == {"loss", "held_out_loss", "kid", "lr", "images_per_second"}
    for key, curve in found.items():
        there = [(row["step"], row[key]) for row in log_rows() if key in row]
        assert list(zip(curve.steps, curve.values, strict=True)) == there
    assert min(found["kid"].errors) > 0
    for name in ("model.safetensors", "model.best.safetensors"):
        diffuse("eval", name, images, "-n", 4, *QUICK, "--report", f"{name}.html").ok()
        labels = [a["aria-label"] for a in read(f"{name}.html").of("svg")]
        assert any("Loss over steps" in label for label in labels)
        assert any("KID over steps" in label for label in labels)


def test_a_strange_log_is_read_as_far_as_it_goes_and_a_long_one_averaged(tmp_path):
    log = tmp_path / "metrics.jsonl"
    rows = ['{"step": 1, "loss": 0.5}', "[1]", '{"step": "2", "loss": 1}', '{"loss": 3}',
            '{"step": 3, "loss": null}', '{"step": 4, "loss": "<b>"}', '{"step": 5, "loss": NaN}',
            '{"step": true, "loss": 1}', '{"step": 6, "loss": 1e400}', "[" * 100_000,
            '{"step": 1e999, "loss": 1}', '{"step": 7, "loss": ' + "9" * 400 + "}",
            '{"step": 8, "loss": 0.25}', '{"step": 9, "lo']  # fmt: skip
    log.write_text("\n".join(rows))
    assert curves.read_curves(log) == {"loss": curves.Curve([1, 8], [0.5, 0.25], [0, 0])}
    assert curves.read_curves(tmp_path / "none") == {}
    log.write_text("".join(f'{{"step": {k}, "loss": {k}}}\n' for k in range(10_000)))
    curve = curves.read_curves(log)["loss"]
    assert len(curve.steps) == curves.POINTS
    assert np.mean(curve.values) == pytest.approx(4999.5)


def test_a_sweep_comes_before_the_evaluation_of_what_it_recommends(diffuse, conditional, images):
    line = ("--precision", "fp32", "-n", 4, "--steps", "1,2", "--samplers", "ddim,unipc",
            "--guidance", "2,1,3", "--plot", "sweep.png", "-o", "best.safetensors",
            "--report", "page.html", "--json")  # fmt: skip
    ran = diffuse("tune", conditional, images, *line)
    best = ran.json["sweep"]["recommended"]
    for name in ("weak_guidance", "times", "start"):
        assert best.pop(name) is None  # there is none
    assert {k: ran.json["settings"][k] for k in best} == best
    assert len(ran.json["sweep"]["rows"]) == 6
    page = read()
    assert page.json == strip_folders(ran.json)
    assert "Samplers, steps and guidance" in page.text
    assert page.text.partition('"recommended"')[0].count("recommended") == 2
    for row in ran.json["sweep"]["rows"]:
        setting, kid = row["setting"], row["values"]["kid"]
        name = f"{setting['sampler']}, {plural(setting['steps'], 'step')}"
        chosen = " recommended" * ({key: setting[key] for key in best} == best)
        kid = Measurement(kid, row["values"]["kid_standard_error"])
        cost = f"{row['evaluations']:g} {row['seconds']:.3g}"
        assert f"{name}, guidance {setting['guidance']:g}{chosen} {kid} {cost}" in page.text
    assert Path("sweep.png").exists()
    assert Path("best.safetensors").exists()
    command = next(w for w in page.words if w.startswith("diffuse tune"))
    assert "--samplers ddim --samplers unipc --steps 1,2 --guidance 2.0,1.0,3.0" in command
    plain = ("--sampler", best["sampler"], "--steps", best["steps"], "--guidance", best["guidance"])
    alone = diffuse("eval", conditional, images, *line[:4], *plain, "--json").json
    assert alone["kid"] == ran.json["kid"]
    assert alone["bits_per_dim"] == ran.json["bits_per_dim"]


# -- parts ----------------------------------------------------------------------------------------


def test_strings_are_text_unless_they_were_made_here():
    template = environment().from_string('<p title="{{ x }}">{{ x }}</p>{{ made }}{{ 3 }}')
    made = template.render(x="a < 'b'\n\x00\u202e\udcff\"", made=render("samples", sides=[]))
    text = "a &lt; &#39;b&#39;\n\\x00\\u202e\\udcff&#34;"
    assert made == f'<p title="{text}">{text}</p><div class="sides">\n</div>3'
    with pytest.raises(UndefinedError):
        environment().from_string("{{ nothing }}").render()


@pytest.mark.parametrize(
    ("value", "error", "shown"),
    [(0.22704, 0.01021, "0.227 ± 0.010"), (353.4598, 8.1574, "353.5 ± 8.2"),
     (353.4, 52.9, "353 ± 53"), (1234567.0, 123.0, "1,234,570 ± 120"), (3e-9, 0, "3e−9"),
     (-3e-9, 0, "−3e−9"), (0.96875, 0, "0.9688"), (8.0, 0, "8"), (float("nan"), 0, "not known"),
     (0.5, float("nan"), "0.5"), (0.5, float("inf"), "0.5"), (0.1, 1e-12, "0.1 ± 1.0e−12"),
     (0.000025, 0.0000012, "0.0000250 ± 0.0000012"), (2.5e-9, 1.2e-10, "(2.50 ± 0.12)e−9"),
     (58576649.0, 16773824.0, "59,000,000 ± 17,000,000"), (0.5, 0.0996, "0.50 ± 0.10"),
     (-0.00001, 0.1, "0.00 ± 0.10"), (0.0, 0.0, "0"), (1e20, 1e18, "(1.000 ± 0.010)e20"),
     (0.0000251, 0, "0.0000251"), (1234567.0, 0, "1,234,567"), (5e-324, 5e-324, "0")],
)  # fmt: skip
def test_a_number_has_two_digits_of_its_error(value, error, shown):
    assert str(Measurement(value, error)) == shown
    assert f"{Measurement(-value, error):+}".startswith(("+", "−", "(+", "(−", "not"))


def test_a_plot_is_words_and_the_pages_colors():
    known = charts.Dot("a < b", Measurement(1, 0.5), Measurement(2, 0.1))
    drawn = ("name", [known, charts.Dot("c", Measurement(3))], 'says "<', "x & y")
    svg = charts.dots(*drawn)
    page = Page(svg)
    assert {"a < b", "c", "x & y", "measured", "reference"} <= {w.strip() for w in page.words}
    assert page.of("svg")[0]["aria-label"] == 'says "<'
    assert "var(--first)" in svg
    assert "#0" not in svg.replace("&#0", "")
    assert svg == charts.dots(*drawn)
    assert all(i.startswith("name-") for i in page.values("id"))


@pytest.mark.filterwarnings("error")
def test_numbers_that_are_none_are_drawn_as_gaps():
    nan = float("nan")
    for values in ([0.0, 0.0], [nan, 1.0], [nan, nan]):
        assert charts.stairs("a", values, [1, 2, 5], "says", "x", "y").startswith("<svg")
    assert charts.dots("a", [charts.Dot("a", Measurement(nan))], "says", "x").startswith("<svg")
    line = charts.Line("a", [5], [nan], [nan])
    assert charts.lines("a", [line], "says", "x", "y", log_x=True).startswith("<svg")


def test_things_in_one_plot_are_told_apart():
    looks = [charts.choose_style(i) for i in range(64)]
    assert len({*looks}) == 64
    for part in (0, 2):
        assert len({one[part] for one in looks[:8]}) == 8


def luminance(color):
    levels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in levels]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


@pytest.mark.parametrize("colors", [templates.LIGHT, templates.DARK])
def test_words_stand_out_in_both_schemes(colors):
    """A contrast of 4.5, as WCAG 2 asks for text."""
    assert {*colors} == {*templates.LIGHT} >= {*charts.INKS}
    for name in ("faint", *charts.COLORS):
        for ground in ("paper", "panel"):
            dark, light = sorted((luminance(colors[name]), luminance(colors[ground])))
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (name, ground)


def test_only_so_many_images_are_shown(diffuse, tmp_path):
    many = write_images(tmp_path / "many", 150, seed=5)
    assert diffuse("eval", many, many, "--train-n", 54, "--report", "page.html").code == 0
    named = read().values("alt")
    for side in ("generated", "real"):
        found = [n for n in named if re.fullmatch(rf"{side} image \d+ of class \w+", n)]
        assert len(found) == SAMPLES + 2 * OF_CLASS
    assert sum("nearest" in n for n in named) == TWINS
    assert len(Path("page.html").read_bytes()) < 500_000


@needs_browser
@pytest.mark.parametrize("dark", mostly_slow([False, True], always=1))
def test_a_browser_shows_the_page_light_and_dark(whole, tmp_path, dark):
    """Chromium's own parser moves, adds and drops no element."""
    with Browser(tmp_path / "profile", 360, dark=dark) as browser:
        browser.open(whole.resolve().as_uri())
        browser.screenshot(tmp_path / "page.png")
        assert not browser.scrolls_sideways
        assert browser.errors == []
        theirs = Page(browser.evaluate("document.documentElement.outerHTML"))
    assert [tag for tag, _ in theirs.elements] == [tag for tag, _ in read(whole).elements]
    levels = np.asarray(Image.open(tmp_path / "page.png").convert("L"), float)
    assert np.median(levels) < 40 if dark else np.median(levels) > 240
    bands = levels[:2400, :360].reshape(8, 300, 360)
    assert (bands.std(axis=(1, 2)) > 10).all()  # words all the way down
    assert np.ptp(levels[:, -8:]) < 1  # nothing runs over the edges of a telephone
