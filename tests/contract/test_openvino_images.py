"""The openvino backend's images: against the library's own pipeline, and what its cache of beginnings may share."""

import json
import random
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from driving import drive
from pictures import LANDSCAPE
from PIL import Image as Pillow

from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.engine import backend
from edge_agent.engine.backend import ModelSpec
from edge_agent.engine.batching.picture import Picture
from edge_agent.engine.messages import Finished, Generation, Progress, Text, Turn
from edge_agent.images.phi_tiling import grid

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def load(openvino_genai):
    """Load a folder; closed at the end of the module."""
    models = []

    def load(folder, **options):
        models.append(backend.find("openvino")(ModelSpec(folder, "openvino", 4096, 4, threads=1, options=options)))
        return models[-1]

    yield load
    for model in models:
        model.close()


@pytest.fixture(scope="module")
def model(load, tiny_openvino_vision):
    """The tiny model with eyes."""
    return load(tiny_openvino_vision)


@pytest.fixture
def ask(job_id):
    """Make a generation of one turn."""
    return lambda *images, text="see?", most=24: Generation(job_id(), (Turn("user", text, images),), most)


def noise(size, seed=0):
    return Pillow.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8))


def test_the_text_is_the_bare_librarys(openvino_genai, load, tiny_openvino_vision, gallery, ask, tmp_path):
    """Where no pixel is scaled: of an image of one tile, which the library is told of.

    It begins each text between images with <s>, so here we do too.
    """
    from openvino import Tensor

    folder = shutil.copytree(tiny_openvino_vision, tmp_path / "model")
    settings = folder / "preprocessor_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"num_crops": 1}))
    model = load(folder)
    maker = model._reader.maker

    def begun(text, *, begin):
        return maker.tokenizer.encode(text, begin=not begin)

    words = SimpleNamespace(added=maker.tokenizer.added, encode=begun)
    model._reader = replace(model._reader, maker=replace(maker, tokenizer=words))
    scheduler = openvino_genai.SchedulerConfig()
    scheduler.enable_prefix_caching = False
    scheduler.max_num_batched_tokens = 4096
    options = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "u8", "KEY_CACHE_QUANT_MODE": "BY_TOKEN"}
    bare = openvino_genai.ContinuousBatchingPipeline(folder, scheduler, "CPU", options)
    config = openvino_genai.GenerationConfig(max_new_tokens=24, do_sample=False)
    for number in (1, 2):
        drawn = [noise((336, 336), seed) for seed in range(number)]
        tensors = [Tensor(np.asarray(each).copy()) for each in drawn]
        (expected,) = bare.generate(["see?"], images=[tensors], generation_config=[config])
        (said,) = drive(model, ask(*(gallery.hang(each, tiles=1) for each in drawn)))
        assert said.text == expected.texts[0].removeprefix(" ")
        assert said.end.usage.prompt_tokens == expected.perf_metrics.get_num_input_tokens()


