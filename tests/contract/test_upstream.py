"""A model elsewhere behind the contract: what is asked, and how each misbehaviour of a server ends."""

import base64
import io
import itertools
import json
import socket
import ssl
import time

import pytest
from authority import Authority
from conftest import SUBJECTS, BareLlamacpp, require
from driving import drive, outcome
from PIL import Image as Pillow
from upstream import CUT, DONE, HANG, Answer, Upstream, chunk, error, usage, words

from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.engine import backend
from edge_agent.engine.messages import (
    Failed,
    Finished,
    FinishReason,
    Generation,
    Guide,
    GuideKind,
    Progress,
    Text,
    TokenCounts,
    Turn,
)
from edge_agent.engine.openai import load as openai
from edge_agent.models.upstream import upstream as spec_of
from edge_agent.settings.load import ServeSection
from edge_agent.settings.upstream import UpstreamSection

QUESTION = (Turn("user", "is the pump on?"),)
KEY = "sk-secret-4711"


@pytest.fixture
def connect(tmp_path):
    """Load a model whose answers come from a server; closed at the end."""
    models = []
    (tmp_path / "key").write_text(f"{KEY}\n")

    def connect(where, *, parallel=4, **table):
        url = where if isinstance(where, str) else where.url
        table = UpstreamSection.model_validate(
            {"url": url, "model": "big", "key_file": tmp_path / "key", "retries": 0} | table
        )
        spec, _ = spec_of(ServeSection(name="cloud", openai=table, parallel=parallel))
        models.append(backend.find("openai", "upstream")(spec, backoff_s=0.01))
        return models[-1]

    yield connect
    for model in models:
        model.close()


@pytest.fixture
def ask(job_id):
    return lambda max_tokens=24, turns=QUESTION, **options: Generation(job_id(), turns, max_tokens, **options)


IMPATIENT = {"said nothing more for 0.2 s": {"token_s": 0.2}, "said nothing for 0.4 s": {"first_token_s": 0.4}}
"""The bounds in the settings that lead to these sentences."""


def text_tokens(said):
    return sum(event.tokens for event in said.events if isinstance(event, Text))


