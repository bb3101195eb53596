"""Tokens per second over MQTT ÷ the bare library's loop: same model, prompt and threads, in turns.

Over MQTT a job's time runs from its submission to its result at the requester, so it holds everything: broker, commit,
claim, sockets, chunks. The bare loop runs in a process of its own, from `append_tokens` to the last decoded piece.
Prompts differ from pair to pair, so that no prefix of an earlier one is reused. Many short pairs: a machine's speed
drifts within a minute. While one side computes, the other's processor time is watched: an engine that spins when idle
would falsify both figures, and shows here.
"""

import json
import multiprocessing
import os
import time
from contextlib import closing
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import psutil

from hardware.probe import probe
from tests.bench.rig import Figure, arguments, cpu_s, interleave, median, model_folder, report, rig, wait_idle
from tests.running import requester

PROMPT = "Order {}: check the {} pumps of hall {}, one after the other, and write down what you see."
CONTEXT_TOKENS = 1024
ANSWER_S = 300.0


@dataclass(frozen=True, slots=True)
class Spell:
    """One generation: its tokens and how long it took."""

    tokens: int
    seconds: float

    @property
    def per_s(self) -> float:
        return self.tokens / self.seconds


def bare(folder: Path, threads: int, line: Connection) -> None:
    """Answer prompts that come over a pipe, as a program of a dozen lines would; None ends it."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import onnxruntime_genai as og  # in this process only

    config = og.Config(str(folder))
    config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}))
    model = og.Model(config)
    tokenizer = og.Tokenizer(model)
    line.send(None)
    while (asked := line.recv()) is not None:
        prompt, max_tokens = asked
        begun_s = time.monotonic()
        chat = json.dumps([{"role": "user", "content": prompt}])
        ids = tokenizer.encode(tokenizer.apply_chat_template(chat, add_generation_prompt=True))
        parameters = og.GeneratorParams(model)
        parameters.set_search_options(max_length=len(ids) + max_tokens, do_sample=False)
        generator, stream, tokens = og.Generator(model, parameters), tokenizer.create_stream(), 0
        generator.append_tokens(ids)
        while not generator.is_done():
            generator.generate_next_token()
            stream.decode(int(generator.get_next_tokens()[0]))
            tokens += 1
        line.send(Spell(tokens, time.monotonic() - begun_s))


class Bare:
    """The bare loop in its process."""

    def __init__(self, folder: Path, threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._line, theirs = context.Pipe()
        self._process = context.Process(target=bare, args=(folder, threads, theirs), name="bare", daemon=True)
        self._process.start()
        self.recv()
        self.run("Hello", 4)  # the first answer is slower; engines have given theirs when they are ready
        self.process = psutil.Process(self._process.pid)

    def recv(self):
        if not self._line.poll(ANSWER_S):
            raise TimeoutError(f"the bare loop said nothing for {ANSWER_S:.0f} s")
        return self._line.recv()

    def run(self, prompt: str, max_tokens: int) -> Spell:
        self._line.send((prompt, max_tokens))
        return self.recv()

    def close(self) -> None:
        self._line.send(None)
        self._process.join(10)


def over_mqtt(client, prompt: str, max_tokens: int) -> tuple[Spell, int]:
    """Run a job; return its spell and how many prompt tokens were not computed anew."""
    begun_s = time.monotonic()
    handle = client.submit("edge-01", prompt=prompt, max_tokens=max_tokens, ttl_s=3600, timeout_s=ANSWER_S)
    result = handle.result(ANSWER_S)
    seconds = time.monotonic() - begun_s
    if result.state != "succeeded":
        raise RuntimeError(f"the job ended {result.state}: {result.error}")
    return Spell(result.usage.completion_tokens, seconds), result.usage.prompt_tokens_details.cached_tokens


def main() -> None:
    granted = probe().cpu.granted_cores
    options = arguments(__doc__, model="full", tokens=32, pairs=24, threads=granted).parse_args()
    folder = model_folder(options.model)
    spells: dict[str, list[Spell]] = {"mqtt": [], "bare": []}
    cached, busy_s = [], []
    with (
        rig(folder, context_tokens=CONTEXT_TOKENS, threads=options.threads) as made,
        closing(Bare(folder, options.threads)) as alone,
    ):
        made.start()
        (engine,) = made.agent.engines()
        with requester(made.broker) as client:

            def mqtt(prompt: str) -> Spell:
                spell, reused = over_mqtt(client, prompt, options.tokens)
                cached.append(reused)
                return spell

            def measure(side: str, run, other: psutil.Process, pair: int) -> float:
                wait_idle(other)
                before_s = cpu_s(other)
                spell = run(PROMPT.format(pair, 7 + pair, 3 * pair + 1))
                busy_s.append(cpu_s(other) - before_s)
                spells[side].append(spell)
                return spell.per_s

            measured = interleave(
                options.pairs,
                lambda pair: measure("mqtt", mqtt, alone.process, pair),
                lambda pair: measure("bare", lambda prompt: alone.run(prompt, options.tokens), engine, pair),
            )
    figures = [
        median("over MQTT ÷ bare loop", [mqtt / bare for mqtt, bare in measured], "", at_least=0.98),
        median("over MQTT", [mqtt for mqtt, _ in measured], "tok/s"),
        median("bare loop", [bare for _, bare in measured], "tok/s"),
        Figure("processor time of the idle side, most", max(busy_s), "s"),
        Figure("reused prompt tokens, most", max(cached), "tokens"),
    ]
    lengths = {side: sorted({spell.tokens for spell in each}) for side, each in spells.items()}
    report(
        "Throughput: one job at a time",
        figures,
        as_json=options.json,
        notes=[f"{folder}, {options.threads} threads, {options.pairs} pairs, tokens out: {lengths}"],
    )


if __name__ == "__main__":
    main()
