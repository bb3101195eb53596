"""Jobs that come together, over MQTT ÷ openvino-genai's own pipeline of continuous batching, in turns.

The bare loop is a program of a dozen lines in a process of its own: it requests all prompts at once and steps until all
are answered, with the same settings, the same room and its own prefix cache. Prompts have `--common` tokens in common
and are new each round, so each side computes what they share once. With `--jobs 1` it is one job beside one.
"""

import multiprocessing
import time
from contextlib import closing
from multiprocessing.connection import Connection
from pathlib import Path

from edge_agent.engine.backend import ModelSpec
from hardware.probe import probe
from tests.bench.batch import prompts, run
from tests.bench.rig import Figure, arguments, interleave, median, model_folder, report, rig
from tests.running import requester

ANSWER_S = 600.0
BLOCK_TOKENS = 32


def bare(spec: ModelSpec, line: Connection) -> None:
    """Answer lists of prompts that come over a pipe with the tokens of all answers; None ends it."""
    from edge_agent.engine.openvino.load import TEXT_GRAPH, properties

    import openvino_genai as genai  # in this process only  # isort: skip

    scheduler = genai.SchedulerConfig()
    scheduler.num_kv_blocks = spec.context_tokens // BLOCK_TOKENS * spec.parallel
    scheduler.enable_prefix_caching = True
    scheduler.dynamic_split_fuse = True
    told = properties(spec, graph=TEXT_GRAPH)
    pipeline = genai.ContinuousBatchingPipeline(str(spec.path), scheduler, "CPU", told)
    tokenizer, number = pipeline.get_tokenizer(), 0
    line.send(None)
    while (asked := line.recv()) is not None:
        texts, max_tokens = asked
        handles = []
        for text in texts:
            number += 1
            chat = tokenizer.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True)
            ids = tokenizer.encode(chat, add_special_tokens=False).input_ids
            config = genai.GenerationConfig(max_new_tokens=max_tokens, do_sample=False)
            handles.append(pipeline.add_request(number, ids, config))
        while pipeline.has_non_finished_requests():
            pipeline.step()
        answers = [output.generated_ids for handle in handles for output in handle.read_all()]
        for answer in answers:
            tokenizer.decode(answer)
        line.send(sum(map(len, answers)))


class Bare:
    """The bare loop in its process."""

    def __init__(self, spec: ModelSpec) -> None:
        context = multiprocessing.get_context("spawn")
        self._line, theirs = context.Pipe()
        self._process = context.Process(target=bare, args=(spec, theirs), name="bare", daemon=True)
        self._process.start()
        self._recv()

    def run(self, texts: list[str], max_tokens: int) -> float:
        """Return the tokens of all answers per second."""
        begun_s = time.monotonic()
        self._line.send((texts, max_tokens))
        return self._recv() / (time.monotonic() - begun_s)

    def _recv(self):
        if not self._line.poll(ANSWER_S):
            raise TimeoutError(f"the bare loop said nothing for {ANSWER_S:.0f} s")
        return self._line.recv()

    def close(self) -> None:
        self._line.send(None)
        self._process.join(10)


def measure(folder: Path, options) -> list[Figure]:
    sizes = {"common": options.common, "own": options.own, "shared": True}
    spec = ModelSpec(folder, "openvino", options.context, options.jobs, options.threads)
    with (
        rig(folder, parallel=options.jobs, context_tokens=options.context, threads=options.threads) as made,
        closing(Bare(spec)) as alone,
    ):
        made.start()
        with requester(made.broker) as client:

            def over_mqtt(_: int) -> float:
                return run(client, prompts(options.jobs, **sizes), options.tokens).per_s

            def beside(_: int) -> float:
                return alone.run(prompts(options.jobs, **sizes), options.tokens)

            over_mqtt(0), beside(0)  # the first is slower
            pairs = interleave(options.pairs, over_mqtt, beside)
    return [
        median("over MQTT ÷ bare loop", [ours / theirs for ours, theirs in pairs], "", at_least=0.98),
        median("over MQTT", [ours for ours, _ in pairs], "tok/s out"),
        median("bare loop", [theirs for _, theirs in pairs], "tok/s out"),
    ]


def main() -> None:
    granted = probe().cpu.granted_cores
    options = arguments(
        __doc__, model="full-openvino", jobs=8, common=192, own=32, tokens=32, pairs=6, context=1024, threads=granted
    ).parse_args()
    folder = model_folder(options.model)
    note = f"{folder}, {options.jobs} at once, {options.pairs} pairs, {options.threads} threads"
    report(
        f"Beside the bare pipeline: {options.jobs} jobs", measure(folder, options), as_json=options.json, notes=[note]
    )


if __name__ == "__main__":
    main()
