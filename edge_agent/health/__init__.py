"""How the agent is: readings, reports, the service manager."""
