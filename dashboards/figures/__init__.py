"""Every figure of the dashboard, as a function from arrays to a plotly figure: usable in a notebook too. Knows plotly;
not Streamlit, files or runs.
"""
# ruff: noqa: F401

from htc_probe.dashboards.figures.attention import (
    BAND,
    Curve,
    anchor_bars,
    distribution,
    first_tokens,
    head_heatmap,
    patch_overlay,
    role_bars,
    share_curve,
    times,
)
from htc_probe.dashboards.figures.causes import (
    follow_dots,
    group_bars,
    rank_dots,
    shapley_bars,
    token_map,
    two_by_two,
    window_lines,
)
from htc_probe.dashboards.figures.codes import (
    code_entropy,
    code_examples,
    code_grid,
    code_label_bits,
    code_label_map,
    code_lifts,
    code_pictures,
    code_places,
    code_usage,
)
from htc_probe.dashboards.figures.compare import (
    difference_curve,
    difference_heatmap,
    difference_histogram,
    differences_by_name,
    pairs_scatter,
    role_differences,
    two_curves,
)
from htc_probe.dashboards.figures.compare_maps import anchors_of_both, two_maps
from htc_probe.dashboards.figures.map import MOST_CLASSES, Amounts, Classes, kept_bars, latent_map
from htc_probe.dashboards.figures.probes import confusion, said_and_true
from htc_probe.dashboards.figures.reading import (
    answer_parts,
    dimensions,
    lens_accuracy,
    lens_agreement,
    lens_words,
    likeness,
    probe_cosines,
    probe_overlap,
)
from htc_probe.probes.show.figures import bits as probe_bits
from htc_probe.probes.show.figures import by_class as probe_classes
from htc_probe.probes.show.figures import ceilings as probe_ceilings
from htc_probe.probes.show.figures import compared as probe_differences
from htc_probe.probes.show.figures import gaps as probe_gaps
from htc_probe.probes.show.figures import kept as probe_kept
from htc_probe.probes.show.figures import layer_curves as probe_layers
from htc_probe.probes.show.figures import learning_curves as probe_learning
from htc_probe.probes.show.figures import retention as probe_retention
from htc_probe.probes.show.figures import scores as probe_scores
