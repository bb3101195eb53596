"""From what is wanted to a build on disk: what is said on the way, and what is loaded in the end."""

import json
import os
import threading
from dataclasses import replace
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

import pytest
from fakes import PATIENCE_S, machine
from running import wait_for
from test_memory import write_build

from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.engine.hosting.engines import Engines
from edge_agent.engine.hosting.served import NotYetError
from edge_agent.engine.messages import Canary
from edge_agent.models import catalogue
from edge_agent.models.build_store import BuildStore
from edge_agent.models.choose import Measurement
from edge_agent.models.manifest import MANIFEST, Manifest, StoredFile
from edge_agent.models.measurements import identity
from edge_agent.models.provision import DecisionSources, Provision, here
from edge_agent.models.reference_answers import FIRST_WORDS_FILE, QUESTION, ReferenceAnswers
from edge_agent.models.runtimes import Runtime, Runtimes
from edge_agent.settings.load import ServeSection

ONNX = "phi-3.5-mini-onnx-cpu-int4"
OPENVINO = "phi-3.5-mini-openvino-int4"
BOTH = Runtimes((Runtime("onnx", "cpu", "CPU"), Runtime("openvino", "cpu", "CPU")))
SERVE = ServeSection(name="phi-3.5-mini")
WEIGHTS_BYTES = {"onnx": 2_780_000_000, "openvino": 2_080_000_000}


class Bench:
    """A provision whose sources are set by hand."""

    def __init__(self, folder, *serves, fetch=None, images_bytes=0, **sources):
        self.folder = folder
        self.store = {}
        self.machine = machine(16)
        self.news = threading.Semaphore(0)
        self.provision = Provision(
            serves or (SERVE,),
            catalogue=catalogue.read(),
            sources=replace(
                DecisionSources(
                    machine=lambda: self.machine,
                    bandwidth=lambda: 40e9,
                    runtimes=lambda: BOTH,
                    installed=lambda: dict(self.store),
                    measured=dict,
                    fetch=fetch,
                    compiled=folder / "compiled",
                    compiled_bytes=20,
                ),
                **sources,
            ),
            engines=Engines({}),
            images_bytes=images_bytes,
            retry_s=0.01,
        )
        self.provision.on_changed.connect(self.news.release)

    def install(self, name, backend):
        folder = self.folder / name
        folder.mkdir()
        self.store[name] = write_build(folder, backend, WEIGHTS_BYTES[backend])
        return folder

    def settled(self, times=1):
        """Wait until it said so often that something changed."""
        for _ in range(times):
            assert self.news.acquire(timeout=PATIENCE_S), "nothing changed"
        return self.provision

    def __enter__(self):
        self.provision.start()
        return self

    def __exit__(self, *_exception):
        self.provision.stop()


def test_the_best_build_in_the_store_is_loaded_as_decided(tmp_path):
    """With its device, its library's settings and its name."""
    bench = Bench(tmp_path)
    folder = bench.install(OPENVINO, "openvino")
    with bench:
        spec, limit_bytes = bench.settled().fallbacks(SERVE.name).prepare(0)
    assert (spec.path, spec.backend, spec.device, spec.variant) == (folder, "openvino", "cpu", OPENVINO)
    assert spec.options == {"DYNAMIC_QUANTIZATION_GROUP_SIZE": "128"}
    assert spec.revision == "03cc3b1f99c6cb2b11cd17137642971712970b1f"
    assert limit_bytes


def test_without_any_build_it_is_said_exactly_what_to_do(tmp_path):
    """The command stands in the sentence."""
    with Bench(tmp_path) as bench, pytest.raises(EdgeAgentError) as caught:
        bench.settled().fallbacks(SERVE.name).prepare(0)
    assert caught.value.code is Code.MODEL_MISSING
    assert f"edge-agent models pull {OPENVINO}" in caught.value.message


def test_where_nothing_may_be_fetched_what_is_here_is_good_enough(tmp_path):
    """Not the best of all, but the best there is."""
    bench = Bench(tmp_path)
    bench.install(ONNX, "onnx")
    with bench:
        spec, _ = bench.settled().fallbacks(SERVE.name).prepare(0)
    assert spec.variant == ONNX


def test_when_memory_is_taken_meanwhile_the_next_best_is_loaded(tmp_path):
    """The decision was made on another day."""
    bench = Bench(tmp_path)
    bench.install(ONNX, "onnx")
    with bench:
        bench.settled()
        bench.machine = machine(3)
        with pytest.raises(EdgeAgentError) as caught:
            bench.provision.fallbacks(SERVE.name).prepare(0)
        assert caught.value.code is Code.NO_FIT
        bench.install(OPENVINO, "openvino")
        bench.machine = machine(3.6)
        spec, _ = bench.provision.fallbacks(SERVE.name).prepare(0)
    assert spec.variant == OPENVINO


