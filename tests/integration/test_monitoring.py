"""A running agent as people's own monitoring sees it: promtool, a real Prometheus, health over HTTP."""

import json
import socket
import subprocess
import urllib.request

import pytest
from running import AgentProcess, find_program, requester, wait_for

pytestmark = [pytest.mark.broker, pytest.mark.engine, pytest.mark.prometheus]


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


def get(url):
    with urllib.request.urlopen(url, timeout=10) as answer:
        return answer.read().decode()


@pytest.fixture
def scraper(tmp_path):
    """A Prometheus that reads a port every second; ended with the test."""
    started = []

    def scrape(port):
        own = free_port()
        config = tmp_path / "prometheus.yml"
        config.write_text(
            "global: {scrape_interval: 1s}\n"
            f"scrape_configs: [{{job_name: edge-agent, static_configs: [{{targets: ['127.0.0.1:{port}']}}]}}]\n"
        )
        arguments = (f"--config.file={config}", f"--storage.tsdb.path={tmp_path / 'tsdb'}")
        with (tmp_path / "prometheus.log").open("wb") as log:
            started.append(
                subprocess.Popen(
                    [find_program("prometheus"), *arguments, f"--web.listen-address=127.0.0.1:{own}"], stderr=log
                )
            )
        return f"http://127.0.0.1:{own}"

    yield scrape
    for process in started:
        process.terminate()
        process.wait(20)


def test_a_real_prometheus_scrapes_an_agent_at_work(broker, tmp_path, tiny_model, scraper):
    port = free_port()
    models = [{"name": "tiny", "path": str(tiny_model), "context_tokens": 1024}]
    extra = f"[prometheus]\nport = {port}\n"
    with (
        AgentProcess(folder=tmp_path / "agent", broker=broker, models=models, extra=extra) as agent,
        requester(broker) as client,
    ):
        agent.wait_said("engine.ready")
        client.submit("edge-01", prompt="How is the pump?", max_tokens=8).result(60)
        mine = f"http://127.0.0.1:{port}"
        wait_for(lambda: "edge_agent_lifetime_jobs_total" in get(f"{mine}/metrics"), "the first telemetry")
        assert get(f"{mine}/healthz") == "alive\n"
        assert get(f"{mine}/readyz") == "ready\n"

        checked = subprocess.run(
            [find_program("promtool"), "check", "metrics"],
            input=get(f"{mine}/metrics"),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")

        prometheus = scraper(port)

        def ask(query):
            try:
                found = json.loads(get(f"{prometheus}/api/v1/query?query={query}"))
            except OSError:  # it starts
                return []
            return [(each["metric"], float(each["value"][1])) for each in found["data"]["result"]]

        ((labels, count),) = wait_for(lambda: ask("edge_agent_jobs_total"), "Prometheus to have scraped")
        assert (labels["model"], labels["state"], count) == ("tiny", "succeeded", 1.0)
        ((_, up),) = ask("up")
        assert up == 1.0
        ((_, first_s),) = ask("edge_agent_first_token_seconds_sum")
        assert first_s > 0
        ((_, tokens),) = ask("edge_agent_output_tokens_total")
        assert tokens == 8.0
        assert agent.stop() == 0
