"""Tables and charts of text: a grid of tasks by columns, cut to the width that there is, and lines of columns. Knows
rich; not results.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

GREY = "bright_black"
_TASK, _CELL, _FLOOR = 12, 9, 5  # least widths of columns


@dataclass(frozen=True)
class Line:
    name: Text
    cells: Mapping[Any, Text]
    """By column."""
    floor: Text = field(default_factory=Text)
    section: bool = False
    """A rule above."""


@dataclass(frozen=True)
class Grid:
    """Cut into as many tables as the width asks for."""

    title: str
    heads: Mapping[Any, Text]
    """Of the columns."""
    lines: Sequence[Line]
    floor: str = ""
    """The header of a last column, if there is one."""
    caption: str = ""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        room = options.max_width - _TASK - (_FLOOR + 1 if self.floor else 0)
        keys = list(self.heads)
        size = math.ceil(len(keys) / math.ceil(len(keys) / max(1, room // (_CELL + 1))))
        yield Text(self.title, style="bold")
        for start in range(0, len(keys), size):
            yield self._part(keys[start : start + size])
        if self.caption:
            yield Text(self.caption + "\n", style=GREY)

    def _part(self, keys: Sequence[Any]) -> Table:
        table = plain_table(padding=0)
        table.add_column("task", min_width=_TASK, overflow="fold")
        for key in keys:
            table.add_column(self.heads[key], justify="right", min_width=_CELL, overflow="fold")
        if self.floor:
            table.add_column(Text(self.floor, style=GREY), justify="right", min_width=_FLOOR, overflow="fold")
        for line in self.lines:
            if line.section:
                table.add_section()
            cells = [line.cells.get(key, Text()) for key in keys]
            table.add_row(line.name, *cells, *([line.floor] if self.floor else []))
        return table


def plain_table(padding: int) -> Table:
    return Table(box=box.SIMPLE_HEAD, padding=(0, padding, 0, 0), pad_edge=False)


@dataclass(frozen=True)
class Chart:
    """A line of columns, each as high as its share (0 to 1) of `height` lines of text."""

    shares: Sequence[float]
    height: int = 1

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        blocks = " .:|" if options.ascii_only else " ▁▂▃▄▅▆▇█"
        full = len(blocks) - 1
        levels = [max(1, round(min(max(share, 0), 1) * self.height * full)) for share in self.shares]
        for line in range(self.height - 1, -1, -1):
            drawn = "".join(blocks[min(max(level - line * full, 0), full)] for level in levels)
            yield Text(drawn, no_wrap=True, overflow="crop")

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(len(self.shares), len(self.shares))
