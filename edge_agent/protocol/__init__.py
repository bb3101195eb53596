"""What crosses the broker: topics, bodies, their schemas, bytes to types and back; no I/O."""
