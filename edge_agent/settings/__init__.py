"""The settings: one TOML file, every key also from the environment."""
