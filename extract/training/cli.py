"""`htc-train`: make a model. Parse, call, print; torch is imported once there is something to train."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import tyro

from htc_probe.extract import command
from htc_probe.extract.training.config import FinetuneConfig, TinyConfig
from htc_probe.extract.training.toml_file import read_settings


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; gives its exit status, see `extract.command.main`."""
    interrupted = "the same command continues from the last checkpoint"
    return command.main("htc-train", _parse, train, argv, interrupted=interrupted)


def train(config: TinyConfig | FinetuneConfig) -> None:
    """Trains the model and says where it is. Raises UserError."""
    if isinstance(config, TinyConfig):
        from htc_probe.extract.training.tiny import train_tiny

        folder = train_tiny(config)
    else:
        from htc_probe.extract.training.finetune import finetune

        folder = finetune(config)
    if os.environ.get("RANK", "0") == "0":  # under torchrun only one of the processes says so
        print(f"Wrote {folder}. Use it with: htc-extract --model {folder} --split val")


def _parse(args: list[str]) -> TinyConfig | FinetuneConfig:
    if args[:1] == ["tiny"]:
        return tyro.cli(TinyConfig, prog="htc-train tiny", args=args[1:])
    settings = {"init_from": tyro.MISSING}
    prog = "htc-train [CONFIG.toml]"
    if args and not args[0].startswith("-"):
        settings |= read_settings(Path(args[0]), FinetuneConfig)
        prog, args = f"htc-train {args[0]}", args[1:]
    return tyro.cli(FinetuneConfig, prog=prog, default=FinetuneConfig(**settings), args=args)


if __name__ == "__main__":
    sys.exit(main())
