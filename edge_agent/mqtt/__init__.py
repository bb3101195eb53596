"""Everything that touches the broker."""
