"""The documentation says what the program says."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_cli_page_is_the_programs_own_help():
    spec = importlib.util.spec_from_file_location("render_cli", ROOT / "docs" / "render_cli.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.PAGE.read_text(encoding="utf-8") == module.render(), (
        "run: python docs/render_cli.py"
    )
