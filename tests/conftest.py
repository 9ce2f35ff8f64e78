import sys
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def main_stays_main() -> Iterator[None]:
    """Streamlit's AppTest leaves its script as `__main__`, which a process that is spawned later would then run."""
    main = sys.modules["__main__"]
    yield
    sys.modules["__main__"] = main
