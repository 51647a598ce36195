"""The leaderboard: a Streamlit board over finished records."""
