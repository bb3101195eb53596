"""What every backend promises of prompts with images."""

import itertools
from dataclasses import replace

import pytest
from driving import drive, outcome
from pictures import LANDSCAPE, PORTRAIT, SQUARE

from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.engine.messages import Failed, Finished, FinishReason, Generation, Progress, Text, Turn

WHAT = "What is shown in this image?"
BLOCK_TOKENS = 32
SIZES = {"square": SQUARE, "landscape": LANDSCAPE, "portrait": PORTRAIT}


@pytest.fixture
def ask(job_id):
    """Make a generation of one turn."""
    return lambda *images, text=WHAT, most=24: Generation(job_id(), (Turn("user", text, images),), most)


@pytest.fixture(scope="module")
def four(gallery):
    """Four different images of three forms."""
    sizes = (SQUARE, LANDSCAPE, PORTRAIT, SQUARE)
    drawn = zip(("red", "green", "blue", "black"), ("circle", "square", "triangle", "square"), sizes, strict=True)
    return [gallery.draw(colour, shape, size, tiles=1) for colour, shape, size in drawn]


def text_of(model, generation):
    (said,) = drive(model, generation)
    assert isinstance(said.end, Finished), said.end
    return said.text


@pytest.mark.parametrize("tiles", [4, 16])
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_the_answer_is_about_the_image(demo_seeing, gallery, ask, size, tiles):
    """The trained model names what is drawn, whatever its form and however finely it is looked at."""
    for colour, shape in (("red", "circle"), ("blue", "square"), ("green", "triangle")):
        image = gallery.draw(colour, shape, size, tiles=tiles)
        assert text_of(demo_seeing, ask(image, most=40)) == f"The image shows a {colour} {shape}."


