"""The pages of the board: each draws itself with `page`.

Not named `pages`: Streamlit takes the files of such a folder for pages themselves, before `app.py` can say otherwise.
"""
