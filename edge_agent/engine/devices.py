"""What a backend's library can run models on, asked of the library itself: `python -m edge_agent.engine.devices NAME`.

Run as a child, because a library that meets a broken driver may die or hang. Prints one JSON object and ends.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

from edge_agent.base.errors import BackendMissingError
from edge_agent.engine.backend import find, named
from edge_agent.engine.registry import facts_of, names


def main(arguments: Sequence[str] | None = None) -> int:
    """Print `{"devices": [{"device", "name", "memory_bytes"}]}`, or `{"missing": sentence}` without the library."""
    parser = argparse.ArgumentParser(prog="python -m edge_agent.engine.devices", description=__doc__)
    parser.add_argument("backend", choices=names())
    backend = parser.parse_args(arguments).backend
    sees = facts_of(backend).sees
    try:
        find(backend)
    except BackendMissingError as error:
        answer: dict[str, Any] = {"missing": str(error)}
    else:
        answer = {"devices": list(named(sees)()) if sees else [{"device": "cpu", "name": "CPU"}]}
    sys.stdout.write(json.dumps(answer) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
