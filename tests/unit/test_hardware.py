"""The probe, on trees like those of real machines and on nonsense."""

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from edge_agent.cli.probe import probe as probe_command
from hardware.machine import Board, Cpu, Machine, Memory
from hardware.probe import probe
from tests.machines import build, outsider

MIB = 2**20
NO_BOARD = Board(vendor=None, model=None, compatible=())

X86_BLOCK = """\
processor	: {cpu}
vendor_id	: GenuineIntel
model name	: Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz
physical id	: 0
siblings	: 4
core id		: {core}
cpu cores	: 2
flags		: fpu sse2 ht lm f16c avx2 fma avx512f avx512_vnni avx512_bf16 amx_tile amx_int8
"""

PI_BLOCK = """\
processor	: {cpu}
BogoMIPS	: 108.00
Features	: fp asimd evtstrm aes crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp
CPU implementer	: 0x41
CPU architecture: 8
CPU variant	: 0x4
CPU part	: 0xd0b
CPU revision	: 1
"""

PI_TAIL = """\
Revision	: d04171
Serial		: 0000000000000000
Model		: Raspberry Pi 5 Model B Rev 1.1
"""

PI_MEMINFO = """\
MemTotal:        8255248 kB
MemFree:         5523456 kB
MemAvailable:    7340032 kB
SwapTotal:        524272 kB
"""


