"""Parts of a page that are drawn several times beside each other: what tells their charts and widgets apart."""

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar

_COPY: ContextVar[str] = ContextVar("copy", default="")


@contextlib.contextmanager
def copy(name: str) -> Iterator[None]:
    """What is drawn in the block is the copy of this name."""
    before = _COPY.set(f"_{name}")
    try:
        yield
    finally:
        _COPY.reset(before)


def key_here(key: str) -> str:
    """The key of a chart or widget in the copy that is drawn now."""
    return key + _COPY.get()


def stays_here(callback: Callable[[], None]) -> Callable[[], None]:
    """`callback`, which is called after the page was drawn, as from the copy that is drawn now."""
    name = _COPY.get()

    def called() -> None:
        before = _COPY.set(name)
        try:
            callback()
        finally:
            _COPY.reset(before)

    return called
