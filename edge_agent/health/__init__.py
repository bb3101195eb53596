"""How the agent and its machine are: readings, counts, what holds the agent back; nothing here is sent."""
