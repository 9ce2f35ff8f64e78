"""The words of this toolkit, and the dialog that shows them. docs/glossary.md is made from them."""

import streamlit as st

TERMS = {
    "`<voco>`": "the one token into which the model squeezes an image. Text reads nothing else of the image.",
    "`z_voco`": "the state of `<voco>` after a layer. Layers are counted from 1; 0 is the embedding. The last state, "
    "after the final norm, reaches no text.",
    "`voco_read`": "what text reads of `<voco>`: its states as they enter each layer, from the embedding to the layer "
    "before the last.",
    "anchor": "one of the few tokens (4 in HTC-VLM) that are made from the image's discrete codes. The paper gives "
    "them the semantics.",
    "patch": "one of the tokens that are made from CLIP's features, each for a square of the image. The paper gives "
    "them the details.",
    "`v_d`": "the anchors as the model gets them.",
    "pooled V": "the mean of the patches as the model gets them, the usual baseline. It is typed and stored as "
    "`v_pooled`.",
    "run": "the file that htc-extract writes for one model and one set of images: `<voco>` at every layer, its "
    "attention, and the labels.",
    "task, suite": "a task is one label of every image, such as its texture. A suite is a group of tasks: semantic "
    "(what is there) or detail (how it looks and where).",
    "probe": "a linear model that reads a task's label from a representation. It is trained on some images and scored "
    "on others, which are held out.",
    "floor": "the score of a predictor that sees no features: the most frequent class, a random ranking, or the mean.",
    "retention": "how much of pooled V's score above its floor a representation keeps, in percent.",
    "bits": "what a probe tells of a label beyond how often labels occur, in bits an image, on held-out images "
    "(V-information).",
    "95% interval": "made so that it holds the value for all images of the kind in 95 of 100 samples. Images that "
    "belong together (a group) are drawn together.",
    "contribution": "what a token adds to `<voco>` at a layer: attention × value. Value-weighted attention is its "
    "length after the output projection.",
    "knock-out": "`<voco>` cannot attend to a token or a group of tokens, and the model runs again. Any change is "
    "their causal effect.",
    "mixture": "an input with the anchors of one image and the patches of another, its sources; also called an "
    "interchange. It shows which source the answer follows.",
    "selection": "the images that are selected by a lasso, a click or a filter. All pages then show these.",
}
"""Each term, as Markdown, and what it means."""


def button() -> None:
    """Opens the glossary over the page."""
    if st.button("Glossary", key="glossary", width="stretch"):
        _dialog()


@st.dialog("Glossary", width="large")
def _dialog() -> None:
    st.markdown("\n".join(f"- **{term}**: {meaning}" for term, meaning in TERMS.items()))
