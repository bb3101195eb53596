"""`python -m hardware [--json] [--bandwidth] [--readings]`: print what this machine is and how it is."""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict

from hardware.probe import probe
from hardware.readings import readings


def main() -> None:
    """Print one fact per line, or one JSON object; unknown facts are null."""
    parser = argparse.ArgumentParser(prog="python -m hardware", description="Print what this machine is.")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--bandwidth", action="store_true", help="measure the memory's bandwidth, for 0.2 s")
    parser.add_argument("--readings", action="store_true", help="print heat, power, pressure and use instead")
    asked = parser.parse_args()
    facts = asdict(readings() if asked.readings else probe(measure_bandwidth=asked.bandwidth))
    if asked.json:
        sys.stdout.write(json.dumps(facts, indent=2) + "\n")
    else:
        sys.stdout.writelines(f"{name}: {json.dumps(value, ensure_ascii=False)}\n" for name, value in _facts(facts))


def _facts(value: object, name: str = "") -> Iterator[tuple[str, object]]:
    """Name every fact by the way to it, as `accelerators.0.name`; what is listed as plain values stays one fact."""
    if isinstance(value, dict):
        inner = value.items()
    elif isinstance(value, tuple) and any(isinstance(each, dict) for each in value):
        inner = {str(index): each for index, each in enumerate(value)}.items()
    else:
        yield name, value
        return
    for key, each in inner:
        yield from _facts(each, f"{name}.{key}" if name else key)


if __name__ == "__main__":
    main()
