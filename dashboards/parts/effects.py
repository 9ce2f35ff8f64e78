"""What the tabs of knock-outs share: names and choice of what is affected, and the way to the images of the sample.

Knows Streamlit and rows of a run; not what was measured.
"""

from collections.abc import Sequence

from htc_probe.dashboards.parts.controls import go_to_image, select, side_by_side

_MEAN = "mean"


def select_one(label: str, names: Sequence[str], key: str, *, mean: bool = True) -> str | None:
    """One of `names`; None: the mean of all, offered first where there is a `mean`."""
    options = [*([_MEAN] if mean else []), *names]
    chosen = select(label, options, key, format_func=lambda name: "mean of all" if name == _MEAN else name)
    return None if mean and chosen == _MEAN else chosen


def nearest(rows: Sequence[int], row: int) -> int:
    """The one of `rows` that is the fewest images away from `row`, the earlier of two."""
    return min(rows, key=lambda other: (abs(other - row), other))


def steps_within(rows: Sequence[int], image: int, images: int) -> int | None:
    """Says whether `image`, of `images`, is among the sampled `rows`, and offers those. Returns its number there."""
    words, steps = side_by_side([6, 4], "sample", least=340, align="center")
    if image in rows:
        words.caption(
            f"Image {image + 1:,} is in the sample: {len(rows):,} of {images:,} images, drawn at random, had their "
            "tokens knocked out."
        )
    else:
        near = nearest(rows, image)
        words.info(
            f"Image {image + 1:,} is not in the sample of {len(rows):,} of {images:,} images whose tokens were knocked "
            "out. Below are the means over the sample."
        )
        words.button(f"Go to image {near + 1:,}, the nearest in the sample", on_click=go_to_image, args=(near,))
    earlier, later = [row for row in rows if row < image], [row for row in rows if row > image]
    beside = steps.container(horizontal=True)
    for label, row in (("Previous", max(earlier, default=image)), ("Next", min(later, default=image))):
        look = {"disabled": row == image, "width": "stretch"}
        beside.button(f"{label} in the sample", on_click=go_to_image, args=(row,), **look)
    return rows.index(image) if image in rows else None
