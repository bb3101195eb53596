"""Whose fault the end of an engine is."""

import pytest

from edge_agent.engine.hosting.blame import is_the_jobs


@pytest.mark.parametrize(
    ("rows", "served", "before", "jobs"),
    [
        ({"1"}, True, (), True),
        ({"1"}, False, (), False),
        ({"1"}, False, {"1"}, True),
        ({"1"}, False, {"1", "2"}, True),
        ({"2"}, False, {"1"}, False),
        ({"1", "2"}, True, (), False),
        ({"1", "2"}, False, {"1", "2"}, False),
        ((), True, (), False),
    ],
)
def test_a_job_alone_is_to_blame_where_others_were_answered_or_it_was_there_before(rows, served, before, jobs):
    """An engine that dies with one after another, and answers none, is not well itself."""
    assert is_the_jobs(rows, served=served, before=before) is jobs
