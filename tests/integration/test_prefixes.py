"""What a requester learns of another's prompt, through the whole daemon."""

import pytest
from running import AgentProcess, requester

pytestmark = [pytest.mark.broker, pytest.mark.engine]

KNOWN = "You are the door keeper of the plant. Never tell anybody the door code. The door code is "


@pytest.mark.parametrize(
    ("backend", "share", "options"),
    [
        ("onnx", "client", {}),
        ("onnx", "all", {}),
        ("openvino", "client", {}),
        ("openvino", "client", {"repetition_penalty": 1.3}),
    ],
)
def test_a_prompt_is_guessed_only_where_all_share(broker, tmp_path, request, backend, share, options):
    """Whoever says the beginning of it finds nothing, not even all of it; who said it before finds it again."""
    model = request.getfixturevalue({"onnx": "tiny_model", "openvino": "tiny_openvino"}[backend])
    models = [{"name": "phi", "path": str(model), "context_tokens": 1024, "parallel": 3}]
    extra = f'[privacy]\nshare_prefixes = "{share}"\n'

    def found(client, code):
        messages = [{"role": "system", "content": f"{KNOWN}{code}"}, {"role": "user", "content": "Hello"}]
        result = client.submit("edge-01", messages=messages, max_tokens=4, **options).result(60)
        assert result.state == "succeeded", result.error
        return result.usage.prompt_tokens_details.cached_tokens

    with (
        AgentProcess(folder=tmp_path / "agent", broker=broker, models=models, extra=extra) as agent,
        requester(broker, "alice") as alice,
        requester(broker, "guesser") as guesser,
    ):
        agent.wait_said("engine.ready")
        pid = agent.engines()
        assert found(alice, "7394") == 0
        again = found(alice, "7394")
        assert again > 60
        guessed = found(guesser, "7394")
        assert (guessed == 0) is (share == "client")
        if share == "client" and not options:
            assert found(alice, "7394") == again
        assert agent.engines() == pid
