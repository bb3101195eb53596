"""Whatever the intake accepts ends, and costs neither the engine nor its other jobs anything.

ACCEPTED_CASES counts the cases, half of them on each engine: every number at its ends, every keyword of a JSON Schema
with every type, grammars, expressions, stop strings and prompts of odd characters. ACCEPTED_SEED makes another run; a
failure names the case by its number.
"""

import itertools
import json
import os
import queue
import random
import sys
from collections import Counter
from types import SimpleNamespace

import pytest
from running import PATIENCE_S, wait_for

from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.engine.backend import ModelSpec
from edge_agent.engine.hosting.process import EngineProcess
from edge_agent.engine.hosting.prover import NotTriedError, Prover
from edge_agent.engine.messages import Failed, Finished, FinishReason, Progress, Ready, Start, Text
from edge_agent.jobs import json_schema
from edge_agent.protocol.messages import decode_request
from edge_agent.running.attempt import Attempt

pytestmark = pytest.mark.engine

CASES = int(os.environ.get("ACCEPTED_CASES", "3000"))
SEED = int(os.environ.get("ACCEPTED_SEED", "1"))
PARALLEL = 4
OTHERS_EVERY = 20
"""After so many cases somebody else asks, and is waited for."""
TOKENS = 3
ENDLESS = 131_072
"""Tokens of a job that is canceled."""

TINY, HUGE = sys.float_info.min, sys.float_info.max
NUMBERS = {
    "temperature": (0, -0.0, 5e-324, 1e-310, TINY, 1e-40, 9.9e-31, 1e-30, 1e-8, 1, 2, 2.0000000000000004, HUGE, True),
    "top_p": (0, 5e-324, 1e-310, TINY, 1e-40, 9.9e-31, 1e-30, 1e-8, 0.9999999999999999, 1, 1.0000000000000002, HUGE),
    "top_k": (-1, 0, 1, 2, 100_000, 100_001, 2**31, 2**63, 10**400, 1.0, True),
    "seed": (-1, 0, 2**31 - 1, 2**31, 2**64, 0.0, None),
    "repetition_penalty": (0, 5e-324, 1e-310, TINY, 1e-40, 9.9e-31, 1e-30, 1e-8, 0.5, 1, 9.999, 10, 10.000001, HUGE),
    "max_tokens": (0, 1, 2, ENDLESS, ENDLESS + 1, 2**63, 1.0),
    "max_completion_tokens": (1, ENDLESS),
}
TEXTS = (
    *("", " ", "\0", "a\0b", "\n\r\t", "\x7f\x80\x9f", "\ufeff", "\u202e\u2066", "\u2028\u2029", "\ufffd\ufffe\uffff"),
    *("\N{PILE OF POO}" * 9, "e" + "\u0301" * 40, "\u2581the", "<0x41>", "<0xFF>", "<|end|>", "<|endoftext|>"),
    *("<|en<|end|>d|>",),
    *("<|image_1|>", "<|system|>", "{{ messages }}", "{% raw %}", "%s%n", "\\u0000", '"', "'", "`", "</s><s>", "<unk>"),
    *("a" * 256, "the " * 60, "\U0010ffff", "\u0e01\u0e33", "\u1100\u1161\u11a8", "fan", " fan", "[INST]", "\x1b[2J"),
)
VALUES = (
    *(None, True, False, 0, 1, 2, -1, 1.5, -0.0, 128, 129, 1024, 1025, TINY, 5e-324, HUGE, -HUGE, 10**15),
    *(10**300, 2**63),
    *(-(10**400), 10**400, 1e15, 0.1, 1e-7, "", "string", "date", "date-time", "uuid", "email", "^a+$", "("),
    *("[^\\n]*", "#"),
    *("#/$defs/a", "#/$defs", "#/properties/b", "http://example.org/a", "\0", "\ud7ff\ue000", "\u2028"),
    *("a" * 300, "\\"),
    *([], [None], ["string"], ["string", "null"], ["string", 1], [[]], [{}], [{"type": "null"}], [True], ["b"]),
    *(["c", "c"],),
    *({}, {"a": True}, {"a": {}}, {"a": []}, {"a": None}, {"type": "string"}, {"type": {}}, {"b": {"format": []}}),
    *({"\0": {}}, {"": {"type": "null"}}, {'"': True}, {"a" * 200: {}}, {"$ref": "#"}),
    *({"enum": [1, "a", None, [], {}]},),
)
"""Every type of JSON, at its ends."""
KNOWN = (*sorted(json_schema._RULES), "const", "default", "$anchor")
UNKNOWN = (
    *("not", "if", "then", "else", "contains", "multipleOf", "uniqueItems", "dependentRequired"),
    *("unevaluatedProperties", "$dynamicRef", "contentEncoding", "nullable", "x-mine", "__proto__", ""),
)
PIECES = {
    "grammar": (
        *("root", "a", "b-c", "::=", "\nroot ::= ", "\na ::= ", "|", "(", ")", "(" * 31, ")" * 31, "(" * 990, "*"),
        *("+", "?"),
        *("{2}", "{0,3}", "{3,}", "{128}", "{,3}", ".", '"', '"x"', '"fan "', '""', r'"\""', r'"\u4e16"', r'"\x00"'),
        *("[a-z]",),
        *(r"[^\"\\]", "[]", "[^]", "[z-a]", r"[\x00-\x1F]", "[a-z&&b]", "#", '# "', "# (\n", "\n", "\\", "\r", "<x>"),
        *("%", "//"),
        *('"\N{PILE OF POO}"', "[\u0e00-\u0eff]", "\ufeff", r'"\ud800"', r'"\U0010ffff"', "/x/", "=", "'x'"),
    ),
    "regex": (
        *("a", "fan", ".", "(", ")", "(?:", "(?=", "(?i)", "(?P<n>", "[a-z]", "[^a]", "[]", "[[:alpha:]]", "[a&&b]"),
        *("*", "+"),
        *("?", "*?", "{2}", "{0,3}", "{128}", "{,3}", "{", "}", "|", "^", "$", "\\", "\\d", "\\w", "\\b", "\\p{L}"),
        *("\\x00",),
        *("\\u4e16", "\\Q", "\\1", "\\", "\n", "\0", "\ufeff", "\N{PILE OF POO}", "(" * 31, "(" * 900, ")" * 31, "#"),
        *("\\/", '"'),
    ),
}
KINDS = ("number", "schema", "schemas", "grammar", "regex", "text")
RANDOM_EVERY = 3
"""One in so many cases has several odd things at once, from the beginning on; the others go through all one by one."""


