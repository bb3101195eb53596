"""What `edge-agent explain` prints of a decision."""

import io

from rich.console import Console

from edge_agent.cli.explain import show
from edge_agent.health.birth import decision_report
from edge_agent.models.choose import Decision, WantedModel
from edge_agent.protocol.payloads import ModelDecision, RejectedInfo
from edge_agent.settings.load import ServeSection


def test_brackets_are_shown_as_they_are_and_mark_nothing_up():
    """A reason may name a table of the settings, a catalogue of one's own anything."""
    reason = "name it by path in a [[models.serve]] table"
    turned_down = RejectedInfo(variant="ours[bold]", backend="onnx", device="cpu", reason=reason)
    decision = ModelDecision(name="ours", wanted="ours", context_tokens=512, parallel=1, rejected=(turned_down,))
    shown = io.StringIO()
    show(decision, Console(file=shown, width=120))
    assert reason in shown.getvalue()
    assert "ours[bold]" in shown.getvalue()


def test_an_upstream_is_the_last_candidate_and_only_where_it_is_allowed():
    """With its host and the reason, on the terminal and as published; of the one whose server it is, the only one."""
    cloud = ServeSection(name="cloud", openai={"url": "https://host.example/v1", "model": "big"}, parallel=3)
    serves = [ServeSection(name="phi", upstream="cloud"), ServeSection(name="alone"), cloud]
    decisions = {name: Decision(WantedModel(name), (), ()) for name in ("phi", "alone")}
    phi, alone, own = decision_report(serves, decisions, agent="edge-01", boot_id="").models
    assert alone.candidates == ()
    (last,) = phi.candidates
    assert (last.variant, last.device, last.host, last.parallel) == ("big", "upstream", "host.example", 3)
    assert last.behind == "answers only while nothing can be loaded on this device; the jobs leave it then"
    assert own.candidates[0].notes == ("on host.example, for jobs that name cloud",)
    shown = io.StringIO()
    for each in (phi, own):
        show(each, Console(file=shown, width=120))
    assert "1. answers only while nothing can be loaded" in shown.getvalue()
    assert "cloud: 4096 tokens of context, 3 at once" in shown.getvalue()
