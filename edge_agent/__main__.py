"""`edge-agent`, also as `python -m edge_agent`."""

import os
import sys
from pathlib import Path


def main() -> None:
    """Run the command line; the daemon, when it is asked for plainly, without loading the rest of it."""
    match sys.argv[1:]:
        case ["run"]:
            config = os.environ.get("EDGE_AGENT_CONFIG")
        case ["run", "--config", config]:
            pass
        case ["run", option] if option.startswith("--config="):
            config = option.removeprefix("--config=")
        case _:
            from edge_agent.cli import app  # noqa: PLC0415 - see above

            app()
            return
    from edge_agent.daemon import main as daemon  # noqa: PLC0415 - see above

    sys.exit(daemon(Path(config) if config else None))


if __name__ == "__main__":
    main()
