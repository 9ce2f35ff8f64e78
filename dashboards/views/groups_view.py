"""Groups of tokens, taken away together: on z_voco or the true answers, in all layers or one, and who adds what.

Lays out; draws by charts.
"""

from typing import Any

from htc_probe.analysis.sections import Knockouts
from htc_probe.dashboards import charts
from htc_probe.dashboards.charts.effects import ANSWERS, Z
from htc_probe.dashboards.parts import controls as ui
from htc_probe.dashboards.parts.chart import draw, made
from htc_probe.dashboards.parts.effects import select_one
from htc_probe.dashboards.views.view import View


@ui.fragment
def show(view: View, knockouts: Knockouts) -> None:
    """Draws the tab."""
    told = _choose_effect(knockouts) | {"image": view.selection.number}
    left, right = ui.side_by_side(2, "groups", least=380)
    with left:
        draw(made(charts.groups.bars, view.path, **told), "groups")
        ui.how_to_read(
            "Bars: what is lost when &lt;voco&gt; cannot attend to a group, when its tokens are set to their mean over "
            "the sample, or when they come from another image. Compare the anchors with the same number of patches, at "
            "random or the most attended (in the layers that text reads). All patches have their own axis."
        )
    with right:
        draw(made(charts.groups.windows, view.path, **told), "windows")
        last = "Text reads &lt;voco&gt; as it enters the last layer, so the last layer has no effect on answers."
        note = f" {last}" if told["on"] == ANSWERS else ""
        ui.how_to_read(f"&lt;voco&gt; cannot attend to them in this layer only.{note}")
    draw(made(charts.groups.shapley, view.path, **told), "shapley")
    ui.how_to_read(
        "How much each anchor and each quarter of the patches adds when they join one by one, averaged over all orders "
        "(Shapley values; exact, as all combinations were run). The bars add up to the effect of all tokens; joint "
        "effects are split evenly between them."
    )


def _choose_effect(knockouts: Knockouts) -> dict[str, Any]:
    """On what, as charts are told."""
    if knockouts.group.answers is None:
        return {"on": Z, "of": None}
    left, right = ui.side_by_side([4, 6], "group_effect")
    chosen = ui.pick("Effect of a group on", [Z, ANSWERS], "group_effect", place=left)
    if chosen == Z:
        return {"on": Z, "of": None}
    with right:
        return {"on": chosen, "of": select_one("Question", knockouts.questions, "group_question")}
