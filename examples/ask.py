"""Asks an agent and prints its answer as it comes: python ask.py "Turn on the fan."."""

import os
import sys

from edge_agent.client import Access, Chunk, EdgeClient, JobRejectedError


def main() -> int:
    """Return 0 when the job succeeded."""
    access = Access(
        os.environ.get("MQTT_HOST", "127.0.0.1"),
        int(os.environ.get("MQTT_PORT", "1883")),
        client_id=os.environ.get("CLIENT", "me"),
        username=os.environ.get("CLIENT") if "MQTT_PASSWORD" in os.environ else None,
        password=os.environ.get("MQTT_PASSWORD"),
    )
    with EdgeClient(access) as client:
        job = client.submit(os.environ.get("AGENT", "edge-01"), prompt=sys.argv[1], max_tokens=200)
        try:
            for update in job.updates(timeout_s=300):
                if isinstance(update, Chunk):
                    sys.stdout.write(update.text)
                    sys.stdout.flush()
        except (JobRejectedError, TimeoutError) as error:
            sys.stderr.write(f"{error}\n")
            return 1
        result = job.result()
        if result.error is not None:
            sys.stderr.write(f"{result.error.message}\n")
            return 1
        sys.stdout.write("\n")
        return 0


if __name__ == "__main__":
    sys.exit(main())