def write(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.fixture
def x86_vm(tmp_path):
    """Two cores of two threads each, numbered as Linux does: 0 and 2 are one core."""
    write(
        tmp_path,
        {
            "proc/cpuinfo": "\n".join(X86_BLOCK.format(cpu=cpu, core=cpu % 2) for cpu in range(4)) + "\n",
            "proc/meminfo": "MemTotal: 16384000 kB\nMemAvailable: 15000000 kB\nSwapTotal: 0 kB\n",
            "proc/self/cgroup": "0::/user.slice/session-1.scope\n",
            "proc/self/status": "Name:\tpython\nCpus_allowed:\tf\nCpus_allowed_list:\t0-3\n",
            "proc/sys/kernel/arch": "x86_64\n",
            "sys/fs/cgroup/user.slice/cpu.max": "max 100000\n",
            "sys/fs/cgroup/user.slice/memory.max": "max\n",
            **{
                f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list": f"{cpu % 2},{cpu % 2 + 2}\n"
                for cpu in range(4)
            },
        },
    )
    return tmp_path


@pytest.fixture
def raspberry_pi_5(tmp_path):
    write(
        tmp_path,
        {
            "proc/cpuinfo": "\n".join(PI_BLOCK.format(cpu=cpu) for cpu in range(4)) + "\n" + PI_TAIL,
            "proc/meminfo": PI_MEMINFO,
            "proc/self/cgroup": "0::/system.slice/edge-agent.service\n",
            "proc/self/status": "Cpus_allowed_list:\t0-3\n",
            **{f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list": f"{cpu}\n" for cpu in range(4)},
        },
    )
    return tmp_path


def test_x86_vm(x86_vm):
    """A virtual machine with two cores of two threads gets two compute threads and has no limits."""
    assert probe(x86_vm) == Machine(
        board=NO_BOARD,
        cpu=Cpu(
            model="Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz",
            architecture="x86_64",
            physical_cores=2,
            logical_cpus=4,
            flags=("amx_int8", "avx2", "avx512_bf16", "avx512_vnni"),
            quota_cores=None,
            granted_cores=2,
        ),
        memory=Memory(total_bytes=16_777_216_000, available_bytes=15_360_000_000, swap_bytes=0, limit_bytes=None),
        accelerators=(),
        kernel=None,
    )


def test_raspberry_pi_5(raspberry_pi_5):
    """A Raspberry Pi 5 names no model and no cores in cpuinfo, an older kernel not even the architecture."""
    assert probe(raspberry_pi_5) == Machine(
        board=NO_BOARD,
        cpu=Cpu(
            model="Cortex-A76",
            architecture="aarch64",
            physical_cores=4,
            logical_cpus=4,
            flags=("asimddp", "asimdhp"),
            quota_cores=None,
            granted_cores=4,
        ),
        memory=Memory(
            total_bytes=8_453_373_952, available_bytes=7_516_192_768, swap_bytes=536_854_528, limit_bytes=None
        ),
        accelerators=(),
        kernel=None,
    )


def test_container(raspberry_pi_5):
    """A container sees its own limits at the top of its cgroups; the quota bounds the compute threads."""
    write(
        raspberry_pi_5,
        {
            "proc/self/cgroup": "0::/\n",
            "sys/fs/cgroup/cpu.max": "250000 100000\n",
            "sys/fs/cgroup/memory.max": f"{512 * MIB}\n",
        },
    )
    machine = probe(raspberry_pi_5)
    assert machine.cpu.quota_cores == 2.5
    assert machine.cpu.granted_cores == 2
    assert machine.memory.limit_bytes == 512 * MIB


def test_smallest_limit_of_all_parents(raspberry_pi_5):
    """Of the limits of the own cgroup and its parents the smallest holds, wherever it stands."""
    write(
        raspberry_pi_5,
        {
            "sys/fs/cgroup/system.slice/edge-agent.service/memory.max": f"{4096 * MIB}\n",
            "sys/fs/cgroup/system.slice/edge-agent.service/cpu.max": "300000 100000\n",
            "sys/fs/cgroup/system.slice/memory.max": f"{2048 * MIB}\n",
            "sys/fs/cgroup/system.slice/cpu.max": "max 100000\n",
            "sys/fs/cgroup/other.slice/memory.max": "1\n",
        },
    )
    machine = probe(raspberry_pi_5)
    assert machine.memory.limit_bytes == 2048 * MIB
    assert machine.cpu.quota_cores == 3


def test_cgroup_outside_of_what_a_container_sees(raspberry_pi_5):
    """A cgroup named from outside leads nowhere else than to the top."""
    write(
        raspberry_pi_5,
        {
            "proc/self/cgroup": "1:cpu:/v1\n0::/../sibling\n",
            "sys/fs/sibling/memory.max": "1\n",
            "sys/fs/cgroup/memory.max": f"{64 * MIB}\n",
        },
    )
    assert probe(raspberry_pi_5).memory.limit_bytes == 64 * MIB


@pytest.mark.parametrize(("allowed", "granted"), [("0,2", 1), ("0-1", 2), ("3", 1), ("1-2", 2), ("9", 1), ("", 2)])
def test_affinity_counts_cores(x86_vm, allowed, granted):
    """Two threads of one core count as one core, and there is always one."""
    write(x86_vm, {"proc/self/status": f"Cpus_allowed_list:\t{allowed}\n"})
    assert probe(x86_vm).cpu.granted_cores == granted


def test_quota_below_one_core(x86_vm):
    """Half a core still gets one thread."""
    write(x86_vm, {"sys/fs/cgroup/cpu.max": "50000 100000\n"})
    cpu = probe(x86_vm).cpu
    assert (cpu.quota_cores, cpu.granted_cores) == (0.5, 1)


def test_cores_without_topology(x86_vm):
    """Without /sys/devices the cores are those that x86 names in cpuinfo."""
    (x86_vm / "sys/devices/system/cpu/cpu3/topology/thread_siblings_list").unlink()
    cpu = probe(x86_vm).cpu
    assert (cpu.physical_cores, cpu.granted_cores) == (2, 2)


def test_unknown_cores(raspberry_pi_5):
    """Where nothing tells cores from threads, every logical CPU may get a thread."""
    (raspberry_pi_5 / "sys/devices/system/cpu/cpu3/topology/thread_siblings_list").unlink()
    cpu = probe(raspberry_pi_5).cpu
    assert (cpu.physical_cores, cpu.granted_cores) == (None, 4)


def test_flags_of_unequal_cores(raspberry_pi_5):
    """Only what every core can do is a flag, and both kinds of cores are named."""
    little = PI_BLOCK.replace("0xd0b", "0xd05").replace(" asimdhp", "")
    write(raspberry_pi_5, {"proc/cpuinfo": f"{PI_BLOCK.format(cpu=0)}\n{little.format(cpu=1)}"})
    cpu = probe(raspberry_pi_5).cpu
    assert (cpu.model, cpu.flags) == ("Cortex-A55 + Cortex-A76", ("asimddp",))


def test_empty_root(tmp_path):
    """A machine that tells nothing has one thread, and everything else is unknown."""
    assert probe(tmp_path) == Machine(
        board=NO_BOARD,
        cpu=Cpu(
            model=None,
            architecture=None,
            physical_cores=None,
            logical_cpus=None,
            flags=None,
            quota_cores=None,
            granted_cores=1,
        ),
        memory=Memory(total_bytes=None, available_bytes=None, swap_bytes=None, limit_bytes=None),
        accelerators=(),
        kernel=None,
    )


ODD = st.one_of(
    st.binary(max_size=200),
    st.sampled_from(
        [
            b"max",
            b"0 0",
            b"-1",
            b"9" * 5000,
            b"1 0",
            b"x" * 70_000,
            b"DRIVER=../../etc\nPCI_SLOT_NAME=/etc/passwd",
            b"0x03",
            b"nvidia,tegra234\0apple,t\0qcom,",
            b"Model: \nDevice Minor: -1",
            b"# R (release), REVISION: .",
            b"1002\n\t150e\n",
            b"\xc2\xb2",
            b"0::/\0",
            b"0::" + b"/long" * 2000,
            b"processor: 0\nflags:",
            b"processor: 99999999999999999999",
            b"Cpus_allowed_list: 0-99999999999999999,3-1,-,x",
            b"MemTotal: -3 kB\nSwapTotal: kB",
        ]
    ),
)


NAMES = (
    "proc/cpuinfo",
    "proc/meminfo",
    "proc/self/cgroup",
    "proc/self/status",
    "proc/sys/kernel/arch",
    "proc/sys/kernel/osrelease",
    "sys/fs/cgroup/cpu.max",
    "sys/fs/cgroup/memory.max",
    "sys/devices/system/cpu/cpu0/topology/thread_siblings_list",
    "proc/device-tree/compatible",
    "proc/device-tree/model",
    "sys/class/dmi/id/product_name",
    "sys/bus/pci/devices/0000:00:02.0/uevent",
    "sys/bus/pci/devices/0000:00:02.0/class",
    "sys/bus/pci/devices/0000:00:02.0/mem_info_vram_total",
    "sys/module/nvidia/version",
    "proc/driver/nvidia/gpus/0000:01:00.0/information",
    "etc/nv_tegra_release",
    "usr/share/misc/pci.ids",
)


@settings(max_examples=60, deadline=None)
@given(files=st.lists(ODD, min_size=len(NAMES), max_size=len(NAMES)))
def test_nonsense_is_unknown(files):
    """Whatever stands in the files, the probe answers and grants at least one thread."""
    with TemporaryDirectory() as folder:
        root = Path(folder)
        for name, text in zip(NAMES, files, strict=True):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(text)
        (root / "sys/bus/pci/devices/0000:00:02.0/vendor").write_text("0x1002")
        (root / "sys/bus/pci/devices/0000:00:02.0/device").write_text("0x150e")
        found = probe(root)
        assert found.cpu.granted_cores >= 1
        assert len(json.dumps(asdict(found.board))) < 32 * 2**10


def test_folders_in_place_of_files(tmp_path):
    """A folder where a file should be is unknown, too."""
    for name in ("proc/cpuinfo", "proc/meminfo", "proc/self/cgroup", "sys/fs/cgroup/memory.max"):
        (tmp_path / name).mkdir(parents=True)
    assert probe(tmp_path).memory.limit_bytes is None


@pytest.mark.parametrize("options", [["--json"], []])
def test_runs_on_its_own(options):
    """`python -m hardware` needs the standard library only, and says what the probe says."""
    program = "import runpy, sys; runpy.run_module('hardware', run_name='__main__', alter_sys=True)"
    guard = "import sys; sys.modules.update(dict.fromkeys(['edge_agent', 'psutil', 'pydantic', 'rich'])); "
    done = subprocess.run(
        [sys.executable, "-c", guard + program, *options],
        capture_output=True,
        check=True,
        text=True,
        timeout=60,
    )
    if options:
        assert json.loads(done.stdout)["cpu"]["granted_cores"] == probe().cpu.granted_cores
    else:
        assert "memory.total_bytes: " in done.stdout


def run_command(*options):
    app = typer.Typer()
    app.command()(probe_command)
    return CliRunner().invoke(app, options, catch_exceptions=False).stdout


def test_command_prints_json():
    """`edge-agent probe --json` prints the probe's facts under the names of the types."""
    facts = json.loads(run_command("--json"))
    assert facts["memory"]["total_bytes"] == probe().memory.total_bytes


def test_command_prints_a_table():
    """`edge-agent probe` names the compute threads, which are what a reader comes for."""
    assert "compute threads" in run_command()


@pytest.mark.parametrize("columns", [80, 200])
def test_command_prints_accelerators(columns, tmp_path, monkeypatch):
    """Each with its maker once, what hinders it, and the command that helps, in full however narrow the terminal is."""
    monkeypatch.setenv("COLUMNS", str(columns))
    for name, expected in (
        ("lunar-lake-laptop", ("Intel Lunar Lake", "/dev/accel/accel0", "usermod -aG render pi", "no")),
        ("nvidia-server", ("\u2502 NVIDIA A10G", "/dev/nvidia3", "yes")),
        ("plain-vm", ("QEMU Standard PC (Q35 + ICH9, 2009)", "none found")),
    ):
        found = probe(build(name, tmp_path), opener=outsider())
        monkeypatch.setattr("edge_agent.cli.probe.probe_machine", lambda found=found, **_: found)
        said = run_command()
        assert all(part in said for part in expected)
        assert max(map(len, said.splitlines())) <= columns


def test_command_names_what_did_not_answer(monkeypatch, tmp_path):
    late = replace(probe(tmp_path), late=("gpus",))
    monkeypatch.setattr("edge_agent.cli.probe.probe_machine", lambda **_: late)
    assert "gpus" in run_command()


@pytest.mark.parametrize(
    ("prefix", "names"),
    [
        ("0::", ("memory.max", "memory.current", "inactive_file")),
        ("4:memory:", ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file")),
    ],
    ids=["version 2", "version 1"],
)
def test_what_a_cgroup_leaves_us_is_its_limit_less_what_it_holds_for_good(tmp_path, prefix, names):
    """File pages that nobody uses are given back first; a model that was read once does not fill a cgroup for ever."""
    limit, current, inactive = names
    folder = "sys/fs/cgroup"
    stat = f"{folder}/{'memory/' if '/' in limit else ''}memory.stat"
    files = {
        "proc/self/cgroup": f"{prefix}/\n",
        f"{folder}/{limit}": f"{4096 * MIB}\n",
        f"{folder}/{current}": f"{3000 * MIB}\n",
        stat: f"anon 5\n{inactive} {2700 * MIB}\n",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert probe(tmp_path).memory.limit_bytes == 4096 * MIB
    assert probe(tmp_path).memory.room_bytes == (4096 - 300) * MIB