def test_while_a_build_is_fetched_it_is_said_how_far_it_is(tmp_path):
    """And when it is there it is loaded."""
    go = threading.Event()

    def fetch(variant, tell, _stop):
        tell("34 % of 2.1 GB")
        bench.install(variant.name, variant.backend)
        assert go.wait(PATIENCE_S)
        return bench.store[variant.name]

    bench = Bench(tmp_path, fetch=fetch)
    with bench:
        bench.settled()

        def said():
            with pytest.raises(NotYetError) as caught:
                bench.provision.fallbacks(SERVE.name).prepare(0)
            return str(caught.value)

        wait_for(lambda: said() == "34 % of 2.1 GB", "the note, which comes a moment after the start")
        go.set()
        spec, _ = bench.settled().fallbacks(SERVE.name).prepare(0)
    assert spec.variant == OPENVINO


def test_a_failed_fetch_is_told_and_tried_again(tmp_path):
    """With growing pauses, until it works."""
    failures = iter([EdgeAgentError(Code.MODEL_MISSING, "the hub answers 503"), None])

    def fetch(variant, _tell, _stop):
        if failure := next(failures):
            raise failure
        return bench.install(variant.name, variant.backend)

    bench = Bench(tmp_path, fetch=fetch)
    with bench:
        bench.settled(4)
        spec, _ = bench.provision.fallbacks(SERVE.name).prepare(0)
    assert spec.variant == OPENVINO


def test_a_store_that_cannot_be_read_is_told_and_looked_at_again(tmp_path):
    """As on a disk that is not there yet; the thread lives on."""
    bench = Bench(tmp_path)
    failures = iter([EdgeAgentError(Code.MODEL_MISSING, "/models cannot be read: Permission denied")])

    def installed():
        for failure in failures:
            raise failure
        return dict(bench.store)

    bench = Bench(tmp_path, installed=installed)
    bench.install(OPENVINO, "openvino")
    with bench:
        with pytest.raises(EdgeAgentError, match="Permission denied"):
            bench.settled().fallbacks(SERVE.name).prepare(0)
        spec, _ = bench.settled().fallbacks(SERVE.name).prepare(0)
    assert spec.variant == OPENVINO


def test_a_failed_fetch_leaves_what_is_here_in_use(tmp_path):
    """A hub that is away costs no answer."""
    asked = threading.Event()

    def fetch(_variant, _tell, stop):
        asked.set()
        assert stop.wait(0) is False
        raise EdgeAgentError(Code.MODEL_MISSING, "the hub cannot be reached")

    bench = Bench(tmp_path, fetch=fetch)
    bench.install(ONNX, "onnx")
    with bench:
        spec, _ = bench.settled(2).fallbacks(SERVE.name).prepare(0)
    assert asked.is_set()
    assert spec.variant == ONNX


def test_a_build_that_was_cut_is_as_if_it_were_not_here(tmp_path):
    """A file that lost its end would only make the engine die."""
    store = BuildStore(tmp_path)
    folder = store.folder / "a"
    folder.mkdir()
    (folder / "weights").write_bytes(b"123")
    file = StoredFile(name="weights", size_bytes=3, sha256=sha256(b"123").hexdigest(), vouched="nobody")
    manifest = Manifest(name="a", origin="imported", at=datetime(2026, 1, 1, tzinfo=UTC), files=(file,))
    (folder / MANIFEST).write_bytes(manifest.encode())
    assert here(store) == {"a": folder}
    (folder / "weights").write_bytes(b"12")
    assert here(store) == {}


def test_a_machine_that_can_run_nothing_says_why(tmp_path):
    """Every build with its reason."""
    bench = Bench(tmp_path)
    bench.machine = machine(1)
    with bench, pytest.raises(EdgeAgentError, match=f"{ONNX} on cpu: needs .* 1024 MiB are free") as caught:
        bench.settled().fallbacks(SERVE.name).prepare(0)
    assert caught.value.code is Code.NO_FIT


def test_a_name_that_the_catalogue_does_not_have_is_said(tmp_path):
    """With what it may have meant."""
    serve = ServeSection(name="phi", model="phi-3.5-mni")
    with Bench(tmp_path, serve) as bench, pytest.raises(EdgeAgentError, match="did you mean") as caught:
        bench.settled().fallbacks(serve.name).prepare(0)
    assert caught.value.code is Code.UNKNOWN_MODEL


