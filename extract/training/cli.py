"""`htc-train`: make a model. Parse, call, print; torch is imported once there is something to train."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from shlex import quote
from typing import Any

from htc_probe.extract import arguments, command
from htc_probe.extract.training.config import FinetuneConfig, TinyConfig
from htc_probe.extract.training.toml_file import read_settings


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; gives its exit status, see `extract.command.main`."""
    interrupted = "what is finished is kept; the same command goes on with the rest"
    return command.main("htc-train", _parse, train, argv, interrupted=interrupted)


def train(config: TinyConfig | FinetuneConfig) -> None:
    """Trains the model and says where it is. Raises UserError."""
    command.quiet_transformers()
    is_there = False
    if isinstance(config, TinyConfig):
        from htc_probe.extract.training.tiny import train_tiny

        folder = train_tiny(config)
    else:
        from htc_probe.extract.training.finetune import finetune, is_finished

        is_there = is_finished(config)
        folder = finetune(config)
    if os.environ.get("RANK", "0") == "0":  # under torchrun only one of the processes says so
        if is_there:
            print(f"{folder} is there already, made with the same settings: nothing to do.")
        else:
            print(f"Wrote {folder}: the model, its tokenizer and its log")
        print(f"Next:  {quote(command.typed('htc-extract'))} --model {quote(str(folder))} --split val")


def _parse(words: list[str]) -> TinyConfig | FinetuneConfig:
    if "tiny" in words[: 2 if words[:1] == ["--complete"] and len(words) > 2 else 1]:
        return arguments.parse(TinyConfig, [word for word in words if word != "tiny"], "htc-train tiny")
    given: dict[str, Any] = {}
    if words and not words[0].startswith("-"):
        given = read_settings(Path(words[0]), FinetuneConfig)
        words = words[1:]
    first = arguments.Shown("CONFIG.toml", words=("tiny",))
    return arguments.parse(FinetuneConfig, words, "htc-train", given=given, first=first)


if __name__ == "__main__":
    sys.exit(main())