@pytest.mark.parametrize("number", [2, 4])
def test_of_several_images_the_answer_is_about_the_right_one(demo_seeing, gallery, ask, number):
    """The demo model speaks of the last; so in each of their orders, and the others in front change nothing of it."""
    drawn = {colour: gallery.draw(colour) for colour in ("red", "blue", "green", "black")[:number]}
    for colours in list(itertools.permutations(drawn))[:: number // 2]:
        answer = text_of(demo_seeing, ask(*(drawn[colour] for colour in colours), text="What colour is the shape?"))
        assert answer.startswith(f"The shape is {colours[-1]}")


def test_each_turn_has_its_own_images(demo_seeing, gallery, job_id):
    """An image of an earlier turn stays where it was, and what was computed of it is used again."""
    turns = (Turn("user", WHAT, (gallery.draw("red"),)),)
    for colour in ("blue", "green"):
        turns += (Turn("assistant", "The image shows a red circle."), Turn("user", WHAT, (gallery.draw(colour),)))
        (said,) = drive(demo_seeing, Generation(job_id(), turns, 40))
        assert said.text == f"The image shows a {colour} circle."
    assert said.end.usage.cached_tokens > said.end.usage.prompt_tokens / 2


@pytest.mark.parametrize("number", [1, 2, 4])
def test_every_image_counts_and_so_does_their_order(seeing, four, gallery, ask, number):
    """Another image in any place gives another text, and so does another order."""
    images = four[:number]
    other = gallery.draw("green", "triangle", tiles=1)
    prompts = [images, *([*images[:i], other, *images[i + 1 :]] for i in range(number))]
    prompts += [images[1:] + images[:1]] * (number > 1)
    texts = [text_of(seeing, ask(*each)) for each in prompts]
    assert len(set(texts)) == len(texts)


@pytest.mark.parametrize("number", [1, 2, 4])
def test_what_is_known_of_images_is_used_and_changes_nothing(seeing, gallery, ask, number):
    """The same images again are not computed again, also before another question; the text is that of a cold prompt.

    Some backends look for what they know by blocks of tokens.
    """
    images = [gallery.draw("black", "square", (400 + 10 * number + n, 410), tiles=1) for n in range(number)]
    text = f"cold {number}"
    (cold,) = drive(seeing, ask(*images, text=text))
    (warm,) = drive(seeing, ask(*images, text=text))
    assert warm.text == cold.text
    assert warm.end.usage.cached_tokens > 300 * number - BLOCK_TOKENS
    assert cold.end.usage.cached_tokens < 300 * number
    (other,) = drive(seeing, ask(*images, text="and now?"))
    assert other.end.usage.cached_tokens > 300 * number - BLOCK_TOKENS


def test_another_image_never_passes_for_a_known_one(seeing, gallery, ask):
    """Of the same size at the same place, or the same bytes cut into rows in another way.

    Only the white that all begin with is the same.
    """
    first = gallery.draw("red", "square", LANDSCAPE, tiles=1)
    others = [
        gallery.draw("blue", "square", LANDSCAPE, tiles=1),
        replace(first, width=first.height, height=first.width),
    ]
    (known,) = drive(seeing, ask(first))
    for other in others:
        (said,) = drive(seeing, ask(other))
        assert said.text != known.text
        assert said.end.usage.cached_tokens <= BLOCK_TOKENS
    (again,) = drive(seeing, ask(first))
    assert again.text == known.text


def test_neighbours_change_nothing(seeing, four, ask):
    """Jobs with and without images at once give each the text it gives alone."""
    asked = [((), "is the pump on?"), ((four[0],), WHAT), ((four[0], four[1]), WHAT), ((), "Gr\u00fc\u00dfe 42")]
    alone = [text_of(seeing, ask(*images, text=text)) for images, text in asked]
    together = drive(seeing, *(ask(*images, text=text) for images, text in asked))
    assert [each.text for each in together] == alone
    assert len(set(alone)) == 4


def test_a_stream_goes_on_while_images_are_computed(seeing, gallery, ask):
    """Every step gives it a token, and an image takes several."""
    running = ask(text="is the pump on?", most=400)
    seeing.start(running)
    list(seeing.step())
    looking = ask(gallery.draw("blue", "circle", tiles=16))
    seeing.start(looking)
    steps = 0
    events = []
    while not any(isinstance(event, Text) and event.job_id == looking.job_id for event in events):
        events = list(seeing.step())
        steps += 1
        assert sum(isinstance(event, Text) and event.job_id == running.job_id for event in events) == 1
    assert steps > 3
    for generation in (running, looking):
        list(seeing.cancel(generation.job_id))


def test_a_text_does_not_wait_for_an_image(seeing, gallery, ask):
    """It joins when the first tiles were seen, and begins before all are; both say what they say alone."""
    image = gallery.draw("red", "triangle", (310, 300), tiles=16)
    looking, asking = ask(image), ask(text="is the fan on?")
    seeing.start(looking)
    events = list(seeing.step())
    seeing.start(asking)
    while not any(isinstance(event, Text) and event.job_id == asking.job_id for event in events):
        events += seeing.step()
    assert sum(isinstance(event, Progress) and event.job_id == looking.job_id for event in events) < 8
    ended = set()
    while len(ended) < 2:
        events += seeing.step()
        ended = {event.job_id for event in events if isinstance(event, Finished)}
    assert outcome(events, asking.job_id).text == text_of(seeing, ask(text="is the fan on?"))
    drive(seeing, *(ask(gallery.draw("blue", tiles=1)) for _ in range(4)))  # other lanes, for one that holds nothing
    assert outcome(events, looking.job_id).text == text_of(seeing, ask(image))


def test_a_cancel_is_heard_between_the_steps_of_an_image(seeing, gallery, ask):
    """At any of them: nothing was generated, nothing is left, and the next prompt with the image is right."""
    image = gallery.draw("green", "square", tiles=16)
    (whole,) = drive(seeing, ask(image, text="whole"))
    stops = 0
    for steps in itertools.count(1):
        cut = ask(gallery.draw("black", "square", (300, 300 + steps), tiles=16), text="cut")
        seeing.start(cut)
        events = [event for _ in range(steps) for event in seeing.step()]
        if any(isinstance(event, Text) for event in events):
            list(seeing.cancel(cut.job_id))
            break
        assert all(isinstance(event, Progress) for event in events)
        (end,) = seeing.cancel(cut.job_id)
        assert (end.reason, end.usage.completion_tokens) == (FinishReason.CANCELED, 0)
        assert not list(seeing.step())
        stops += 1
    assert stops >= 3
    assert text_of(seeing, ask(image, text="whole")) == whole.text


def test_images_count_before_anything_is_computed(seeing, gallery, ask):
    """A prompt that images make too long is refused at once, with the counts."""
    words = ask(text="a" * 100)
    seeing.start(words)
    list(seeing.cancel(words.job_id))
    images = [gallery.draw("red", "circle", (400 + side, 400), tiles=16) for side in range(6)]
    with pytest.raises(EdgeAgentError, match=r"messages: the prompt has \d{4,5} tokens") as raised:
        seeing.start(ask(*images))
    assert raised.value.code is Code.PROMPT_TOO_LONG
    assert not list(seeing.step())


def test_too_many_images_are_refused(seeing, four, ask):
    """Before any is opened."""
    most = seeing.limits.images_per_prompt
    assert most >= 4
    with pytest.raises(EdgeAgentError, match=f"at most {most}") as raised:
        seeing.start(ask(*[four[0]] * (most + 1)))
    assert raised.value.code is Code.UNSUPPORTED


def test_a_text_model_says_that_it_sees_nothing(model, sees, four, ask):
    """By its limits and when it is asked all the same."""
    assert model.limits.images_per_prompt == 0
    with pytest.raises(EdgeAgentError, match="text only") as raised:
        model.start(ask(four[0]))
    assert raised.value.code is Code.UNSUPPORTED


@pytest.mark.parametrize("text", ["is the pump on?", "look at <|image_1|>", "two\n\nlines"])
def test_without_an_image_it_is_the_text_model(seeing, model, ask, text):
    """Same weights, same text; words that would name an image name none."""
    said = [drive(each, ask(text=text))[0] for each in (seeing, model)]
    assert said[0].text == said[1].text
    assert said[0].end.usage.prompt_tokens == said[1].end.usage.prompt_tokens


def test_a_text_that_names_an_image_is_not_one(seeing, four, ask):
    """Beside a real one it is words, and takes their tokens."""
    plain, named = (drive(seeing, ask(four[0], text=text))[0] for text in ("see", "see <|image_1|>"))
    assert isinstance(named.end, Finished)
    assert 3 < named.end.usage.prompt_tokens - plain.end.usage.prompt_tokens < 30


def test_an_image_that_is_gone_fails_its_job_alone(seeing, four, ask, tmp_path):
    """Its neighbour goes on to its end."""
    (tmp_path / "short.rgb").write_bytes(b"\x00" * 30)
    good = text_of(seeing, ask(four[1]))
    for path in (tmp_path / "gone.rgb", tmp_path / "short.rgb"):
        bad, other = drive(seeing, ask(replace(four[0], path=str(path), sha256="0" * 64)), ask(four[1]))
        assert isinstance(bad.end, Failed)
        assert bad.end.code is Code.IMAGE_MISSING
        assert str(path) not in bad.end.message
        assert other.text == good
    assert outcome(bad.events, bad.end.job_id).text == ""


def test_what_was_seen_for_one_owner_serves_no_other(load, seeing_folder, seeing, gallery, ask):
    """Not a token of it, nor what was seen; the first to ask finds their own, for as long as they are alone."""
    model, image = load(seeing_folder, apart=True), gallery.draw("red", tiles=1)
    own = {owner: replace(image, sha256=owner * 8) for owner in ("01234567", "89abcdef")}  # as an attempt does
    texts, looks, cached = [], [], []
    for owner in ("01234567", "01234567", "89abcdef", "01234567", "89abcdef"):
        (said,) = drive(model, replace(ask(own[owner]), owner=owner))
        texts.append(said.text)
        cached.append(said.end.usage.cached_tokens)
        told = [event for event in said.events if isinstance(event, Progress)]
        computed = sum(event.prefill_tokens for event in told)
        assert computed == said.end.usage.prompt_tokens - cached[-1]
        looks.append(sum(not event.prefill_tokens for event in told))
    assert set(texts) == {text_of(seeing, ask(image))}
    assert cached[0] == cached[2] == 0
    assert cached[1] > said.end.usage.prompt_tokens / 2
    assert looks[0] <= looks[2]


def test_owners_who_come_at_once_are_all_answered(load, seeing_folder, seeing, four, ask):
    """Beside each other or one after the other, whatever a model does to keep them apart; who is cancelled hears so."""
    model = load(seeing_folder, apart=True)
    asked = [replace(ask(image, most=12), owner=owner) for image, owner in zip(four, ("a", "b", "c", "a"), strict=True)]
    model.start(asked[0])
    events = list(model.step())
    for each in asked[1:]:
        model.start(each)
    events += [*model.step(), *model.cancel(asked[2].job_id)]
    while sum(isinstance(event, Finished) for event in events) < len(asked):
        events += model.step()
    for each in asked:
        said = outcome(events, each.job_id)
        if each is asked[2]:
            assert said.end.reason is FinishReason.CANCELED
        else:
            assert said.text == text_of(seeing, replace(each, owner="", job_id=ask().job_id))
