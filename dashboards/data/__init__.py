"""What the pages show, read from runs slice by slice, a module a page. Knows no figures and no layout.

Pages and the sidebar take it from here; nothing else of the dashboard opens a file of a run.
"""
# ruff: noqa: F401

from htc_probe.dashboards.data.attention import (
    Average,
    anchor_cells,
    anchor_curve,
    anchor_mass,
    anchor_values,
    attention_blocks,
    average,
    first_tokens,
)
from htc_probe.dashboards.data.beside import (
    identity,
    made,
    notes,
    notes_place,
    outdated,
    probe_results,
    probes_beside,
    refused_beside,
    said_beside,
    sections,
    sentences,
    state,
)
from htc_probe.dashboards.data.codes import Codes, all_codes, codes_held, codes_of_answer, codes_of_image
from htc_probe.dashboards.data.collection import entropies, groups, labelled, ordered
from htc_probe.dashboards.data.compare import (
    Pairs,
    mass_differences,
    paired_attention,
    paired_mass,
    paired_probes,
    pairs,
)
from htc_probe.dashboards.data.kept import RunKey, kept, key_of
from htc_probe.dashboards.data.map import check_map
from htc_probe.dashboards.data.probes import predicted, predictions
from htc_probe.dashboards.data.readers import ANSWERS, Read, Reader, readers, right_there
from htc_probe.dashboards.data.run import (
    Header,
    ImageRecord,
    available,
    header,
    image_record,
    label_text,
    labels,
    listed,
    pictures,
    row_of,
    rows_of,
    thumbnail,
)
from htc_probe.dashboards.data.search import matching
