"""The mlx backend's quantised folders, as mlx-lm itself makes them."""

import pytest
from conftest import SUBJECTS, BareMlx, require
from driving import drive

from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.engine import backend
from edge_agent.engine.backend import ModelSpec
from edge_agent.engine.messages import Generation, Turn

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def quantised(tiny_folder, tmp_path_factory):
    """The tiny model in 4 bits."""
    require(SUBJECTS["mlx"])
    from mlx_lm import convert

    out = tmp_path_factory.mktemp("quantised") / "model"
    convert(str(tiny_folder("transformers")), str(out), quantize=True, q_group_size=32, q_bits=4)
    return out


def test_four_bits_are_loaded_and_answer_as_the_bare_library_does(quantised, job_id):
    assert (quantised / "model.safetensors").stat().st_size < 200_000
    turns = (Turn("user", "is the pump on?"),)
    model = backend.find("mlx")(ModelSpec(quantised, "mlx", 1024, 1, threads=1))
    (said,) = drive(model, Generation(job_id(), turns, 24))
    model.close()
    assert said.text == "".join(BareMlx(quantised).texts(turns, 24))
    assert len(said.text) > 24


def test_transformers_says_whose_folder_it_is(quantised):
    require(SUBJECTS["transformers"])
    with pytest.raises(EdgeAgentError, match="quantised for mlx; set the backend") as raised:
        backend.find("transformers")(ModelSpec(quantised, "transformers", 1024, 1, threads=1))
    assert raised.value.code is Code.UNSUPPORTED


@pytest.mark.parametrize("name", ["mlx", "transformers"])
def test_no_code_of_a_folder_is_run(tiny_folder, tmp_path, name):
    """A model may ask for it in its configuration."""
    import json
    import shutil

    require(SUBJECTS[name])
    folder = shutil.copytree(tiny_folder("transformers"), tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_file": "own.py",
        "model_type": "own",
        "auto_map": {"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(EdgeAgentError, match="cannot be loaded") as raised:
        backend.find(name)(ModelSpec(folder, name, 1024, 1, threads=1))
    assert raised.value.code is Code.MODEL_ERROR
    assert not (tmp_path / "ran").exists()
