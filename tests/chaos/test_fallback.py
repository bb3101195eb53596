"""A device that fails, in each way there is: the job's answer comes from the next one, once, and everybody is told."""

import pytest
from flow import rows
from running import PATIENCE_S, AgentProcess, Listener, faulty, requester, wait_for

pytestmark = [pytest.mark.broker, pytest.mark.engine]

AGENT = "edge-01"
SOUND = "sound"
FAULTS = {
    "refuse": "the driver refuses the model",
    "nonsense": "its trial failed: asked 'Status: temperature 71 C, pump off. Is the pump on?' it said 'the the",
    "first": "the engine ended by itself",
    "later": "the engine ended by itself (SIGKILL)",
    "hang": "the engine said nothing for",
    "nan": "the model computes no numbers",
    "eat": "MiB, its reservation is 160 MiB",
}
"""Which way (faults/frail.py), and what is said of it."""
AT_LOAD = {"refuse", "nonsense"}
RESERVATION_BYTES = 160 * 2**20
TOKENS = 60
"""More than the 50 after which the later faults show."""


@pytest.fixture
def frail(broker, tmp_path, tiny_model, demo_model):
    """Makes a daemon that serves one model per fault, each on a device that fails so, and one that is sound."""

    def make(*faults, **environ):
        models = tmp_path / "models"
        models.mkdir()
        tables = []
        for name in faults:
            (models / name).symlink_to(demo_model if name == "nonsense" else tiny_model)
            device = "cpu" if name == SOUND else "npu"
            tables.append(
                {"name": name, "path": str(models / name), "device": device, "memory_bytes": RESERVATION_BYTES}
            )
        environ = faulty(FAULTS_BACKEND="frail:load", **environ)
        return AgentProcess(folder=tmp_path / "agent", broker=broker, models=tables, environ=environ)

    return make


def test_whatever_way_a_device_fails_the_next_one_answers_once(frail, broker):
    """Without a strike; result, health, decision and telemetry say what happened."""
    with (
        frail(SOUND, *FAULTS, FAULTS_SILENCE_S="6") as agent,
        Listener(broker, "edge/v1/clients/tester/inbox/#", "edge/v1/agents/edge-01/evt/+") as heard,
        requester(broker) as client,
    ):
        agent.wait_said("link.up")
        agent.wait_said("engine.ready", 1 + len(FAULTS))
        asked = {
            name: client.submit(AGENT, prompt="Hello", model=name, max_tokens=TOKENS, max_attempts=1)
            for name in (SOUND, *FAULTS)
        }
        results = {name: handle.result(PATIENCE_S) for name, handle in asked.items()}
        sound = results.pop(SOUND)
        assert (sound.state, sound.usage.completion_tokens, sound.fallback_from) == ("succeeded", TOKENS, None)
        for name, result in results.items():
            assert (result.state, result.device) == ("succeeded", "cpu"), name
            assert result.attempt == (1 if name in AT_LOAD else 2), name
            assert (result.fallback_from.device, result.fallback_from.variant) == ("npu", name)
            assert FAULTS[name] in result.fallback_from.reason
            assert result.text == sound.text or name == "nonsense"

        def told():
            decided = {each["name"]: each for each in heard.of("decision")[-1]["models"]}
            asides = [each for name in FAULTS for each in decided[name]["set_aside"]]
            return len(asides) == len(FAULTS) and asides

        for name, aside in zip(FAULTS, wait_for(told, "the decision to tell what is set aside"), strict=True):
            assert (aside["variant"], aside["device"]) == (name, "npu")
            assert FAULTS[name] in aside["reason"]

        def degraded():
            presence = heard.of("presence")[-1]
            reasons = [f"{name}: runs on cpu in place of npu: " for name in FAULTS]
            return presence["health"] == "degraded" and all(each in presence["reason"] for each in reasons)

        wait_for(degraded, "the presence to say so")

        def counted():
            seen = heard.of("telemetry")[-1]
            on = {each["model"]: (each.get("device"), each.get("fallback_from")) for each in seen["engines"]}
            return seen["counters"].get("fallbacks") == len(FAULTS) and on == {
                SOUND: ("cpu", None),
                **dict.fromkeys(FAULTS, ("cpu", "npu")),
            }

        wait_for(counted, "the telemetry to count it")
        heard.wait("result", 1 + len(FAULTS))
        assert agent.stop() == 0
        assert len(heard.of("result")) == 1 + len(FAULTS)
    assert {row["strikes"] for row in rows(agent.state_dir)} == {1}


def test_a_device_that_says_something_else_than_the_processor_does_not_serve(frail, broker):
    """Once the same build has run on the processor, trials elsewhere must begin like it."""
    with (
        frail(SOUND, "plausible", "doubtless") as agent,
        Listener(broker, "edge/v1/agents/edge-01/evt/+") as heard,
        requester(broker) as client,
    ):
        agent.wait_said("engine.ready", 3)
        assert agent.stop() == 0
        agent.start()
        agent.wait_said("engine.ready", 3 + 3)

        def decided(name):
            return next(each for each in heard.of("decision")[-1]["models"] if each["name"] == name)

        wait_for(lambda: decided("plausible")["set_aside"], "the device to be set aside")
        (aside,) = decided("plausible")["set_aside"]
        assert (aside["variant"], aside["device"]) == ("plausible", "npu")
        assert "it said 'quite quite" in aside["reason"]
        assert "; on the processor it began with" in aside["reason"]
        wait_for(lambda: (decided("doubtless")["reference"] or {}).get("used"), "the other to be said to agree")
        assert decided("doubtless")["reference"] == {
            "variant": "doubtless",
            "backend": "onnx",
            "device": "npu",
            "used": True,
            "reason": "it begins as on the processor",
        }
        asked = {name: client.submit(AGENT, prompt="Hello", model=name) for name in ("plausible", "doubtless")}
        found = {name: handle.result(PATIENCE_S) for name, handle in asked.items()}
        assert (found["plausible"].device, found["plausible"].fallback_from.device) == ("cpu", "npu")
        assert (found["doubtless"].device, found["doubtless"].fallback_from) == ("npu", None)
        assert agent.stop() == 0


def test_a_device_that_is_well_again_is_taken_back_when_nothing_runs(frail, broker, tmp_path):
    """A prompt that kills the engine everywhere ends, and does not cost others the device for long."""
    with (
        frail("later", FAULTS_ASIDE_S="1") as agent,
        Listener(broker, "edge/v1/agents/edge-01/evt/presence") as heard,
        requester(broker) as client,
    ):
        agent.wait_said("engine.ready")

        def answer(prompt, max_tokens=TOKENS, **fields):
            return client.submit(AGENT, prompt=prompt, max_tokens=max_tokens, **fields).result(PATIENCE_S)

        def well():
            return heard.of("presence") and heard.of("presence")[-1]["health"] == "ready"

        assert answer("Hello").fallback_from.device == "npu"
        (tmp_path / "models" / "later.well").touch()
        wait_for(well, "the device to be taken back")
        assert (answer("Hello").device, answer("Hello").fallback_from) == ("npu", None)
        asides = len(agent.said("device.set_aside"))
        killed = answer("kill", max_attempts=2)
        assert (killed.state, killed.error.code, killed.attempt) == ("failed", "engine_died", 2)
        assert len(agent.said("device.set_aside")) == asides  # it has served others: the job is to blame
        wait_for(well, "the device to be taken back again")
        assert answer("Hello").device == "npu"
        assert agent.stop() == 0
