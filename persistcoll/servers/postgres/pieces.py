"""What PostgreSQL's statements of all collections have in common."""

from __future__ import annotations

__all__ = ["VACUUM", "first_free"]

# A queue's table is empty at one moment and full at the next, so what counts is how many rows have changed
# and not their share. The vacuum is short and must not be throttled.
VACUUM = (
    "WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000,"
    " autovacuum_vacuum_cost_delay = 0, autovacuum_analyze_scale_factor = 0.1)"
)
"""The end of the statement that makes the table of a collection."""


def first_free(which: str, order: str, one: bool) -> str:
    """Return the condition's end for the id of one of the first of these rows that nobody has locked.

    With a literal limit the server keeps its plan; with a parameter it would plan each time, because it
    expects a tenth of the rows. The plan with ``=`` is by an index also while the table is small, so it may
    be kept when the table has grown.

    :param one: whether it is one row, and not ``limit``.
    """
    limit, ids = ("1", "= {}") if one else ("%(limit)s", "= ANY (ARRAY{})")
    # The sub-select runs once; with IN it might run again for each row, and lock more.
    return ids.format(f"(SELECT id FROM {which} ORDER BY {order} LIMIT {limit} FOR UPDATE SKIP LOCKED)")
