"""`edge-agent`, also as `python -m edge_agent`."""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

AGENT = frozenset(
    {"psutil", "prometheus_client", "PIL", "numpy", "huggingface_hub", "httpx2", "tokenizers", "jinja2", "jsonschema"}
)
"""Modules that come with the extra `agent`, and so with every engine: who only asks agents has none of them."""


def main() -> None:
    """Run the command line. What the extras bring and is not installed is told in a sentence."""
    try:
        _main()
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if module not in AGENT:
            raise
        sys.stderr.write(
            f"edge-agent: {module} is not installed; what runs an agent comes with its engine: "
            "pip install 'edge-slm-agent[cpu]' (or [cuda], [openvino], [llamacpp]; [agent] without an engine)\n"
        )
        sys.exit(2)


def _main() -> None:
    """Run the command line; the daemon, when it is asked for plainly, without loading the rest of it."""
    if fault := unreadable(sys.argv[1:], os.environ):
        sys.stderr.write(f"edge-agent: {fault}\n")
        sys.exit(2)
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
    from edge_agent.agent.daemon import main as daemon  # noqa: PLC0415 - see above

    sys.exit(daemon(Path(config) if config else None))


def unreadable(arguments: Sequence[str], environ: Mapping[str, str]) -> str | None:
    """Return what we were given that is no text in UTF-8, in a sentence; such bytes can be sent and shown nowhere."""
    for number, argument in enumerate(arguments, 1):
        if not _is_text(argument):
            return f"argument {number} is not valid UTF-8; see the terminal's character set (locale)"
    for name, value in environ.items():
        if name.startswith("EDGE_AGENT_") and not _is_text(name + value):
            return f"the variable {name.encode(errors='replace').decode()} is not valid UTF-8"
    return None


def _is_text(given: str) -> bool:
    try:
        given.encode()
    except UnicodeEncodeError:
        return False
    return True


if __name__ == "__main__":
    main()
