"""`python -m hardware [--json]`: print what this machine is."""

import argparse
import json
import sys
from dataclasses import asdict

from hardware.probe import probe


def main() -> None:
    """Print one fact per line, or one JSON object; unknown facts are null."""
    parser = argparse.ArgumentParser(prog="python -m hardware", description="Print what this machine is.")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    as_json = parser.parse_args().json
    machine = asdict(probe())
    if as_json:
        sys.stdout.write(json.dumps(machine, indent=2) + "\n")
        return
    for part, facts in machine.items():
        for name, value in facts.items():
            sys.stdout.write(f"{part}.{name}: {json.dumps(value, ensure_ascii=False)}\n")


if __name__ == "__main__":
    main()
