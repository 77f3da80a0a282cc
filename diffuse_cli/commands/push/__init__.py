"""Publish a model on the Hugging Face Hub, with a model card.

The card contains the facts of the model file, an image of samples and, with --eval, metrics.
Afterwards you can pass hf://ORG/NAME wherever a command takes a model.
"""

from __future__ import annotations

from diffuse_cli.commands._cli import Console
from diffuse_cli.config.exchange_options import PushConfig

CONFIG = PushConfig
EXAMPLES = (
    "diffuse push model.safetensors hf://me/model --license mit",
    "diffuse push model.safetensors hf://me/model --license mit -o card",
)


def run(config: PushConfig, console: Console) -> None:
    """Publish, and print the address."""
    from diffuse_cli.commands.push.publication import push

    values = console.follow(push(config))
    console.show(values, [values["commit"] or values["folder"]])
