"""How to send weights, and a form that checks a submission before it is sent."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from datasets_builders.errors import UserError
from leaderboard import look, session
from leaderboard.checking import check_upload

_STEPS = (
    (
        "Measure your weights",
        "The protocol finetunes them with several seeds and keeps the detections. Nothing else can be chosen, so that "
        "rows can be compared. Say what the pretraining has seen: overlap with an evaluation set is shown, not hidden.",
        "python -m benchmark submit prepare weights.safetensors --backbone swin:nano --name 'My method' \\\n"
        "    --method-text 'One sentence on how they were made' --licence apache-2.0 --pretrained-on corpus_x_sdd_gc10",
    ),
    (
        "Check the folder",
        "Offline, by the rules of the maintainers: every number is computed again from your detections, every hash, "
        "image, seed and tensor is looked at. Or use the form below.",
        "python -m benchmark submit validate FOLDER",
    ),
    (
        "Send it",
        "Uploads the weights to a model repository of yours and opens a pull request on the results repository.",
        "python -m benchmark submit push FOLDER --repo ORG/RESULTS",
    ),
)
_REFUSED = (
    ("pickles", "Weights travel as safetensors. A pickle can run code, so nobody here opens one."),
    ("edited numbers", "Metrics are recomputed from the detections and must be equal."),
    ("detections of other images", "Image ids must be those of the pinned dataset, all of them."),
    ("one seed several times", "Seeds must differ, and so must what they detect."),
    ("copies", "The same weights or detections under another name are found on the board."),
    ("markup and formulas in texts", "Names and descriptions are plain words."),
)


def page() -> None:
    """Draws the page."""
    look.heading(
        "Submit your weights",
        "Any pretraining, however odd. Bring weights; the benchmark does the rest, and you get a row with an "
        "error bar.",
    )
    for number, (title, words, command) in enumerate(_STEPS, start=1):
        st.subheader(f"{number}. {title}", anchor=False)
        st.markdown(words)
        st.code(command, language="bash", wrap_lines=True)
    st.subheader("Check a submission here", anchor=False)
    with st.form("check", enter_to_submit=False):
        upload = st.file_uploader("Zip of the submission's folder, up to 64 MB", type="zip", key="upload")
        asked = st.form_submit_button("Check it", icon=":material/fact_check:")
    if asked and upload is None:
        st.warning("Choose a zip file first.")
    elif asked and upload is not None:
        _check(upload.getvalue())
    st.caption(
        "It is checked on the machine of this board and deleted at once. Nothing is submitted by this form."
    )
    st.subheader("What is refused", anchor=False)
    st.table(pd.DataFrame(_REFUSED, columns=["what", "why"]).set_index("what"))


def _check(archive: bytes) -> None:
    try:
        with st.spinner("Checking hashes, records, weights and numbers"):
            found = check_upload(archive, session.source())
    except UserError as error:
        st.error(look.escape(str(error)))
        return
    name = look.escape(str(found["name"] or "The submission"))
    if found["valid"]:
        st.success(
            f"{name} is valid: {len(found['records'])} records. It can be sent.",
            icon=":material/check_circle:",
        )
    else:
        st.error(f"{name} is refused:", icon=":material/block:")
        # Strangers' words: as text, one a line.
        st.code("\n".join(found["complaints"]), language=None, wrap_lines=True)
    for note in found["notes"]:
        st.info(look.escape(note))
