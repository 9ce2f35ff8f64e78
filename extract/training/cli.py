"""`htc-train`: make a model. Parse, call, print; torch is imported once there is something to train."""

import sys
from collections.abc import Sequence

import tyro

from extract.errors import UserError
from extract.training.config import TinyConfig


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status: 0, 2 for a mistake that the user can mend, 130 when interrupted."""
    config = tyro.extras.subcommand_cli_from_dict(
        {"tiny": TinyConfig}, prog="htc-train", description="Train an HTC-VLM.", args=argv
    )
    try:
        from extract.training.tiny import train_tiny

        folder = train_tiny(config)
    except UserError as error:
        print(f"htc-train: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("htc-train: interrupted; the same command continues from the last checkpoint", file=sys.stderr)
        return 130
    print(f"Wrote {folder}. Use it with: htc-extract --model {folder} --split val")
    return 0


if __name__ == "__main__":
    sys.exit(main())
