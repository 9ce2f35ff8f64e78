"""The representations that are probed, as arrays. Knows runs; not labels, probes or scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from extract.errors import UserError
from extract.store import Run


class Representation(NamedTuple):
    name: str
    """z_voco, v_d or v_pooled."""
    layer: int | None
    """Of z_voco: 0 is the embedding, L the last; None for the others."""


def parse_layers(run: Run, layers: str) -> tuple[int, ...]:
    """`""` (the last layer alone), `"all"`, or numbers such as `"0,2,-1"`, as layers that the run stores.

    Raises UserError for anything else, listing the layers there are.
    """
    stored = run.shape.stack
    if not stored:
        raise UserError(f"{run.path.name} stores no layer of z_voco; extract again with --layers")
    if layers == "all":
        return stored
    chosen: set[int] = set()
    for text in filter(None, layers.split(",")):
        try:
            number = int(text)
        except ValueError:
            raise UserError(f"--layers {layers} is neither 'all' nor numbers such as 0,2,4") from None
        number += run.shape.layers + 1 if number < 0 else 0
        if number not in stored:
            raise UserError(
                f"--layers {layers}: layer {text} is not in {run.path.name}; it holds "
                + ", ".join(map(str, stored))
            )
        chosen.add(number)
    return tuple(sorted(chosen | {stored[-1]}))


def representations(run: Run, layers: Sequence[int]) -> tuple[Representation, ...]:
    """z_voco at these layers, and the two channels that the token was made from; no v_d where there are no anchors."""
    z_voco = tuple(Representation("z_voco", layer) for layer in layers)
    v_d = (Representation("v_d", None),) if run.shape.anchors else ()
    return (*z_voco, *v_d, Representation("v_pooled", None))


def load(run: Run, representation: Representation) -> np.ndarray:
    """(N, D) float32; the anchors of v_d are laid side by side, D = A * width."""
    if representation.name == "z_voco":
        assert representation.layer is not None
        return run.z_voco(representation.layer)
    return run.v_d().reshape(len(run), -1) if representation.name == "v_d" else run.v_pooled()
