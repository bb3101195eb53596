"""What programs use that send jobs and orders; docs/client.md tells of each name.

>>> from edge_agent.client import Access, EdgeClient
"""

from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.client.client import EdgeClient
from edge_agent.client.handle import Handle, JobRejectedError, Update
from edge_agent.client.order_book import OrderHandle, Report
from edge_agent.jobs.job import Failure, ImageUse, JobState, Timings, Usage
from edge_agent.mqtt.access import Access
from edge_agent.protocol.order_payloads import OrderResult, OrderStatus
from edge_agent.protocol.payloads import Chunk, Result, Status

__all__ = [
    "Access",
    "Chunk",
    "Code",
    "EdgeAgentError",
    "EdgeClient",
    "Failure",
    "Handle",
    "ImageUse",
    "JobRejectedError",
    "JobState",
    "OrderHandle",
    "OrderResult",
    "OrderStatus",
    "Report",
    "Result",
    "Status",
    "Timings",
    "Update",
    "Usage",
]