def test_an_answer_is_streamed_and_counted_by_the_server(connect, ask):
    """Two pieces of text, five tokens: the server says so, and the text events add up to it."""
    with Upstream(words("The pump", " is on.", counts=(9, 5))) as server:
        (said,) = drive(connect(server), ask(seed=7, stop=("\n",)))
    assert said.text == "The pump is on."
    assert [event.text for event in said.events if isinstance(event, Text)] == ["The pump", " is on.", ""]
    assert (said.end.reason, said.end.usage) == (FinishReason.STOP, TokenCounts(9, 5))
    assert text_tokens(said) == 5
    assert said.end.prompt_ms > 0
    ((path, headers, body),) = server.asked
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == f"Bearer {KEY}"
    assert body == {
        "model": "big",
        "messages": [{"role": "user", "content": "is the pump on?"}],
        "max_tokens": 24,
        "temperature": 0.0,
        "top_p": 1.0,
        "seed": 7,
        "stop": ["\n"],
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_several_are_answered_at_once(connect, ask):
    """One that hangs holds up no other."""
    with Upstream(Answer([chunk("one"), HANG]), words("two")) as server:
        model = connect(server)
        slow, quick = ask(), ask()
        model.start(slow)
        while not any(isinstance(event, Text) for event in model.step()):
            pass
        (said,) = drive(model, quick)
        assert said.text == "two"
        list(model.cancel(slow.job_id))


def test_without_usage_the_pieces_are_counted(connect, ask):
    with Upstream(Answer([chunk("a"), chunk("b", reason="length"), DONE])) as server:
        (said,) = drive(connect(server), ask())
    assert (said.text, said.end.reason, said.end.usage) == ("ab", FinishReason.LENGTH, TokenCounts(0, 2))


def test_an_answer_without_a_last_word_is_whole_when_its_reason_was_told(connect, ask):
    with Upstream(Answer([b": a comment\n\n", chunk("a"), chunk(reason="stop")])) as server:
        (said,) = drive(connect(server), ask())
    assert (said.text, said.end.reason) == ("a", FinishReason.STOP)


def test_a_stop_string_ends_the_text_whatever_the_server_makes_of_it(connect, ask):
    with Upstream(Answer([chunk("on. EN"), chunk("D and more"), HANG])) as server:
        (said,) = drive(connect(server), ask(stop=("a", "b", "c", "d", "END")))
        assert len(server.bodies[0]["stop"]) == 4
    assert (said.text, said.end.reason) == ("on. ", FinishReason.STOP)


def test_a_server_that_does_not_end_is_left(connect, ask):
    with Upstream(Answer([chunk("word ")] * 9 + [HANG])) as server:
        (said,) = drive(connect(server), ask(5))
        assert server.gone.wait(10)
    assert (said.text, said.end.reason) == ("word " * 5, FinishReason.LENGTH)


def test_a_cancel_closes_the_connection(connect, ask):
    with Upstream(Answer([chunk("so far"), HANG])) as server:
        model, generation = connect(server), ask()
        model.start(generation)
        events = []
        while not any(isinstance(event, Text) for event in events):
            events += model.step()
        events += model.cancel(generation.job_id)
        assert server.gone.wait(10)
    said = outcome(events, generation.job_id)
    assert (said.text, said.end.reason) == ("so far", FinishReason.CANCELED)
    assert not list(model.step())


@pytest.mark.parametrize(
    ("answer", "code", "sentence"),
    [
        (Answer([chunk("so"), CUT]), Code.ENGINE_DIED, "127.0.0.1 broke off its answer"),
        (Answer([chunk("so")]), Code.ENGINE_DIED, "127.0.0.1 broke off its answer"),
        (Answer([chunk("so"), HANG]), Code.ENGINE_DIED, "said nothing more for 0.2 s"),
        (Answer([HANG]), Code.ENGINE_DIED, "said nothing for 0.4 s"),
        (Answer([b": still here\n\n", HANG]), Code.ENGINE_DIED, "said nothing for 0.4 s"),
        (Answer([b"<html>no</html>\n"]), Code.MODEL_ERROR, "something else than a stream"),
        (Answer([b"data: {]\n\n"]), Code.MODEL_ERROR, "cannot be read"),
        (Answer([b'data: {"choices": [{"delta": {"content": 7}}]}\n\n']), Code.MODEL_ERROR, "cannot be read"),
        (Answer([b"data: " + b"[" * 100_000 + b"\n\n"]), Code.MODEL_ERROR, "cannot be read"),
        (Answer([b"data: " + b"x" * 300_000, HANG]), Code.MODEL_ERROR, "a line of over 256 KiB"),
        (Answer([b": " + b"x" * 200_000 + b"\n"] * 100), Code.MODEL_ERROR, "over 16 MiB"),
        (Answer([b'data: {"error": {"message": "x", "type": "server_error"}}\n\n']), Code.ENGINE_DIED, "server_error"),
        (Answer([chunk("so"), chunk(reason="content_filter")]), Code.MODEL_ERROR, "filter"),
        (Answer([chunk("a"), usage(-1, 10)]), Code.MODEL_ERROR, "cannot be read"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_server_that_misbehaves_fails_the_job_and_no_other(connect, ask, answer, code, sentence):
    with Upstream(answer, words("fine")) as server, Upstream(words("fine")) as another:
        model = connect(server, **IMPATIENT.get(sentence, {}))
        (bad,) = drive(model, ask())
        # Who was impatient may have left before the server began: its answer is still there, and would be the next's.
        (good,) = drive(connect(another) if sentence in IMPATIENT else model, ask())
    assert (bad.end.code, good.text) == (code, "fine")
    assert sentence in bad.end.message


@pytest.mark.parametrize(
    ("answer", "code", "sentence"),
    [
        (error(401, f"Incorrect API key provided: {KEY}", code="invalid_api_key"), Code.MODEL_ERROR, "mend key_file"),
        (error(403), Code.MODEL_ERROR, "mend key_file"),
        (error(404, code="model_not_found"), Code.MODEL_MISSING, "no such model"),
        (error(400, code="context_length_exceeded"), Code.PROMPT_TOO_LONG, "shorten"),
        (error(400, type="exceed_context_size_error", n_ctx=256), Code.PROMPT_TOO_LONG, "shorten"),
        (error(400, "This model's maximum context length is 4096 tokens."), Code.PROMPT_TOO_LONG, "shorten"),
        (error(400, param="response_format"), Code.BAD_REQUEST, "response_format: "),
        (error(400, param="messages.[0].content"), Code.BAD_REQUEST, "messages: "),
        (error(400, param="<|secret|>"), Code.MODEL_ERROR, "refuses the request (400, invalid_request_error)"),
        (error(429, code="insufficient_quota"), Code.MODEL_ERROR, "quota"),
        (error(429), Code.QUEUE_FULL, "busy"),
        (error(500), Code.ENGINE_DIED, "failed"),
        (error(302, headers=[("Location", "http://example.org/")]), Code.MODEL_ERROR, "sends us elsewhere"),
        (Answer([b"x" * 1_000_000], 503), Code.ENGINE_DIED, "failed"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_refusal_has_a_code_and_a_sentence_without_the_servers_words(connect, ask, answer, code, sentence):
    with Upstream(answer) as server:
        (said,) = drive(connect(server), ask())
        assert len(server.asked) == 1
    assert said.end.code is code
    assert sentence in said.end.message
    assert "secret" not in said.end.message


@pytest.mark.parametrize("fault", [CUT, error(429), error(503), error(429, headers=[("Retry-After", "1")])])
def test_what_may_pass_is_tried_again(connect, ask, fault):
    """As late as the server asks for."""
    began_s = time.monotonic()
    with Upstream(fault, fault if fault is CUT else error(500), words("yes")) as server:
        (said,) = drive(connect(server, retries=2), ask())
        assert len(server.asked) == 3
    assert said.text == "yes"
    assert time.monotonic() - began_s >= (1 if getattr(fault, "headers", ()) else 0)


def test_it_is_not_tried_again_after_the_first_token(connect, ask):
    with Upstream(Answer([chunk("so"), CUT])) as server:
        (said,) = drive(connect(server, retries=3), ask())
        assert len(server.asked) == 1
    assert said.end.code is Code.ENGINE_DIED


def test_a_server_that_asks_for_more_patience_than_there_is_is_not_waited_for(connect, ask):
    with Upstream(error(429, headers=[("Retry-After", "3600")])) as server:
        (said,) = drive(connect(server, retries=3), ask())
        assert len(server.asked) == 1
    assert said.end.code is Code.QUEUE_FULL


def test_nobody_there_is_said_after_the_last_try(connect, ask):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (said,) = drive(connect(f"http://127.0.0.1:{port}/v1", retries=2), ask())
    assert said.end == Failed(said.end.job_id, Code.ENGINE_DIED, "127.0.0.1 cannot be reached (ConnectError)")


def test_nobody_is_followed_elsewhere(connect, ask):
    """A redirect gives neither prompt nor key to another server."""
    with Upstream() as other, Upstream(error(307, headers=[("Location", f"{other.url}/chat/completions")])) as server:
        (said,) = drive(connect(server), ask())
        assert said.end.code is Code.MODEL_ERROR
        assert not other.asked


def test_proxies_and_passwords_of_the_environment_are_not_used(connect, ask, monkeypatch, tmp_path):
    """Nothing goes anywhere but to the url of the settings."""
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password no\n")
    with Upstream() as proxy, Upstream(words("yes")) as server:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
        (said,) = drive(connect(server), ask())
        assert (said.text, proxy.asked) == ("yes", [])
        assert server.asked[0][1]["Authorization"] == f"Bearer {KEY}"


def test_a_server_must_prove_who_it_is(connect, ask, tmp_path):
    authority = Authority(tmp_path / "ca")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(*authority.issue("server"))
    with Upstream(words("yes"), tls=tls) as server:
        (refused,) = drive(connect(server), ask())
        assert refused.end.code is Code.MODEL_ERROR
        assert "cannot prove who it is" in refused.end.message
        assert not server.asked
        (said,) = drive(connect(server, tls_ca_file=authority.ca), ask())
        assert said.text == "yes"


def test_a_new_key_is_used_without_a_restart_and_a_lost_one_is_said(connect, ask, tmp_path):
    with Upstream(words("a"), words("b")) as server:
        model = connect(server)
        drive(model, ask())
        (tmp_path / "key").write_text("other")
        drive(model, ask())
        (tmp_path / "key").unlink()
        (said,) = drive(model, ask())
    assert [headers["Authorization"] for _, headers, _ in server.asked] == [f"Bearer {KEY}", "Bearer other"]
    assert (said.end.code, said.end.message) == (Code.MODEL_ERROR, "key_file cannot be read: FileNotFoundError")


def test_without_a_key_none_is_sent(connect, ask):
    with Upstream(words("a")) as server:
        drive(connect(server, key_file=None), ask())
    assert "Authorization" not in server.asked[0][1]


def test_images_go_as_data_urls(connect, ask, gallery):
    image = gallery.draw("red", size=(120, 80))
    turns = (Turn("user", "what is shown?", (image,)),)
    with Upstream(words("red")) as server:
        with pytest.raises(EdgeAgentError, match="reads text only"):
            connect(server).start(ask(turns=turns))
        (said,) = drive(connect(server, images=1), ask(turns=turns))
    assert said.text == "red"
    picture, text = server.bodies[0]["messages"][0]["content"]
    assert text == {"type": "text", "text": "what is shown?"}
    head, _, content = picture["image_url"]["url"].partition(",")
    assert head == "data:image/jpeg;base64"
    shown = Pillow.open(io.BytesIO(base64.b64decode(content)))
    assert shown.size == (120, 80)
    assert shown.getpixel((60, 40))[0] > 200


def test_silence_is_told_as_a_sign_of_life(job_id):
    """The parent takes an engine for hung that says nothing; this one waits for another machine."""
    with Upstream(Answer([HANG])) as server:
        table = UpstreamSection(url=server.url, model="big")
        seconds = itertools.count(step=openai.ALIVE_S)
        spec, _ = spec_of(ServeSection(name="cloud", openai=table))
        model = openai.load(spec, now_s=lambda: next(seconds))
        generation = Generation(job_id(), QUESTION, 4)
        model.start(generation)
        events = [event for _ in range(3) for event in model.step()]
        assert events == [Progress(generation.job_id, 0)] * len(events)
        assert len(events) >= 3
        (end,) = model.cancel(generation.job_id)
        assert isinstance(end, Finished)
        model.close()


def test_a_fault_of_ours_ends_the_job_and_leaves_none_without_an_end(job_id):
    """Signs of life went on for ever where the task of an answer had died."""

    def broken():
        raise ZeroDivisionError

    with socket.socket() as nobody:  # bound, and not listening: every try is refused
        nobody.bind(("127.0.0.1", 0))
        table = UpstreamSection(url=f"http://127.0.0.1:{nobody.getsockname()[1]}/v1", model="big", retries=1)
        spec, _ = spec_of(ServeSection(name="cloud", openai=table))
        model = openai.load(spec, chance=broken)
        (said,) = drive(model, Generation(job_id(), QUESTION, 4))
        assert (said.end.code, "ZeroDivisionError" in said.end.message) == (Code.INTERNAL, True)
        model.close()


@pytest.mark.parametrize("content", ["", "two\nlines", "sn\u00f6"])
def test_a_key_that_is_none_cannot_be_loaded(connect, tmp_path, content):
    (tmp_path / "bad").write_text(content)
    with pytest.raises(EdgeAgentError, match="key_file") as raised:
        connect("https://example.org/v1", key_file=tmp_path / "bad")
    assert raised.value.code is Code.MODEL_ERROR
    assert content.strip() not in str(raised.value) or not content


def test_the_body_is_what_the_documents_say(connect, ask):
    """A conversation, in the words of the API."""
    turns = (Turn("system", "be brief"), *QUESTION, Turn("assistant", "no"), Turn("user", "\u00fc?"))
    with Upstream(words("x")) as server:
        drive(connect(server), ask(turns=turns, temperature=0.5, top_p=0.9))
    body = server.bodies[0]
    assert [message["role"] for message in body["messages"]] == ["system", "user", "assistant", "user"]
    assert (body["temperature"], body["top_p"], json.dumps(body["messages"][3])) == (
        0.5,
        0.9,
        '{"role": "user", "content": "\\u00fc?"}',
    )


@pytest.mark.parametrize(("server", "told"), [("openai", 0), ("vllm", 64)])
def test_what_a_server_found_is_told_to_its_owner_alone(connect, ask, server, told):
    """A server that knows owners hears of each by a secret; what another found may have been anybody's."""
    answer = Answer([chunk("x", reason="stop"), usage(70, 1, cached_tokens=64), DONE])
    with Upstream(*[answer] * 4) as there:
        model = connect(there, server=server)
        ends = [drive(model, ask(owner=owner))[0].end for owner in ("", "line-3", "line-3", "line-4")]
    assert [end.usage.cached_tokens for end in ends] == [64, told, told, told]
    nobodys, one, again, other = (body.get("cache_salt") for body in there.bodies)
    assert nobodys is None
    assert one == again
    assert (one != other and "line" not in one) if server == "vllm" else one is other is None


@pytest.fixture(scope="module")
def llama_server(tiny_folder):
    """llama.cpp's own server, with a tiny model whose next token depends on distant context."""
    require(SUBJECTS["llamacpp"])
    return BareLlamacpp(tiny_folder("llamacpp"))


@pytest.mark.engine
class TestLlamaServer:
    """A server that others made."""

    @pytest.fixture
    def model(self, connect, llama_server):
        return connect(f"{llama_server.address}/v1", server="llama-server", model="tiny")

    @pytest.fixture
    def whole(self, llama_server):
        """Return its own answer, asked for in one piece: the text and the counts."""

        def whole(max_tokens, **told):
            body = {"messages": [{"role": "user", "content": QUESTION[0].text}], "max_tokens": max_tokens}
            answer = llama_server.asked("v1/chat/completions", **body, temperature=0, **told)
            return answer["choices"][0]["message"]["content"], answer["usage"]

        return whole

    def test_its_text_and_its_counts_are_ours(self, model, whole, ask):
        """But for the space of the first word, as with every backend."""
        (said,) = drive(model, ask(17))
        text, counts = whole(17)
        assert f" {said.text}" == text
        assert (said.end.usage.prompt_tokens, said.end.usage.completion_tokens) == (counts["prompt_tokens"], 17)
        assert (said.end.reason, text_tokens(said)) == (FinishReason.LENGTH, 17)

    def test_what_it_is_asked_beyond_openais_api_is_heeded(self, model, whole, ask):
        plain, _ = whole(40)
        (penalised,) = drive(model, ask(40, repetition_penalty=1.5))
        assert f" {penalised.text}" == whole(40, repeat_penalty=1.5)[0] != plain
        (guided,) = drive(model, ask(60, guide=Guide(GuideKind.GRAMMAR, 'root ::= "the " ("pump" | "fan")')))
        assert guided.text in {"the pump", "the fan"}
        (stopped,) = drive(model, ask(40, stop=(plain[11:15],)))
        assert (f" {stopped.text}", stopped.end.reason) == (plain[:11], FinishReason.STOP)

    def test_it_finds_nothing_again_where_owners_are_kept_apart(self, model, ask):
        """Not even their own: it has no word for whose a prompt is."""
        turns = (Turn("system", "The pump in hall two is off. " * 5), *QUESTION)
        cached = [
            drive(model, ask(8, turns=turns, owner=owner))[0].end.usage.cached_tokens
            for owner in ("", "", "line-3", "line-3", "guesser")
        ]
        assert cached[1] > 20
        assert cached[2:] == [0, 0, 0]

    def test_its_refusals_are_understood(self, model, ask):
        (long,) = drive(model, ask(8, turns=(Turn("user", "0123456789" * 500),)))
        assert long.end.code is Code.PROMPT_TOO_LONG
        (bad,) = drive(model, ask(8, guide=Guide(GuideKind.GRAMMAR, "root ::= (")))
        assert bad.end.code in {Code.BAD_REQUEST, Code.MODEL_ERROR}
        (good,) = drive(model, ask(3))
        assert good.end.usage.completion_tokens == 3

    def test_a_cancel_is_heard(self, model, ask):
        generation = ask(3000)
        model.start(generation)
        events = []
        while not any(isinstance(event, Text) for event in events):
            events += model.step()
        events += model.cancel(generation.job_id)
        assert outcome(events, generation.job_id).end.reason is FinishReason.CANCELED
        (next_one,) = drive(model, ask(3))
        assert isinstance(next_one.end, Finished)


@pytest.mark.parametrize("place", ["__init__", "feed", "rest"])
def test_whatever_goes_wrong_in_one_answer_ends_it_alone(connect, ask, place, monkeypatch):
    """At the start, in the middle of its text, at a cancel."""
    with Upstream(Answer([chunk("a"), HANG])) as server:
        model = connect(server)
        with monkeypatch.context() as patch:
            patch.setattr(f"edge_agent.engine.openai.load.StopStrings.{place}", lambda *_: int("x"))
            try:
                model.start(victim := ask())
                events = []
                while not events and place == "feed":
                    events = [each for each in model.step() if isinstance(each, Failed)]
                failed = events[0] if events else list(model.cancel(victim.job_id))[-1]
            except EdgeAgentError as error:
                failed = error
        assert (failed.code, place == "__init__") == (Code.INTERNAL, failed.__class__ is EdgeAgentError)
        assert "ValueError" in failed.message
        assert list(model.cancel(victim.job_id)) == []
