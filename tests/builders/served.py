"""Models as their makers build them, by our engines: prompt ids, greedy answers, long prompts, several at once.

    python -m tests.builders.served BUILDS [--json FILE]

For every folder BUILDS/ENGINE/NAME there is BUILDS/original/NAME with what transformers says of it, see originals.py.
A prompt longer than what a build computes right must be refused, and nothing else.
"""

import argparse
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.engine import backend
from edge_agent.engine.backend import ModelSpec
from edge_agent.engine.messages import Failed, Finished, Generation, JobId, Text, Turn
from edge_agent.engine.text.detokenizer import Vocabulary
from edge_agent.engine.text.prompt import PromptMaker

CONTEXT_TOKENS, PARALLEL = 8192, 4
PLAIN = {"openvino": {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}}


@dataclass
class Row:
    """What was seen of one build."""

    engine: str
    name: str
    context_tokens: int = 0
    prompts: int = 0
    answers: int = 0
    together: int = 0
    refused: int = 0
    asked: int = 0
    wrong: list[str] = field(default_factory=list)


def run(model, generations):
    """Answer some together; return their texts by job."""
    texts = {each.job_id: "" for each in generations}
    for each in generations:
        model.start(each)
    ended = 0
    while ended < len(generations):
        for event in model.step():
            match event:
                case Text(job_id, text):
                    texts[job_id] += text
                case Failed(_, _, message):
                    raise RuntimeError(message)
                case Finished():
                    ended += 1
    return [texts[each.job_id] for each in generations]


def seen(engine, folder, original):
    row = Row(engine, folder.name)
    options = PLAIN.get(engine, {})
    model = backend.find(engine)(ModelSpec(folder, engine, CONTEXT_TOKENS, PARALLEL, threads=2, options=options))
    row.context_tokens = model.limits.context_tokens
    maker, vocabulary = PromptMaker.read(original), Vocabulary.read(original)
    kept = []
    for number, each in enumerate(json.loads((original / "said.json").read_text())):
        turns = tuple(Turn(message["role"], message["content"]) for message in each["messages"])
        expected = b"".join(map(vocabulary.piece, each["answer"])).decode(errors="replace").removeprefix(" ")
        generation = Generation(JobId(f"{number}.1"), turns, len(each["answer"]))
        row.asked += 1
        ((ids,), _) = maker.make(turns)
        row.prompts += ids == each["prompt"]
        try:
            (text,) = run(model, [generation])
        except EdgeAgentError as error:
            row.refused += error.code is Code.PROMPT_TOO_LONG and len(ids) >= row.context_tokens
            continue
        row.answers += text == expected
        if text != expected:
            row.wrong.append(f"{len(ids)} tokens: {text[:40]!r}, not {expected[:40]!r}")
        kept.append((generation, text))
    for place in range(0, len(kept), PARALLEL):
        some = kept[place : place + PARALLEL]
        again = run(model, [Generation(JobId(f"{each.job_id}.again"), each.turns, each.max_tokens) for each, _ in some])
        row.together += sum(text == alone for text, (_, alone) in zip(again, some, strict=True))
    model.close()
    return row


def main():
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("builds", type=Path)
    options.add_argument("--json", type=Path)
    given = options.parse_args()
    rows = []
    for engine in ("onnx", "openvino"):
        for folder in sorted((given.builds / engine).iterdir()) if (given.builds / engine).is_dir() else ():
            rows.append(row := seen(engine, folder, given.builds / "original" / folder.name))
            answered = row.asked - row.refused
            sys.stdout.write(
                f"{row.engine:9} {row.name:16} context {row.context_tokens:6}: prompt ids {row.prompts}/{row.asked}, "
                f"answers {row.answers}/{answered}, together {row.together}/{answered}, too long {row.refused}\n"
            )
            for each in row.wrong:
                sys.stdout.write(f"{'':10}{each}\n")
            sys.stdout.flush()
    if given.json:
        given.json.write_text(json.dumps([vars(row) for row in rows], indent=1))
    return int(any(row.wrong or row.prompts < row.asked for row in rows))


if __name__ == "__main__":
    sys.exit(main())
