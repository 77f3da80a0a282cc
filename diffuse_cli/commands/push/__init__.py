"""Publish a model on Hugging Face's hub, with a model card.

The card is made of what the model file says, of a picture of samples and, with --eval, of numbers.
Afterwards hf://ORG/NAME stands for the model wherever a command takes one.
"""

from __future__ import annotations

from diffuse_cli.commands._cli.console import Console
from diffuse_cli.config.exchange_options import PushConfig

CONFIG = PushConfig


def run(config: PushConfig, console: Console) -> None:
    """Publish, and print the address."""
    from diffuse_cli.commands.push.publication import push

    made = console.follow(push(config))
    console.show(made, [made["commit"] or made["folder"]])
