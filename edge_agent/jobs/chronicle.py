"""What the log says of jobs: one line when one is accepted and one when it has ended, whoever ended it.

Said of rows that have changed, once that is durable: so no way to end a job can be without its line.
"""

from collections.abc import Sequence

from edge_agent.base.log import get_logger
from edge_agent.jobs.job import TERMINAL, Job, Outcome

log = get_logger()


def note(changes: Sequence[Job]) -> None:
    """Say which of these jobs were accepted or have ended; never with a text of theirs."""
    for job in changes:
        if job.state_seq == 1:
            log.info("job.accepted", job_id=job.job_id, client=job.client, model=job.model, row=job.row)
        if job.state in TERMINAL:
            outcome = job.outcome or Outcome()
            log.info(
                "job.ended",
                job_id=job.job_id,
                client=job.client,
                row=job.row,
                state=job.state,
                code=outcome.error.code if outcome.error else None,
                tokens=outcome.usage.completion_tokens if outcome.usage else 0,
            )