class Cases:
    """Bodies of jobs, the same for a seed."""

    def __init__(self, seed):
        self.random = random.Random(seed)

    def __iter__(self):
        likely = [*self.texts(), *self.schemas(KNOWN)]
        self.random.shuffle(likely)
        ones = [*self.schemas(UNKNOWN), *likely, *self.numbers()]  # the last of them comes first
        for number in itertools.count():
            yield ones.pop() if ones and number % RANDOM_EVERY else self.several()

    def numbers(self):
        """Every number at its ends, chosen greedily and at random."""
        for field, values in NUMBERS.items():
            for value in values:
                yield {field: value}
                yield {"temperature": 1.0, "seed": 7} | {field: value}

    def texts(self):
        for text in TEXTS:
            yield {"prompt": text}
            yield {"messages": [{"role": role, "content": text} for role in ("system", "assistant", "user")]}
            yield {"stop": text}
            yield {"stop": [text] * 16, "metadata": {text: text}}

    def schemas(self, keywords):
        """Every one of these keywords with every value, alone and where such a keyword stands in a schema."""
        for keyword, value in itertools.product(keywords, VALUES):
            yield shaped({keyword: value})
            yield shaped({"type": ["string", "integer", "array", "object"], keyword: value})
            yield shaped({"properties": {"b": {keyword: value}}, "required": ["b"], "$defs": {"a": {"type": "null"}}})

    def several(self):
        """Several odd things in one job."""
        body = {field: self.random.choice(values) for field, values in NUMBERS.items() if self.one_in(3)}
        if body.get("max_tokens") is not None:
            body.pop("max_completion_tokens", None)
        if self.one_in(3):
            body |= {"prompt": "".join(self.random.choices(TEXTS, k=self.random.randrange(1, 6)))}
        if self.one_in(3):
            body |= {"stop": self.random.sample(TEXTS, self.random.randrange(1, 16))}
        kind = self.random.choice(KINDS)
        if kind in PIECES:
            pieces = "".join(self.random.choices(PIECES[kind], k=self.random.randrange(1, 9)))
            text = f"root ::= {pieces}" if kind == "grammar" else pieces
            body["response_format"] = {"type": kind, kind: text}
        elif kind.startswith("schema"):
            body |= shaped(self.schema(3))
        return body

    def schema(self, depth):
        """Return a schema of some keywords, some of which hold what they should."""
        schema = {}
        for _ in range(self.random.randrange(1, 5)):
            keyword = self.random.choice(UNKNOWN if self.one_in(20) else KNOWN)
            if depth and keyword in json_schema.SCHEMA:
                schema[keyword] = self.schema(depth - 1)
            elif depth and keyword in json_schema.SCHEMAS:
                schema[keyword] = [self.schema(depth - 1) for _ in range(self.random.randrange(1, 4))]
            elif depth and keyword in json_schema.NAMED:
                schema[keyword] = {
                    name: self.schema(depth - 1) for name in self.random.sample(["a", "b", "\0", '"'], 2)
                }
            elif keyword in json_schema._RULES and not self.one_in(8):
                holds = json_schema._RULES[keyword][1]
                schema[keyword] = self.random.choice([value for value in VALUES if holds(value)])
            else:
                schema[keyword] = self.random.choice(VALUES)
        return schema

    def one_in(self, chances):
        return self.random.randrange(chances) == 0


