"""The JSON Schemas of all bodies. `python -m edge_agent.protocol.json_schemas FOLDER` writes them."""

import json
import sys
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from edge_agent.jobs.request import Request
from edge_agent.protocol.order_payloads import ModelOrder, OrderResult, OrderStatus
from edge_agent.protocol.payloads import (
    Answer,
    Chunk,
    DecisionReport,
    Info,
    JobEvent,
    JobRef,
    Presence,
    Result,
    Status,
    Telemetry,
)

PAYLOADS: dict[str, type[BaseModel]] = {
    "job": Request,
    "cancel": JobRef,
    "status-command": JobRef,
    "order": ModelOrder,
    "order-status": OrderStatus,
    "order-result": OrderResult,
    "status": Status,
    "chunk": Chunk,
    "result": Result,
    "answer": Answer,
    "job-event": JobEvent,
    "presence": Presence,
    "info": Info,
    "decision": DecisionReport,
    "telemetry": Telemetry,
}


def schemas() -> dict[str, dict[str, Any]]:
    """Return the JSON Schema of every payload by name: requests as they may be sent, the rest as they are published."""
    given = {"job", "cancel", "status-command", "order"}
    return {
        name: {"$schema": "https://json-schema.org/draft/2020-12/schema"}
        | model.model_json_schema(mode="validation" if name in given else "serialization")
        for name, model in PAYLOADS.items()
    }


def write_schemas(folder: Path) -> None:
    """Write one file per payload."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, schema in schemas().items():
        (folder / f"{name}.json").write_text(json.dumps(schema, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write_schemas(Path(sys.argv[1]))
