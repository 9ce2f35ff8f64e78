"""What probes said of single images. Knows files of predictions; not figures."""

from pathlib import Path

from htc_probe.analysis import compare
from htc_probe.dashboards.data.kept import RunKey, kept
from htc_probe.extract.errors import UserError
from htc_probe.probes.files.predictions import Predicted, Predictions, load


@kept(8)
def predictions(key: RunKey) -> Predictions:
    """Which probes the file `key` has predictions of. Raises UserError when it is damaged."""
    return load(key.path)


@kept(96)
def predicted(key: RunKey, probe: compare.ProbeKey, images: int) -> Predicted:
    """What one probe said of a run of so many images. Raises UserError when the file is damaged or of other images."""
    answers = predictions(key)[probe]
    if len(answers.rows) and not 0 <= answers.rows.min() <= answers.rows.max() < images:
        raise UserError(f"{Path(key.path).name} is of more than {images:,} images; run htc-probe again")
    return answers
