"""Submissions: weights from anyone, with the records that they were measured by. `docs/submitting.md` tells how."""
