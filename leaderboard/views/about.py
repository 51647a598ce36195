"""What the board measures and how, in plain words."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from benchmark import protocol as protocols
from leaderboard import look

_LADDER = {
    "scratch": ("Random values", "What the detector can do with the labelled images alone."),
    "imagenet": (
        "Everyday photographs with labels",
        "The usual start, and the baseline of every Δ on this board.",
    ),
    "coco": (
        "A whole detector, trained on everyday objects",
        "Backbone, neck and head know how to detect something.",
    ),
    "industrial": (
        "Pictures of surfaces, without anomaly maps",
        "Does the right kind of picture help by itself?",
    ),
    "agbp": (
        "The same, the backbone guided by anomaly maps",
        "The backbone learns to look where something is unusual.",
    ),
    "agssp": (
        "Backbone and detector guided by anomaly maps",
        "Boxes around unusual places pretrain the detector too.",
    ),
}


def page() -> None:
    """Draws the page."""
    look.heading(
        "How the numbers come to be",
        "One recipe for everybody, several trainings a row, and a statement of what the numbers cannot say.",
    )
    st.subheader("What is compared", anchor=False)
    st.markdown(
        "A *row* is one backbone with one way of pretraining, under one detector, on one dataset, finetuned "
        "several times with "
        "different seeds. Whatever the weights were pretrained on, the finetuning is the same. The modes are the "
        "ladder of "
        "the AGSSP paper's Table 2:"
    )
    ladder = [(look.mode_label(mode), what, why) for mode, (what, why) in _LADDER.items()]
    st.table(pd.DataFrame(ladder, columns=["mode", "pretrained on", "what it asks"]).set_index("mode"))
    st.subheader("Measured and reported", anchor=False)
    look.trust_legend(list(look.TRUSTS))
    st.markdown(
        "Reported rows are copied from the paper. They are single runs, taken at the epoch that was best on the "
        "very images "
        "they are reported on, which is optimistic. They stand beside measured rows for orientation and are "
        "never tested "
        "against them."
    )
    st.subheader("Protocols", anchor=False)
    st.markdown(
        "A protocol fixes every setting that changes a number. Rows under different protocols are not compared."
    )
    found = [(name, protocols.load(name).title) for name in protocols.names()]
    st.dataframe(pd.DataFrame(found, columns=["protocol", "what it is for"]), hide_index=True)
    st.subheader("Reading a number", anchor=False)
    st.markdown(_NUMBERS)
    st.subheader("When one row is called better", anchor=False)
    st.markdown(_TESTS)
    st.subheader("What this board cannot say", anchor=False)
    st.markdown(_LIMITS)
    st.caption("The methods in full, with their assumptions and how they were checked: docs/statistics.md.")


_NUMBERS = """
- **mAP@.5** is the average precision when a box counts as right from half an overlap on, averaged over the kinds of
  defects.
  **mAP@.5:.95** also asks for tighter boxes. Both in percent, as COCO defines them.
- **±** is the standard error of the mean over seeds of finetuning: how much the mean would move with other seeds. A
  row with one
  seed has none.
- **Δ** is the difference, in points, to ImageNet weights of the same detector and backbone under the same protocol
  on the same
  data, or to scratch where there is no ImageNet row.
- **Params** are the detector's trainable parameters; **FPS** of reported rows is the paper's Table 6, on their machine.
"""
_TESTS = """
- The images of the validation set could have been others. They are drawn again with replacement 1,000 times, the
  same draws for all
  rows; how mAP scatters over the draws, and over seeds, makes the **95 % interval** of a difference.
- Of twenty comparisons of equal rows, one looks significant by luck. **Holm's correction** keeps the chance of a
  single false call
  in the whole family under 5 %.
- Rows that share a **group** letter cannot be told apart on this dataset. That does not prove them equal.
- The **rank interval** says where a row would stand with other images and other seeds.
- The **smallest difference** of a dataset is what it finds in 4 of 5 cases. A published improvement below it was
  found by luck or
  not at all.
"""
_LIMITS = """
- All seeds of a row begin from one pretraining. How much another run of the pretraining would change is not in the
  error bar.
- The validation images stand for images like them, not for another factory.
- Generated surfaces show whether a method works at all, quickly and without licences. They say nothing about a real
  plant, and
  stand in a table of their own. A generated corpus for pretraining comes from the same generator as the sets that it is
  measured on, from other seeds: nearer to them than any corpus of photographs is to a plant.
- Nobody's training data can be inspected from here. Submissions state what they were pretrained on.
"""
