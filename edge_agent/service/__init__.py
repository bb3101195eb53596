"""The agent as a service of systemd: its unit's files, and what the manager is told."""
