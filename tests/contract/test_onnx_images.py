"""The onnx backend's images against the library's own image processor and loop, and how it cuts them."""

import io
import json
import random
import shutil

import numpy as np
import pytest
from driving import drive
from pictures import LANDSCAPE, PORTRAIT, SQUARE
from PIL import Image as Pillow

from edge_agent.engine import backend
from edge_agent.engine.backend import ModelSpec
from edge_agent.engine.batching.lane_parts import Prompt
from edge_agent.engine.batching.picture import Album
from edge_agent.engine.messages import Generation, Progress, Turn
from edge_agent.images.phi_tiling import TILE_PIXELS, grid

pytestmark = pytest.mark.engine

BANNER = (1190, 135)
"""The flattest costs the fewest tokens of those that the library cuts into up to 16 tiles."""
LONGROPE_TOKENS = 4097


class BareVision:
    """onnxruntime-genai as its examples use it: an image processor, and a prompt with its images in one call."""

    def __init__(self, folder):
        import onnxruntime_genai as og

        self._og = og
        self._model = og.Model(str(folder))
        self._processor = self._model.create_multimodal_processor()
        self._tokenizer = og.Tokenizer(self._model)

    def inputs(self, text, *pictures):
        """Return what the processor makes of a question about pictures."""
        encoded = []
        for picture in pictures:
            file = io.BytesIO()
            picture.save(file, "PNG")
            encoded.append(file.getvalue())
        tags = "".join(f"<|image_{number}|>\n" for number in range(1, len(pictures) + 1))
        message = json.dumps([{"role": "user", "content": tags + text}])
        prompt = self._tokenizer.apply_chat_template(message, add_generation_prompt=True)
        return self._processor(prompt, images=self._og.Images.open_bytes(*encoded) if encoded else None)

    def text(self, most, text, *pictures):
        """Return the greedy answer."""
        inputs = self.inputs(text, *pictures)
        params = self._og.GeneratorParams(self._model)
        params.set_search_options(max_length=inputs["input_ids"].shape()[-1] + most, do_sample=False)
        generator = self._og.Generator(self._model, params)
        generator.set_inputs(inputs)
        stream = self._tokenizer.create_stream()
        texts = []
        while not generator.is_done():
            generator.generate_next_token()
            texts.append(stream.decode(int(generator.get_next_tokens()[0])))
        return "".join(texts).strip()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The tiny model with eyes."""
    from edge_agent.synth import TINY_VISION, build_text

    return build_text(tmp_path_factory.mktemp("vision") / "tiny", shape=TINY_VISION)


@pytest.fixture(scope="module")
def bare(folder):
    return BareVision(folder)


@pytest.fixture(scope="module")
def load():
    """Load a folder; closed at the end of the module."""
    models = []

    def load(folder, context_tokens=8192, parallel=2):
        models.append(backend.find("onnx")(ModelSpec(folder, "onnx", context_tokens, parallel, threads=1)))
        return models[-1]

    yield load
    for model in models:
        model.close()


@pytest.fixture(scope="module")
def model(load, folder):
    return load(folder)


def noise(size, seed=0, *, smooth=False):
    """Return a picture of random pixels, or of few large ones."""
    shape = (8, 8, 3) if smooth else (size[1], size[0], 3)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    return Pillow.fromarray(pixels).resize(size, Pillow.Resampling.BICUBIC)


@pytest.fixture
def ask(job_id):
    """Make a generation of one turn."""
    return lambda text, *images, most=24: Generation(job_id(), (Turn("user", text, images),), most)


ODD = [(336, 336), (1, 1), (1800, 64), (74, 279), (1344, 1343), (1000, 333)]


@pytest.mark.parametrize("size", [*ODD, *((random.Random(n).randint(40, 1800), 700) for n in range(6))], ids=str)
def test_pixels_and_places_are_those_of_the_librarys_processor(bare, model, gallery, size):
    """Tiles equal bit for bit, the overview to the last digit; so do the grid and all token ids around the image."""
    picture = noise(size, smooth=size[0] % 2 == 0)
    inputs = bare.inputs("see?", picture)
    image = gallery.hang(picture, tiles=16)
    prompt = Prompt.of(Generation("1.1", (Turn("user", "see?", (image,)),), 1), model._prompts)
    ids = inputs["input_ids"].as_numpy()[0]
    assert [max(token, -1) for token in prompt.tokens] == ids.tolist()
    (seen,) = prompt.pictures
    assert [seen.grid.rows * TILE_PIXELS, seen.grid.columns * TILE_PIXELS] == inputs["image_sizes"].as_numpy()[
        0
    ].tolist()
    pixels = seen.open().tiles(0, seen.tile_count)
    theirs = inputs["pixel_values"].as_numpy()[0]
    np.testing.assert_array_equal(pixels[1:], theirs[1 : seen.tile_count])
    np.testing.assert_allclose(pixels[0], theirs[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "sizes",
    [(SQUARE,), (PORTRAIT,), (LANDSCAPE,), (SQUARE, BANNER), (PORTRAIT, LANDSCAPE), (BANNER,) * 4],
    ids=["square", "portrait", "landscape", "square and banner", "portrait and landscape", "four banners"],
)
def test_the_text_is_the_bare_librarys(bare, model, gallery, ask, sizes):
    """Strips, pieces and lanes change nothing, with images of several forms, also beyond the original context."""
    pictures = [noise(size, seed, smooth=True) for seed, size in enumerate(sizes)]
    images = [gallery.hang(picture, tiles=16) for picture in pictures]
    (said,) = drive(model, ask("see?", *images))
    assert said.text.strip() == bare.text(24, "see?", *pictures)
    assert said.end.usage.completion_tokens == 24


def test_an_image_is_cut_into_strips(load, folder, gallery, ask, job_id):
    """No step looks at more than three of its 17 tiles, and each is told; a known one is not looked at again."""
    model = load(folder)
    looked, run = [], model._encoder._run

    def noting(tiles):
        looked.append(len(tiles))
        return run(tiles)

    model._encoder._run = noting
    (said,) = drive(model, ask("see?", gallery.hang(noise(SQUARE), tiles=16)))
    assert looked == [2, 2, 2, 2, 2, 2, 2, 3]
    assert sum(isinstance(event, Progress) and not event.prefill_tokens for event in said.events) > len(looked)
    again = gallery.hang(noise(SQUARE), tiles=16)
    drive(model, ask("and?", again))
    drive(model, Generation(job_id(), (Turn("system", "be brief"), Turn("user", "see?", (again,))), 4))
    assert len(looked) == 8


def test_a_build_that_takes_whole_images_alone_gets_them(load, folder, model, tmp_path, gallery, ask):
    """One whose graph knows no other number of tiles than 17."""
    import onnx

    path = shutil.copytree(folder, tmp_path / "model") / "phi-3.5-v-instruct-vision.onnx"
    graph = onnx.load(path, load_external_data=False)
    node = next(node for node in graph.graph.node if node.output[0] == "/vision/images")
    whole = onnx.numpy_helper.from_array(np.array([1, 17]), "whole")
    node.CopyFrom(onnx.helper.make_node("Constant", [], [node.output[0]], value=whole))
    path.write_bytes(graph.SerializeToString())
    stiff = load(path.parent)
    for tiles, size in ((16, SQUARE), (4, PORTRAIT), (1, LANDSCAPE)):
        image = gallery.hang(noise(size), tiles=tiles)
        assert drive(stiff, ask("see?", image))[0].text == drive(model, ask("see?", image))[0].text


def test_a_text_that_outgrows_the_original_context_looks_again(load, folder, gallery, ask):
    """Beyond it all is computed anew with the long factors, the image as well: every token is that of one call."""
    model = load(folder)
    image = gallery.hang(noise(SQUARE), tiles=16)
    image_tokens = grid(*SQUARE, tiles=16).tokens
    generation = ask("7" * (LONGROPE_TOKENS - image_tokens - 20), image, most=20)
    model.start(generation)
    sequence = model._sequences[generation.job_id]
    while model._sequences:
        list(model.step())
    assert sequence.prompt_tokens < LONGROPE_TOKENS < len(sequence.tokens)
    (picture,) = sequence.pictures
    model._encoder._album = Album(0)
    while picture.features is None:
        model._encoder.look(picture)
    ids = np.array([[max(token, -1) for token in sequence.tokens]])
    for length in range(LONGROPE_TOKENS, len(sequence.tokens)):
        logits = model._decoder.run(range(1, 2), ids[:, :length], [length], [picture.features])
        assert int(logits.argmax()) == sequence.tokens[length]
