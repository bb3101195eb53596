"""What `edge-agent explain` prints of a decision."""

import io

from rich.console import Console

from edge_agent.cli.explain import show
from edge_agent.mqtt.payloads import ModelDecision, RejectedInfo


def test_brackets_are_shown_as_they_are_and_mark_nothing_up():
    """A reason may name a table of the settings, a catalogue of one's own anything."""
    reason = "name it by path in a [[models.serve]] table"
    turned_down = RejectedInfo(variant="ours[bold]", backend="onnx", device="cpu", reason=reason)
    decision = ModelDecision(name="ours", wanted="ours", context_tokens=512, parallel=1, rejected=(turned_down,))
    shown = io.StringIO()
    show(decision, Console(file=shown, width=120))
    assert reason in shown.getvalue()
    assert "ours[bold]" in shown.getvalue()