def test_a_folder_of_ones_own_is_loaded_as_it_is(tmp_path):
    """No decision, no library asked, no fetch."""

    def never():
        raise AssertionError("nobody needs to know")

    serve = ServeSection(name="ours", path=write_build(tmp_path))
    with Bench(tmp_path, serve, runtimes=never) as bench:
        spec, _ = bench.provision.fallbacks(serve.name).prepare(0)
        assert bench.provision.decisions() == {}
    assert (spec.path, spec.backend, spec.variant) == (tmp_path, "onnx", tmp_path.name)


def test_a_folder_of_ones_own_gets_the_settings_that_were_found_best_for_it(tmp_path):
    """For this device; another folder gets none."""
    serve = ServeSection(name="ours", path=write_build(tmp_path))
    found = Measurement(20.0, {"session.x": "1"}, 2)
    best = {(identity(tmp_path), "cpu"): found, ("sha256:0", "cpu"): Measurement(1.0)}
    spec, _ = Bench(tmp_path, serve, measured=lambda: best).provision.fallbacks(serve.name).prepare(0)
    assert (spec.options, spec.threads) == ({"session.x": "1"}, 2)
    told = serve.model_copy(update={"threads": 1})
    assert Bench(tmp_path, told, measured=lambda: best).provision.fallbacks(told.name).prepare(0)[0].threads == 1


def test_a_build_of_the_catalogue_gets_them_too(tmp_path):
    """Its threads as its settings."""
    found = {(ONNX, "cpu"): Measurement(20.0, {"session.x": "1"}, 2)}
    bench = Bench(tmp_path, measured=lambda: found)
    bench.install(ONNX, "onnx")
    with bench:
        spec, _ = bench.settled().fallbacks(SERVE.name).prepare(0)
    assert (spec.options, spec.threads) == ({"session.x": "1"}, 2)


def test_what_is_compiled_for_minutes_is_kept_within_bounds(tmp_path):
    """By the folder, the context and the device; what was not used for longest goes first, what is loaded never."""
    folder = write_build(tmp_path, "openvino", 2**20)
    npu = ServeSection(name="ours", path=folder, backend="openvino", device="npu", context_tokens=512)
    cpu = npu.model_copy(update={"name": "cpu", "device": "cpu"})
    longs = [npu.model_copy(update={"name": str(tokens), "context_tokens": tokens}) for tokens in (256, 512, 1024)]
    bench = Bench(tmp_path, cpu, *longs)
    assert bench.provision.fallbacks(cpu.name).prepare(0)[0].options == {}

    def compiled(tokens, blob=b"compiled"):
        own = Path(bench.provision.fallbacks(str(tokens)).prepare(0)[0].options["CACHE_DIR"])
        (own / "blob").write_bytes(blob)
        os.utime(own, (tokens, tokens))  # as if it had been used then
        return own

    first, second = compiled(256), compiled(512)
    assert first.parent == second.parent
    assert compiled(256) == first
    os.utime(first, (600, 600))
    third = compiled(1024)
    assert first.is_dir()
    assert third.is_dir()
    compiled(1024)  # 24 of 20 bytes
    assert not second.exists()
    assert (first / "blob").is_file()
    compiled(1024, blob=bytes(99))
    compiled(1024)
    assert (third / "blob").is_file()
    assert not first.exists()


def test_a_folder_without_a_model_is_said():
    """And which key to mend."""
    serve = ServeSection(name="ours", path=Path("/absent"))
    with pytest.raises(EdgeAgentError, match=r"mend models\.serve\.path") as caught:
        Bench(Path("/absent"), serve).provision.fallbacks(serve.name).prepare(0)
    assert caught.value.code is Code.MODEL_MISSING


def test_from_the_first_model_that_sees_memory_is_left_to_who_decodes_images(tmp_path):
    """For it, and for every load after it."""
    serves = []
    for name in ("reads", "sees"):
        (tmp_path / name).mkdir()
        folder = write_build(tmp_path / name, "openvino", WEIGHTS_BYTES["openvino"])
        serves.append(ServeSection(name=name, path=folder, backend="openvino", context_tokens=4096, parallel=16))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "phi3_v"}))
    provision = Bench(tmp_path, *serves, images_bytes=2 * 2**30).provision
    alone = Bench(tmp_path, *serves).provision

    def lanes(one, serve):
        return one.fallbacks(serve.name).prepare(0)[0].parallel

    reads, sees = serves
    whole = lanes(alone, reads)
    assert lanes(provision, reads) == whole > 1
    assert lanes(provision, sees) < lanes(alone, sees)
    assert lanes(provision, reads) < whole


