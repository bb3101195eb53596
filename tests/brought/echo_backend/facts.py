"""What is known of it: every fact that a backend's folder in edge_agent/engine has in its facts.py."""

from edge_agent.engine.facts import BackendFacts, Build, DeviceFacts, Rates


def read(folder):
    return Build("echo", weight_bytes=(folder / "echo.txt").stat().st_size, kv_values_per_token=64, heads=4)


FACTS = BackendFacts(
    load="echo_backend.model:EchoModel",
    marks=("echo.txt",),
    read=read,
    devices={"cpu": DeviceFacts(efficiency=0.5, rates=Rates(1.0, 2.0, 0, 0, 2**20))},
)
