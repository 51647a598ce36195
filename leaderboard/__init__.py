"""The leaderboard: a Streamlit board over finished records."""

RESULTS_VARIABLE = "AGSSP_BENCH_RESULTS"
"""Environment variable that says where a server's records are: a folder, or `hub://ORG/NAME@REVISION`."""
