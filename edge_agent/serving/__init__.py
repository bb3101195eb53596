"""The agent's side of the broker: what it takes in, what it owes, what it says of itself."""
