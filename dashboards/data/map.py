"""The map of a run's images, as `htc-analyze map` found it. Knows the analysis; not figures."""

import numpy as np

from htc_probe.analysis.sections import Map
from htc_probe.extract.errors import UserError


def check_map(section: Map, images: int) -> None:
    """Raises UserError where a map is not of a run of so many images."""
    rows = section.rows
    ordered = len(rows) > 0 and (np.diff(rows) > 0).all()
    if not ordered or rows[0] < 0 or max(rows[-1], section.nearest_rows.max()) >= images:
        raise UserError("The map beside this run does not fit it; make it again with: htc-analyze map")
