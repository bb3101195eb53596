"""The backends under contract, and beside each the bare library's own loop to compare with."""

import json

import pytest

from edge_agent.engine import backend
from edge_agent.engine.backend import ModelSpec
from edge_agent.engine.messages import JobId


class BareOnnx:
    """onnxruntime-genai as its examples use it: the prompt in one call, no pieces, no neighbours."""

    def __init__(self, folder):
        import onnxruntime_genai as og

        self._og = og
        self._model = og.Model(str(folder))
        self._tokenizer = og.Tokenizer(self._model)

    def encode(self, turns):
        messages = json.dumps([{"role": turn.role, "content": turn.text} for turn in turns])
        return self._tokenizer.encode(self._tokenizer.apply_chat_template(messages, add_generation_prompt=True))

    def texts(self, turns, max_tokens, **options):
        """Return the text of each token generated, the end of the turn not among them."""
        prompt = self.encode(turns)
        params = self._og.GeneratorParams(self._model)
        params.set_search_options(max_length=len(prompt) + max_tokens, **({"do_sample": False} | options))
        generator = self._og.Generator(self._model, params)
        generator.append_tokens(prompt)
        stream = self._tokenizer.create_stream()
        ends = {int(token) for token in self._tokenizer.eos_token_ids}
        texts = []
        while not generator.is_done():
            generator.generate_next_token()
            token = int(generator.get_next_tokens()[0])
            if token not in ends:
                texts.append(stream.decode(token))
        return texts


BARE = {"onnx": BareOnnx}


@pytest.fixture(scope="session", params=[pytest.param(name, marks=pytest.mark.engine) for name in backend.names()])
def backend_name(request):
    """Every backend there is."""
    return request.param


@pytest.fixture(scope="session")
def load(backend_name):
    """Load a folder with this backend; closed at the end of the session."""
    models = []

    def load(folder, *, context_tokens=8192, parallel=4):
        spec = ModelSpec(folder, backend_name, context_tokens, parallel, threads=1)
        models.append(backend.find(backend_name)(spec))
        return models[-1]

    yield load
    for model in models:
        model.close()


@pytest.fixture(scope="session")
def model(load, tiny_model):
    """Random weights whose next token depends on distant context; used by one test after the other."""
    return load(tiny_model)


@pytest.fixture(scope="session")
def bare(backend_name, tiny_model):
    """The bare library with the same weights."""
    return BARE[backend_name](tiny_model)


@pytest.fixture
def job_id():
    """Names of jobs, never the same twice."""
    numbers = iter(range(1, 1000))
    return lambda: JobId(f"{next(numbers)}.1")
