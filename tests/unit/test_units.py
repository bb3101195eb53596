"""What `edge-agent install-service` installs, and the shipped unit as systemd judges it."""

import json
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from edge_agent.cli import install_service
from edge_agent.cli.app import app
from edge_agent.service import units
from hardware.machine import Accelerator, Kind, Vendor
from hardware.probe import probe

ROOT = Path(__file__).parents[2]
SYSTEMD = ROOT / "systemd"
EXPOSURE_MAX = 1.5


def gpu(node, vendor=Vendor.INTEL):
    return Accelerator(Kind.GPU, vendor, "a card", node=node)


@pytest.fixture
def unit(tmp_path):
    """The shipped unit, with a program that is here."""
    file = tmp_path / "edge-agent.service"
    file.write_text((SYSTEMD / file.name).read_text().replace(units.PROGRAM_SHIPPED, "/bin/true"))
    return file


@pytest.mark.systemd
@pytest.mark.parametrize("drop_in", [None, *units.NODES.values()])
def test_systemd_finds_no_fault_in_the_unit(unit, drop_in):
    if drop_in:
        folder = unit.with_name(f"{unit.name}.d")
        folder.mkdir()
        (folder / "x.conf").write_text((SYSTEMD / folder.name / f"{drop_in}.conf").read_text())
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.systemd
def test_the_unit_is_closed_as_far_as_can_be_and_says_why_not_further(unit):
    """Exposure by systemd's own measure, 0 to 10; what counts towards it stands in the unit with its reason."""
    command = ["systemd-analyze", "security", "--offline=true", f"--threshold={round(EXPOSURE_MAX * 10)}"]
    done = subprocess.run([*command, "--json=short", unit], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout
    reasons = unit.read_text().partition("would have besides, and why not:")[2].partition("[Install]")[0]
    for each in json.loads(done.stdout):
        if each["exposure"]:
            words = re.findall(r"\w+", each["name"].replace("(INET|INET6)", "INET"))
            assert all(word in reasons for word in words), each


def test_drop_ins_are_those_for_the_devices_that_were_found():
    found = [gpu("/dev/dri/renderD128"), gpu("/dev/dri/renderD129"), gpu("/dev/accel/accel0"), gpu("/dev/nvidia0")]
    assert units.drop_ins(found) == {
        "dri": ["/dev/dri/renderD128", "/dev/dri/renderD129"],
        "accel": ["/dev/accel/accel0"],
        "nvidia": ["/dev/nvidia0"],
    }
    paths = {str(each.path) for each in units.files(found, start=Path("/opt/x/edge-agent"))}
    assert paths == {str(path) for path in units.ours()} | {str(units.SETTINGS_FILE)}
    jetson = gpu("/dev/nvgpu/igpu0/ctrl", Vendor.NVIDIA)
    assert units.closed([*found, jetson, gpu(None)]) == [jetson, gpu(None)]
    assert units.drop_ins([jetson, gpu(None)]) == {}


def test_the_unit_starts_the_program_that_installs_it():
    unit = next(each for each in units.files([], start=Path("/srv/venv/bin/edge-agent")))
    assert "ExecStart=/srv/venv/bin/edge-agent run --config /etc/edge-agent/edge-agent.toml\n" in unit.text
    assert units.PROGRAM_SHIPPED not in unit.text


@pytest.mark.parametrize("place", ["/home/pi/venv/bin/edge-agent", "/root/venv/bin/edge-agent", "/tmp/x"])
def test_a_program_that_the_unit_would_not_see_is_refused(place):
    assert "which the unit hides" in units.hidden([Path("/usr/bin/env"), Path(place)])


def test_a_program_in_a_closed_folder_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(units, "HIDDEN", ())
    (tmp_path / "closed").mkdir(mode=0o700)
    (tmp_path / "closed/edge-agent").touch(mode=0o755)
    assert units.hidden([tmp_path / "closed/edge-agent"]).startswith(f"{tmp_path}")
    assert units.hidden([Path("/usr/bin/env")]) == ""


def run(*arguments, root=0):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.geteuid", lambda: root)
        patch.setattr(
            install_service, "probe", lambda: replace(probe(Path("/none")), accelerators=(gpu("/dev/dri/c"),))
        )
        return CliRunner().invoke(app, ["install-service", *arguments])


def test_it_is_root_who_installs_it(tmp_path):
    done = run("--root", str(tmp_path), root=1000)
    assert (done.exit_code, "sudo" in done.output) == (1, True)
    assert not list(tmp_path.iterdir())


def test_a_dry_run_writes_nothing_and_needs_no_root(tmp_path):
    done = run("--root", str(tmp_path), "--dry-run", root=1000)
    assert (done.exit_code, done.output.count("would write"), list(tmp_path.iterdir())) == (0, 4, [])
    assert "ends here: only root may" in done.output


def test_a_second_run_changes_nothing_and_settings_are_never_overwritten(tmp_path):
    done = run("--root", str(tmp_path))
    assert (done.exit_code, done.output.count("write  ")) == (0, 4), done.output
    written = {path: path.read_text() for path in tmp_path.rglob("*") if path.is_file()}
    assert {oct(path.stat().st_mode & 0o777) for path in written} == {"0o644"}
    settings = tmp_path / "etc/edge-agent/edge-agent.toml"
    settings.write_text("# mine\n")
    unit = tmp_path / "etc/systemd/system/edge-agent.service"
    unit.write_text(unit.read_text().replace("RestartSec=5", "RestartSec=7"))
    again = run("--root", str(tmp_path))
    assert again.output.count("unchanged ") == 2
    assert "-RestartSec=7" in again.output
    assert settings.read_text() == "# mine\n"
    assert unit.read_text() == written[unit]


def test_what_was_installed_is_removed_but_for_settings(tmp_path):
    run("--root", str(tmp_path))
    done = run("--root", str(tmp_path), "--remove")
    assert (done.exit_code, done.output.count("remove  ")) == (0, 3), done.output
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["edge-agent.toml"]
