"""The settings file and the environment."""

import re

import pytest

from edge_agent.base.errors import SettingsError
from edge_agent.settings import load as settings


def write(tmp_path, text):
    file = tmp_path / "edge-agent.toml"
    file.write_text(text)
    return file


def test_defaults_need_no_file():
    loaded = settings.load(environ={})
    assert loaded.mqtt.root == "edge/v1"
    assert loaded.agent.id == settings.default_id()
    assert loaded.queue.keep_finished_s >= loaded.queue.ttl_max_s


def test_the_environment_wins_over_the_file_and_leaves_the_rest(tmp_path, monkeypatch):
    file = write(tmp_path, '[mqtt]\nhost = "from-file"\nport = 1884\n')
    monkeypatch.setenv("EDGE_AGENT_MQTT__HOST", "from-env")
    loaded = settings.load(file)
    assert (loaded.mqtt.host, loaded.mqtt.port) == ("from-env", 1884)


def test_models_are_tables(tmp_path):
    file = write(tmp_path, '[[models.serve]]\nname = "phi-3.5-mini"\npath = "/models/phi"\nthreads = 2\n')
    (serve,) = settings.load(file, environ={}).models.serve
    assert (serve.name, serve.backend, serve.threads) == ("phi-3.5-mini", "auto", 2)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('[mqtt]\nhots = "x"\n', "mqtt.hots: unknown key; did you mean 'host'?"),
        ("[mqqt]\nport = 1\n", "mqqt: unknown key; did you mean 'mqtt'?"),
        ('[agent]\nid = "Edge 1"\n', "agent.id: must be a-z 0-9 _ -, a letter or digit first"),
        ('[mqtt]\nroot = "a/b/c"\n', "mqtt.root: must be one or two levels of A-Z a-z"),
        ("[mqtt]\nport = 70000\n", "mqtt.port: must be less than or equal to 65535"),
        (
            '[[models.serve]]\nname = "a"\npath = "/x"\nthread = 2\n',
            "models.serve.0.thread: unknown key; did you mean 'threads'?",
        ),
        ('[mqtt]\nroot = "a/#"\n', "mqtt.root: must be one or two levels of A-Z a-z"),
        ('[agent]\nid = "Über"\n', "agent.id: must be a-z 0-9 _ -, a letter or digit first"),
        ("[images]\nimage_bytes = 100000000\n", "images: requester_quota_bytes must be at least image_bytes"),
        ("[queue]\nkeep_finished_s = 60\n", "queue: keep_finished_s must be at least ttl_max_s"),
        ("[mqtt\n", "not valid TOML"),
    ],
)
def test_a_fault_is_named_with_its_mend(tmp_path, text, sentence):
    with pytest.raises(SettingsError) as caught:
        settings.load(write(tmp_path, text), environ={})
    assert sentence in str(caught.value)


def test_an_unknown_variable_is_refused_with_the_nearest():
    with pytest.raises(SettingsError, match="unknown section 'mqt'; did you mean 'mqtt'"):
        settings.load(environ={"EDGE_AGENT_MQT__HOST": "x"})


def test_a_missing_file_is_said(tmp_path):
    with pytest.raises(SettingsError, match="No such file"):
        settings.load(tmp_path / "absent.toml", environ={})


def test_further_brokers_take_the_port_of_the_first_unless_they_name_one(tmp_path):
    text = '[mqtt]\nport = 8883\nfallback_hosts = ["b2", "b3:443", "[::1]:1884", "[fe80::1]"]\n'
    section = settings.load(write(tmp_path, text), environ={}).mqtt
    assert section.fallbacks == (("b2", 8883), ("b3", 443), ("::1", 1884), ("fe80::1", 8883))


@pytest.mark.parametrize("address", ["", "b:0", "b:", "mqtt://b", "a b", "::1", "b/c"])
def test_an_address_that_is_none_is_refused(tmp_path, address):
    with pytest.raises(SettingsError, match=r"mqtt\.fallback_hosts\.0"):
        settings.load(write(tmp_path, f'[mqtt]\nfallback_hosts = ["{address}"]\n'), environ={})


UPSTREAM = '[[models.serve]]\nname = "cloud"\n{serve}[models.serve.openai]\nmodel = "big"\n{table}'


@pytest.mark.parametrize(
    ("serve", "table", "sentence"),
    [
        ("", 'url = "ftp://host/v1"', "models.serve.0.openai: url must be https://host/"),
        ("", 'url = "https://me:secret@host/v1"', "models.serve.0.openai: url must hold no name or password"),
        ("", 'url = "http://host/v1"\nkey_file = "k"', "models.serve.0.openai: a key goes over https only"),
        ("", 'url = "https://host/v1?key=secret"', "models.serve.0.openai: url must be https://host/"),
        ("", 'url = "https://host/v1"\nkeyfile = "k"', "models.serve.0.openai.keyfile: unknown key; did you mean"),
        ('path = "p"\n', 'url = "https://host/v1"', "models.serve.0: openai excludes path"),
        ('backend = "onnx"\n', 'url = "https://host/v1"', "models.serve.0: openai excludes path"),
    ],
)
def test_an_upstream_that_would_tell_too_much_is_refused(tmp_path, serve, table, sentence):
    """And none of it is repeated."""
    file = write(tmp_path, UPSTREAM.format(serve=serve, table=table))
    with pytest.raises(SettingsError, match=re.escape(sentence)) as raised:
        settings.load(file, environ={})
    assert "secret" not in str(raised.value)


def test_an_upstream_needs_its_table(tmp_path):
    file = write(tmp_path, '[[models.serve]]\nname = "cloud"\nbackend = "openai"\n')
    with pytest.raises(SettingsError, match="needs a table"):
        settings.load(file, environ={})


def test_a_key_may_go_to_this_device_itself(tmp_path):
    file = write(tmp_path, UPSTREAM.format(serve="", table='url = "http://127.0.0.1:11434/v1"\nkey_file = "k"'))
    (cloud,) = settings.load(file, environ={}).models.serve
    assert (cloud.openai.host, cloud.chosen) == ("127.0.0.1", False)


@pytest.mark.parametrize(
    ("serve", "sentence"),
    [
        ('upstream = "sky"', "models: upstream must be the name of another"),
        ('upstream = "local"', "models: upstream must be the name of another"),
        ('upstream = "cloud"\nfallback = false', "models.serve.1: upstream goes with a model of this device"),
    ],
)
def test_an_upstream_is_another_served_model_elsewhere(tmp_path, serve, sentence):
    cloud = UPSTREAM.format(serve="", table='url = "https://host/v1"')
    with pytest.raises(SettingsError, match=re.escape(sentence)):
        settings.load(write(tmp_path, f'{cloud}\n[[models.serve]]\nname = "local"\n{serve}\n'), environ={})
