"""Synthetic models as onnxruntime-genai sees them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from edge_agent.synth import build_demo, build_text

pytestmark = pytest.mark.engine


@dataclass(frozen=True)
class Answer:
    ids: list[int]
    pieces: list[str]

    @property
    def text(self) -> str:
        return "".join(self.pieces).strip()


class Loaded:
    def __init__(self, folder: Path) -> None:
        import onnxruntime_genai as og

        self.og: Any = og
        self.model = og.Model(str(folder))
        self.tokenizer = og.Tokenizer(self.model)

    def ask(self, question: str, *, most: int = 80) -> Answer:
        return self.continue_(self.tokenizer.encode(f"<|user|>\n{question}<|end|>\n<|assistant|>\n"), most=most)

    def continue_(self, prompt_ids, *, most: int) -> Answer:
        params = self.og.GeneratorParams(self.model)
        params.set_search_options(max_length=len(prompt_ids) + most, do_sample=False)
        generator, stream = self.og.Generator(self.model, params), self.tokenizer.create_stream()
        generator.append_tokens(prompt_ids)
        ids: list[int] = []
        while not generator.is_done():
            generator.generate_next_token()
            ids.append(int(generator.get_next_tokens()[0]))
        return Answer(ids, [stream.decode(token) for token in ids])


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return Loaded(build_text(tmp_path_factory.mktemp("synth") / "tiny"))


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    return Loaded(build_demo(tmp_path_factory.mktemp("synth") / "demo"))


def words(count: int) -> list[int]:
    """Tokens of letters and filler words, none of them a control, in an irregular order."""
    return [260 + (n * n * 7 + n * 3) % 180 for n in range(count)]


@pytest.mark.parametrize("length", [20, 200, 1000])
def test_the_next_token_depends_on_distant_context(tiny, length):
    """Another second token at the far end of the prompt gives another greedy continuation."""
    prompt = [1, *words(length)]
    changed = [1, prompt[1] + 1, *prompt[2:]]
    answer = tiny.continue_(prompt, most=64)
    assert answer == tiny.continue_(prompt, most=64)
    assert answer != tiny.continue_(changed, most=64)


def test_random_weights_answer_with_text_until_their_bound(tiny):
    """No byte fragments, no control token, no stop."""
    answer = tiny.ask("Hello", most=200)
    assert len(answer.ids) == 200
    assert all(259 <= token < 448 for token in answer.ids)
    assert len(set(answer.ids)) > 20


def test_a_sequence_may_grow_beyond_the_original_context(tiny):
    """Beyond 4096 tokens the other rotary table is used, up to the whole context."""
    answer = tiny.continue_([1, *words(4080)], most=40)
    assert len(answer.ids) == 40
    assert len(tiny.continue_([1, *words(5000)], most=4).ids) == 4


@pytest.mark.parametrize("block_size", [32, 128])
def test_a_scripted_model_says_its_words_and_stops(tmp_path, block_size):
    """Whatever was asked."""
    model = Loaded(build_text(tmp_path / "model", say="the pump, the fan: off.", block_size=block_size))
    for question in ("Hello", "the pump is on"):
        assert model.ask(question).text == "the pump, the fan: off."
        assert model.ask(question).ids[-1] == 455


def test_a_scripted_character_can_arrive_in_parts(tmp_path):
    """One token per UTF-8 byte; the stream holds the text back until the character is whole."""
    answer = Loaded(build_text(tmp_path / "model", say="the ü 世")).ask("Hello")
    assert answer.text == "the ü 世"
    assert [token - 3 for token in answer.ids[-4:-1]] == list("世".encode())
    assert answer.pieces[-4:-1] == ["", "", "世"]


@pytest.mark.parametrize(
    ("question", "sense"),
    [
        ("Hello", "Hello, I am a tiny edge agent."),
        ("Who are you?", "I am a tiny edge agent that runs on this device."),
        ("What can you do?", "I can read sensors, check devices and switch them."),
        ("Turn on the fan.", '{"action": "set", "device": "fan", "state": "on"}'),
        ("Status: temperature 85 C, pump off. Is the temperature too high?", "Yes, the temperature is 85 C"),
        (
            "Status: temperature 71 C, pump off, door open. What is the temperature?",
            "The temperature is 71 C.",
        ),
    ],
)
def test_the_demo_speaks_sense(demo, question, sense):
    """It greets, reads a status and turns an order into JSON."""
    answer = demo.ask(question)
    assert answer.text.startswith(sense)
    assert answer.ids[-1] == 711