def shaped(schema):
    return {"response_format": {"type": "json_schema", "schema": schema}}


class Engine:
    """A real engine child, and what tries guides for it, as the daemon has them."""

    def __init__(self, folder, backend):
        self.spec = ModelSpec(folder, backend, context_tokens=512, parallel=PARALLEL, threads=1)
        self.prover = Prover()
        self.under_way = {}
        self.ends = Counter()
        self.engines = 0
        self.load()

    def load(self):
        heard = self.heard = queue.SimpleQueue()
        self.process = EngineProcess(
            self.spec, tell=lambda _, event: heard.put(event), gone=lambda _process: heard.put(None)
        )
        self.process.listen()
        assert isinstance(self.heard.get(timeout=PATIENCE_S), Ready)
        self.engines += 1

    def close(self):
        self.process.kill()
        self.prover.close()

    def renew(self):
        """Begin anew in order, as the daemon has an engine do that keeps many compiled guides."""
        while self.under_way:
            self.hear()
        self.process.close(PATIENCE_S)
        assert self.process.exit_reason() == "exit 0"
        self.load()

    def start(self, generation, said, *, cancel=False):
        """Give it a generation, as soon as there is a lane; `said` names it in failures."""
        if self.process.worn:
            self.renew()
        while len(self.under_way) == PARALLEL:
            self.hear()
        try:
            if generation.guide is not None:
                self.prover.prove(generation.guide, self.process)
        except EdgeAgentError as error:
            self.fail(said, error.code, error.message)
            return
        except NotTriedError:  # the daemon asks again later
            self.ends["not tried"] += 1
            return
        self.under_way[generation.job_id] = said, cancel
        kept_bytes = self.prover.proven(generation.guide, self.process) if generation.guide else 0
        self.process.start(Start(generation), kept_bytes=kept_bytes)

    def hear(self):
        """Take one event."""
        event = self.heard.get(timeout=PATIENCE_S)
        assert event is not None, f"the engine died of one of {list(self.under_way.values())}"
        if event.job_id not in self.under_way:
            return  # it had ended before it was canceled
        said, cancel = self.under_way[event.job_id]
        match event:
            case Progress() | Text() if cancel:
                self.under_way[event.job_id] = said, False
                self.process.cancel(event.job_id)
            case Finished(job_id, reason):
                self.ends[reason] += 1
                del self.under_way[job_id]
            case Failed(job_id, code, message):
                self.fail(said, code, message)
                del self.under_way[job_id]

    def fail(self, said, code, message):
        assert code in {Code.BAD_REQUEST, Code.UNSUPPORTED, Code.PROMPT_TOO_LONG}, (said, code, message)
        assert message.isprintable(), (said, message)
        self.ends[code] += 1


def generation(number, body):
    """Return what an engine is asked for a body that the intake takes. Raises EdgeAgentError when it does not."""
    whole = {"job_id": "job", "prompt": "Is the pump on?"} | body
    if "messages" in body:
        del whole["prompt"]
    if not {"max_tokens", "max_completion_tokens"} & body.keys():
        whole["max_tokens"] = TOKENS
    request = decode_request(json.dumps(whole).encode())
    job = SimpleNamespace(row=number, attempt=1, asked=request, images=None)
    return Attempt(job, stream=None, begun_s=0.0, deadline_s=0.0, progress_s=0.0, load_ms=0.0, owner="a").generation


@pytest.mark.timeout(6 * 3600)
@pytest.mark.parametrize("backend", ["onnx", "openvino"])
def test_what_is_accepted_ends_and_costs_nobody_anything(request, backend, record_testsuite_property):
    """No engine dies of it, and whoever asks in between is answered."""
    engine = Engine(request.getfixturevalue({"onnx": "tiny_model", "openvino": "tiny_openvino"}[backend]), backend)
    refused, accepted = Counter(), 0
    try:
        for number, body in enumerate(Cases(SEED)):
            if accepted == CASES // 2:
                break
            try:
                asked = generation(number, body)
            except EdgeAgentError as error:
                refused[error.code] += 1
                continue
            accepted += 1
            engine.start(asked, (number, body), cancel=asked.max_tokens == ENDLESS)
            if accepted % OTHERS_EVERY == 0:
                other = generation(f"other-{number}", {})
                engine.start(other, "somebody else's")
                before = engine.ends.total()
                wait_for(
                    lambda job=other.job_id: engine.hear() or job not in engine.under_way, "somebody else's answer"
                )
                assert engine.ends.total() > before
        while engine.under_way:
            engine.hear()
    finally:
        engine.close()
    assert refused.keys() <= {Code.BAD_REQUEST}
    assert engine.ends[FinishReason.STOP] + engine.ends[FinishReason.LENGTH] > accepted // 4
    assert engine.ends["not tried"] <= accepted // 100
    record_testsuite_property(
        f"accepted_{backend}", dict(engine.ends) | {"refused": refused.total(), "engines": engine.engines}
    )
