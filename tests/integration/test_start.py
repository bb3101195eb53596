"""What ends a start, which only a person mends, and what it waits for, which may pass by itself."""

import signal
import subprocess
import sys

import pytest
from running import AgentProcess, faulty, requester

from edge_agent.control.caller import ask_agent
from edge_agent.control.messages import AskState

pytestmark = pytest.mark.broker


def test_unusable_settings_end_the_daemon_with_status_2_and_a_sentence(tmp_path):
    config = tmp_path / "edge-agent.toml"
    config.write_text('[mqtt]\nhots = "x"\n')
    command = [sys.executable, "-m", "edge_agent", "run", "--config", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "mqtt.hots: unknown key; did you mean 'host'?" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_hang_up_lets_running_jobs_end(broker, tmp_path, tiny_model):
    """A closed terminal, or a habit from servers that read their settings anew, costs no job an attempt."""
    models = [{"name": "t", "path": str(tiny_model)}]
    environ = faulty(FAULTS_BACKEND="metronome:load", METRONOME_S="0.05")
    running = AgentProcess(folder=tmp_path / "agent", broker=broker, models=models, environ=environ)
    running.launcher = ("env", "--default-signal=HUP")  # the tests themselves may run under nohup
    with running as agent, requester(broker) as client:
        job = client.submit("edge-01", prompt="Tick.", max_tokens=20)
        agent.wait_said("job.started")
        agent.process.send_signal(signal.SIGHUP)
        result = job.result(60)
        assert (result.state, result.attempt) == ("succeeded", 1)
        assert agent.process.wait(60) == 0
        assert agent.said("agent.stopped")


def test_two_agents_cannot_share_a_state_folder_and_the_second_waits(broker, tmp_path):
    """An agent that is just stopping has it for a moment longer than its service manager thinks."""
    first = AgentProcess(folder=tmp_path / "agent", broker=broker, models=[], environ=faulty())
    second = AgentProcess(folder=tmp_path / "agent", broker=broker, models=[], environ=faulty())
    with first:
        first.wait_said("agent.started")
        with second:
            (said, *_) = second.wait_said("start.waits")
            assert "in use by another agent" in said["reason"]
            assert first.stop() == 0
            second.wait_said("agent.started", count=2)
            assert second.stop() == 0


def test_settings_that_are_not_there_are_tried_again_by_the_service_manager(tmp_path):
    """Their folder may not be mounted yet: any status but 2 has the unit start it again."""
    command = [sys.executable, "-m", "edge_agent", "run", "--config", str(tmp_path / "absent.toml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, "absent.toml: No such file or directory" in done.stderr) == (1, True)


@pytest.mark.parametrize("name", ["file", "file/below", "x" * 300])
def test_a_state_folder_that_can_be_none_ends_with_status_2(broker, tmp_path, name):
    (tmp_path / "file").touch()
    agent = AgentProcess(folder=tmp_path / "agent", broker=broker, models=[], environ=faulty())
    agent.config.write_text(agent.config.read_text().replace(str(agent.state_dir), str(tmp_path / name)))
    assert agent.start().process.wait(60) == 2
    assert "agent.state_dir" in agent.log.read_text()


@pytest.mark.parametrize("below", ["", "below"])
def test_a_state_folder_behind_a_link_is_waited_for_until_what_it_leads_to_is_mounted(broker, tmp_path, below):
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    agent = AgentProcess(folder=tmp_path / "agent", broker=broker, models=[], environ=faulty())
    agent.config.write_text(agent.config.read_text().replace(str(agent.state_dir), str(tmp_path / "link" / below)))
    with agent:
        (said, *_) = agent.wait_said("start.waits")
        assert f"{tmp_path / 'link'} is a link to what is not there" in said["reason"]
        (tmp_path / "disk").mkdir()
        agent.wait_said("agent.started")
        assert agent.stop() == 0


def test_a_catalogue_and_metrics_that_are_not_there_yet_hold_up_no_more_than_they_must(broker, tmp_path):
    """The first is waited for; without the other the agent works, and says that it is degraded."""
    more = tmp_path / "more.toml"
    extra = f'[prometheus]\nport = 9464\nhost = "192.0.2.1"\n[models]\ncatalogue = ["{more}"]\n'
    with AgentProcess(folder=tmp_path / "agent", broker=broker, models=[], extra=extra, environ=faulty()) as agent:
        (said, *_) = agent.wait_said("start.waits")
        assert "more.toml: No such file or directory" in said["reason"]
        more.touch()
        agent.wait_said("agent.started")
        agent.wait_said("metrics.unserved")
        state = ask_agent(agent.state_dir, AskState()).state
        assert any(reason.startswith("metrics: cannot listen on 192.0.2.1") for reason in state.reasons)
        assert agent.stop() == 0


def test_what_cannot_be_removed_from_the_state_folder_ends_no_agent(broker, tmp_path):
    """As on a disk that has become read-only: here somebody's folders stand in the places of our files."""
    agent = AgentProcess(folder=tmp_path / "agent", broker=broker, models=[], environ=faulty())
    (agent.state_dir / "session.former").mkdir(parents=True)
    with agent:
        agent.wait_said("session.former_ended")
        (agent.state_dir / "control.sock").unlink()
        (agent.state_dir / "control.sock").mkdir()
        assert agent.stop() == 0
        assert agent.said("thread.crashed") == []


@pytest.mark.parametrize("lost", [".", "lock", "queue.db", "queue.db-wal"])
def test_an_agent_whose_files_are_not_in_place_any_more_ends_in_order_to_be_started_again(broker, tmp_path, lost):
    """Moved, deleted or mounted over: it would accept what no start finds again, or beside another agent."""
    with AgentProcess(folder=tmp_path / "agent", broker=broker, models=[], environ=faulty()) as agent:
        agent.wait_said("agent.started")
        (agent.state_dir / lost).rename(tmp_path / "moved")
        assert agent.process.wait(60) == 1
        assert agent.said("state.gone")
        assert agent.said("agent.stopped")


def test_a_queue_that_cannot_be_read_now_is_waited_for_and_kept(broker, tmp_path):
    """A disk that comes back has all of it: set aside, jobs that wait would be lost, and ended ones run again."""
    with AgentProcess(folder=tmp_path / "agent", broker=broker, models=[], environ=faulty()) as agent:
        agent.wait_said("agent.started")
        assert agent.stop() == 0
        file, kept = agent.state_dir / "queue.db", tmp_path / "kept"
        file.rename(kept)
        file.symlink_to("/proc/self/mem")  # at its beginning nothing can be read: EIO
        agent.start()
        (said, *_) = agent.wait_said("queue.unwritable")
        assert "mend the disk" in said["next"]
        kept.replace(file)
        agent.wait_said("agent.started", count=2)
        assert agent.said("queue.damaged") == []
        assert agent.stop() == 0
