"""A model to be published on the hub."""

from __future__ import annotations

from dataclasses import dataclass

from diffuse_cli.config.options import MODEL, OVERWRITE, Config, argument, option
from diffuse_cli.config.parsers import parse_file, parse_license
from diffuse_cli.system.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class PushConfig(Config):
    """A model, and what its card says.

    Raises:
        UsageError: no licence.
    """

    model: str = argument("MODEL", MODEL)
    target: str = argument("TARGET", "The model's name on the hub, hf://ORG/NAME.")
    license: str | None = option(
        None,
        "Licence under which others may use the model, as the hub writes it: mit, cc-by-4.0, "
        "other. It must be given.",
        parse=parse_license,
        shown="",
    )
    eval: str | None = option(
        None,
        "Numbers for the card: a file of what diffuse eval --json printed.",
        parse=parse_file,
        metavar="FILE.json",
        shown="",
    )
    samples: str | None = option(
        None,
        "Picture of samples for the card, such as grid.png.",
        parse=parse_file,
        metavar="FILE.png",
        shown="16 are drawn",
    )
    private: bool = option(False, "Let nobody else see a repository that is made.", control=True)
    out: str | None = option(
        None,
        "Write the folder that would be pushed, and push nothing.",
        flag="-o",
        metavar="FOLDER",
        shown="",
    )
    overwrite: bool = option(False, OVERWRITE)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.license is None:
            raise UsageError(
                "--license is missing: whoever finds the model must know what they may do with it",
                "Type --license mit, or the name of another",
            )