def test_neighbouring_patches_are_one_token(model):
    """Two by two, line by line over all tiles of a row; a separator ends each line."""
    eyes = model._reader.eyes
    side, columns = 24, 2
    places = np.arange(2 * columns * side * side, dtype=np.float32).reshape(2 * columns, side, side)
    tiles = [np.repeat(each.reshape(1, -1, 1), 1024, axis=2) for each in places]
    lines = eyes._lines(tiles, 2, columns).reshape(2 * 12, columns * 12 + 1, 4, 1024)
    for row, column in ((0, 0), (5, 11), (5, 12), (12, 0), (23, 23)):
        tile = places[row // 12 * columns + column // 12]
        y, x = row % 12 * 2, column % 12 * 2
        expected = [tile[y, x], tile[y, x + 1], tile[y + 1, x], tile[y + 1, x + 1]]
        assert lines[row, column, :, 0].tolist() == expected
    assert (lines[:, -1].reshape(24, -1) == eyes._row_end).all()


@pytest.mark.parametrize("tiles", [1, 2, 5, 16])
@pytest.mark.parametrize("size", [(50, 50), LANDSCAPE, (30, 900), (640, 360)])
def test_an_image_has_the_tokens_that_its_tiles_say(model, gallery, size, tiles):
    """Known before anything is computed."""
    picture = Picture(gallery.hang(noise(size), tiles=tiles), 0)
    while picture.features is None:
        model._reader.eyes.look(picture)
    assert len(picture.features) == grid(*size, tiles=tiles).tokens == picture.end


def test_a_step_looks_at_one_tile(model, gallery, ask):
    """Having said so before; so a cancel waits no longer, nor does a neighbour's token."""
    looked, look = [], model._reader.eyes.look
    model._reader.eyes.look = lambda picture: (looked.append(len(picture.tiles)), look(picture))
    try:
        generation = ask(gallery.hang(noise((400, 400), 5), tiles=16))
        model.start(generation)
        for tile in range(17):
            events = model.step()
            assert isinstance(next(events), Progress)
            assert len(looked) == tile
            assert not list(events)
            assert looked == list(range(tile + 1))
    finally:
        del model._reader.eyes.look
    list(model.cancel(generation.job_id))


def test_beside_a_running_image_another_is_another(model, gallery, ask):
    """No more is claimed of the cache than what both begin with."""
    red, blue = (gallery.draw(colour, "square", tiles=1) for colour in ("red", "blue"))
    running = ask(red, most=1000)
    model.start(running)
    while not any(isinstance(event, Text) for event in list(model.step())):
        pass
    (same,), (other,) = (drive(model, ask(image, text="and this?")) for image in (red, blue))
    assert same.end.usage.cached_tokens > 280
    assert other.end.usage.cached_tokens < 32
    assert other.text != same.text
    list(model.cancel(running.job_id))


@pytest.fixture(scope="module")
def cold(load, tiny_openvino_vision):
    """The same model, which keeps nothing of past prompts."""
    from edge_agent.engine.openvino import load as openvino

    usual = openvino._scheduler

    def forgetful(*known):
        scheduler = usual(*known)
        scheduler.enable_prefix_caching = False
        return scheduler

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(openvino, "_scheduler", forgetful)
        return load(tiny_openvino_vision)


@pytest.mark.parametrize("seed", range(2))
def test_joins_and_leaves_with_images_change_no_text(model, cold, gallery, job_id, seed):
    """Each generation has the text of one alone without a cache, whoever came, went and was cancelled meanwhile."""
    rng = random.Random(seed)
    drawn = [
        gallery.draw(colour, size=size, tiles=1) for colour in ("red", "green") for size in ((300, 300), LANDSCAPE)
    ]
    under_way, texts, alone, ended = {}, {}, {}, 0
    while ended < 25:
        while len(under_way) < model.limits.parallel and rng.random() < 0.5:
            text = "".join(rng.choices("0123456789 pumfan", k=rng.randrange(1, 120)))
            turns = (Turn("user", text[:40], tuple(rng.choices(drawn, k=rng.randrange(3)))),)
            turns += (Turn("assistant", "yes"), Turn("user", text, tuple(rng.choices(drawn, k=rng.randrange(2)))))
            turns = rng.choice([turns, *alone]) if rng.random() < 0.5 else turns
            generation = Generation(job_id(), turns, 24)
            model.start(generation)
            under_way[generation.job_id], texts[generation.job_id] = generation, ""
        for event in model.step():
            if isinstance(event, Text):
                texts[event.job_id] += event.text
            elif isinstance(event, Finished):
                turns = under_way.pop(event.job_id).turns
                if turns not in alone:
                    (said,) = drive(cold, Generation(job_id(), turns, 24))
                    alone[turns] = said.text
                    assert said.end.usage.cached_tokens == 0
                assert texts[event.job_id] == alone[turns]
                ended += 1
        if under_way and rng.random() < 0.1:
            list(model.cancel(job := rng.choice(list(under_way))))
            del under_way[job]
    for job in under_way:
        list(model.cancel(job))
    assert len(set(alone.values())) > len(alone) / 2


@pytest.mark.parametrize("separator", [None, [0.0] * 64, "words"], ids=repr)
def test_a_build_without_fitting_separators_is_refused(load, tiny_openvino_vision, tmp_path, separator):
    """At the load, not with the first image."""
    folder = shutil.copytree(tiny_openvino_vision, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"sub_GN": separator}))
    with pytest.raises(EdgeAgentError) as raised:
        load(folder)
    assert raised.value.code is Code.MODEL_ERROR