def test_a_folder_of_ones_own_goes_on_on_the_processor(tmp_path):
    """When its device fails; unless the settings forbid it."""
    folder = write_build(tmp_path, "openvino", 2**20)
    npu = ServeSection(name="ours", path=folder, backend="openvino", device="npu", context_tokens=512)
    alone = npu.model_copy(update={"name": "alone", "fallback": False})
    bench = Bench(tmp_path, npu, alone)
    for serve, moves in ((npu, True), (alone, False)):
        fallbacks = bench.provision.fallbacks(serve.name)
        spec, _ = fallbacks.prepare(0)
        assert spec.device == "npu"
        assert fallbacks.failed(spec, "it died") is moves
        assert fallbacks.prepare(0)[0].device == ("cpu" if moves else "npu")
    ((name, (aside,)),) = bench.provision.set_aside().items()
    assert (name, aside.variant, aside.device, aside.reason) == ("ours", folder.name, "npu", "it died")


def test_a_build_is_asked_what_its_family_is_asked(tmp_path):
    """And compared with what it said on the processor, with this library."""
    known = ReferenceAnswers(tmp_path / "state")
    bench = Bench(tmp_path, known=known)
    bench.install(OPENVINO, "openvino")
    with bench:
        fallbacks = bench.settled().fallbacks(SERVE.name)
        spec, _ = fallbacks.prepare(0)
    family = catalogue.read().builds_of(OPENVINO)[0]
    assert spec.canary.prompt == catalogue.read().family_of(family).question
    assert (spec.canary.expected, spec.canary.after_long, spec.canary.reference) == (("Paris",), True, "")
    (tmp_path / "state").mkdir()
    elsewhere = replace(spec, device="gpu")
    fallbacks.works(elsewhere, "Pa")
    ((name, told),) = bench.provision.compared().items()
    assert (name, told.device, told.used) == (SERVE.name, "gpu", False)
    assert "--device cpu --keep" in told.reason
    fallbacks.works(spec, "Paris.")
    assert bench.provision.compared() == {}  # the processor is what others are compared with
    assert fallbacks.prepare(0)[0].canary.reference == "Paris."
    fallbacks.works(replace(fallbacks.prepare(0)[0], device="gpu"), "Paris")
    assert bench.provision.compared()[SERVE.name].used
    assert (
        ReferenceAnswers(tmp_path / "state").canary(spec.path, "openvino", None).reference == ""
    )  # asked something else


def test_a_question_beside_the_build_is_asked_instead(tmp_path):
    """A file that cannot be read is as if it were not there."""
    folder, state = tmp_path / "build", tmp_path / "state"
    folder.mkdir()
    state.mkdir()
    write_build(folder, "openvino", 2**20)
    known = ReferenceAnswers(state)
    assert known.canary(folder, "openvino", None) == Canary()
    (folder / QUESTION).write_text('{"prompt": "Is it on?", "expected": ["Yes"]}')
    assert known.canary(folder, "openvino", None) == Canary("Is it on?", ("Yes",))
    (folder / QUESTION).write_text('{"prompt": ""}')
    assert known.canary(folder, "openvino", None) == Canary()
    (state / FIRST_WORDS_FILE).write_text("{")
    known.keep(folder, "openvino", "Hello", "Hi")
    assert known.canary(folder, "openvino", None).reference == "Hi"


CLOUD = ServeSection(name="cloud", openai={"url": "https://host/v1", "model": "big"}, parallel=3)


def test_an_upstream_is_the_last_candidate_and_only_where_it_is_named(tmp_path):
    """While no build is here it answers, with its own lanes; with one that fits it is not asked."""
    local = ServeSection(name="phi-3.5-mini", upstream="cloud")
    with Bench(tmp_path, local, CLOUD) as bench:
        spec, _ = bench.settled().fallbacks(local.name).prepare(0)
        assert (spec.device, spec.host, spec.parallel) == ("upstream", "host", 3)
        instead = bench.provision.fallbacks(local.name).fallback(spec)
        assert (instead.variant, "edge-agent models pull" in instead.reason) == ("phi-3.5-mini", True)
        assert not bench.provision.fallbacks(local.name).better(spec)
        bench.install(ONNX, "onnx")
        wait_for(
            lambda: bench.provision.fallbacks(local.name).better(spec), "the build to be worth a try", timeout_s=10
        )
        assert bench.provision.fallbacks(local.name).prepare(0)[0].variant == ONNX
        assert not bench.provision.set_aside()
    with Bench(tmp_path / "other", SERVE, CLOUD) as bench, pytest.raises(EdgeAgentError, match="models pull"):
        bench.settled().fallbacks(SERVE.name).prepare(0)
