"""What is told of a machine: each value read from a recorded tree, and absent where the tree has nothing."""

import shutil
from types import SimpleNamespace

import machines
import pytest

from edge_agent.health.snapshot import Snapshots, hottest, reading
from edge_agent.protocol.payloads import MachineReading, Telemetry
from hardware.heat import Sensor
from hardware.machine import Memory
from hardware.readings import readings

MEMORY = Memory(total_bytes=8 * 2**30, available_bytes=None, swap_bytes=None, limit_bytes=2**30)


def two(root, seconds=10.0, change=lambda root: None):
    """Take two readings of a tree, `seconds` apart, with a change between them."""
    before = readings(root, clock=lambda: 100.0)
    change(root)
    return before, readings(root, clock=lambda: 100.0 + seconds)


def write(root, path, text):
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def told(before, after, **more):
    return reading(before, after, memory=MEMORY, **more)


@pytest.fixture
def tree(tmp_path):
    return lambda name: machines.build(name, tmp_path)


def test_a_raspberry_pi(tree):
    seen = told(*two(tree("raspberry-pi-5")))
    assert (seen.hottest, seen.hottest_celsius, seen.heat_margin_c) == ("cpu-thermal", 31.2, 48.8)
    assert seen.undervoltage is False
    assert seen.slowed == ()
    assert (seen.on_battery, seen.battery_percent) == (None, None)  # the mouse's battery is the mouse's


def test_a_laptop_off_its_charger(tree):
    """On the battery its discharge is what the machine draws, and tokens cost energy."""
    root = tree("snapdragon-x-laptop")
    battery = "sys/class/power_supply/qcom-battmgr-bat/"
    write(root, battery + "status", "Discharging")
    write(root, battery + "capacity", "41")
    seen = told(*two(root), tokens=50)
    assert (seen.on_battery, seen.battery_percent) == (True, 41.0)
    assert (seen.power_of, seen.power_watts, seen.joules_per_token) == ("battery", 4.25, 0.85)


def test_power_of_the_processors_and_of_the_machine(tmp_path):
    """From two readings of a counter; the whole machine's, where it has one, before its parts."""
    rapl = "sys/class/powercap/intel-rapl:"
    write(tmp_path, rapl + "0/name", "package-0")
    write(tmp_path, rapl + "0/energy_uj", "1000000")

    def spend(root):
        write(root, rapl + "0/energy_uj", "101000000")

    seen = told(*two(tmp_path, change=spend), tokens=0)
    assert (seen.power_of, seen.power_watts, seen.joules_per_token) == ("processors", 10.0, None)
    write(tmp_path, rapl + "1/name", "psys")
    write(tmp_path, rapl + "1/energy_uj", "0")
    seen = told(*two(tmp_path, change=lambda root: write(root, rapl + "1/energy_uj", "300000000")), tokens=100)
    assert (seen.power_of, seen.power_watts, seen.joules_per_token) == ("machine", 30.0, 3.0)


def test_use_memory_and_network(tmp_path):
    write(tmp_path, "proc/stat", "cpu  100 0 0 900 0 0 0 0 0 0\n")
    write(tmp_path, "proc/meminfo", "MemAvailable: 1024 kB\nSwapTotal: 10 kB\nSwapFree: 4 kB\n")
    write(tmp_path, "proc/net/dev", "lo: 9 0 0 0 0 0 0 0 9 0\neth0: 100 0 0 0 0 0 0 0 200 0\n")
    write(tmp_path, "proc/loadavg", "1.25 0 0 1/9 9\n")
    write(tmp_path, "proc/pressure/memory", "some avg10=3.00 avg60=0 avg300=0 total=1\n")
    write(tmp_path, "proc/self/cgroup", "0::/ours\n")
    write(tmp_path, "sys/fs/cgroup/ours/memory.current", "4096\n")
    write(tmp_path, "sys/fs/cgroup/ours/memory.pressure", "some avg10=7.50 avg60=0 avg300=0 total=1\n")
    write(tmp_path, "sys/devices/system/cpu/cpufreq/policy0/scaling_cur_freq", "1800000\n")
    seen = told(*two(tmp_path, change=lambda root: write(root, "proc/stat", "cpu  175 0 0 925 0 0 0 0 0 0\n")))
    assert (seen.cpu_percent, seen.cpu_mhz, seen.load_1m) == (75.0, 1800.0, 1.25)
    assert (seen.memory_total_bytes, seen.memory_available_bytes, seen.swap_used_bytes) == (8 * 2**30, 2**20, 6144)
    assert (seen.own_memory_bytes, seen.own_memory_limit_bytes, seen.memory_stall_percent) == (4096, 2**30, 7.5)
    assert (seen.network_received_bytes, seen.network_sent_bytes) == (100, 200)


def test_an_npu_that_counts_its_work(tmp_path):
    npu = "sys/class/accel/accel0/device/"
    write(tmp_path, npu + "npu_busy_time_us", "1000000")
    write(tmp_path, npu + "npu_current_frequency_mhz", "950")
    seen = told(*two(tmp_path, change=lambda root: write(root, npu + "npu_busy_time_us", "3500000")))
    assert [each.model_dump() for each in seen.accelerators] == [
        {
            "name": "accel0",
            "busy_percent": 25.0,
            "clock_mhz": 950.0,
            "memory_used_bytes": None,
            "celsius": None,
            "power_watts": None,
        }
    ]


def test_a_graphics_card_with_memory_and_sensors_of_its_own(tmp_path):
    card = "sys/class/drm/card0/device/"
    write(tmp_path, card + "gpu_busy_percent", "97")
    write(tmp_path, card + "mem_info_vram_used", "4096")
    for number, celsius in ((1, 51), (2, 63), (3, 999)):  # the third is off
        write(tmp_path, card + f"hwmon/hwmon4/temp{number}_input", f"{celsius}000")
    (seen,) = told(*two(tmp_path)).accelerators
    assert (seen.busy_percent, seen.memory_used_bytes, seen.celsius) == (97.0, 4096, 63.0)


def test_a_processor_slowed_for_heat_says_so(tree):
    root = tree("raspberry-pi-5")
    write(root, "sys/class/thermal/cooling_device1/type", "cpufreq-cpu0")
    write(root, "sys/class/thermal/cooling_device1/cur_state", "3")
    assert told(*two(root)).slowed == ("cooled by cpufreq-cpu0",)


def test_what_an_empty_tree_lacks_is_absent(tmp_path):
    seen = told(*two(tmp_path))
    known = {"memory_total_bytes", "own_memory_limit_bytes"}  # facts of the probe, not readings
    assert {name for name, value in seen if value is not None} == known


def test_the_sensor_nearest_to_its_limit_is_the_hottest():
    cool_but_near = Sensor("disk", 68.0, hot_c=70.0)
    assert hottest((Sensor("cpu", 80.0, critical_c=110.0), cool_but_near, Sensor("room", 90.0))) is cool_but_near
    assert hottest((Sensor("a", 20.0), Sensor("b", 30.0))).name == "b"
    assert hottest(()) is None


@pytest.mark.parametrize("name", machines.names())
def test_every_machine_can_be_told_of_in_about_a_kilobyte(tree, name):
    seen = told(*two(tree(name)))
    telemetry = Telemetry(
        **dict(seen), agent="edge-01", version="0.1.0", boot_id="b" * 32, uptime_s=1.0, health="ready"
    )
    assert len(telemetry.encode()) < 1024
    assert MachineReading.model_validate(seen.model_dump()) == seen


def test_a_reading_counts_from_the_one_before_it(tree, tmp_path):
    """The reports' readings are their own: a look in between takes nothing from them."""
    root = tree("plain-vm")
    shutil.rmtree(root / "proc", ignore_errors=True)
    write(root, "proc/stat", "cpu  100 0 0 900 0 0 0 0 0 0\n")
    snapshots = Snapshots(root, memory=MEMORY, state_dir=tmp_path, generated=lambda: 0)
    write(root, "proc/stat", "cpu  150 0 0 900 0 0 0 0 0 0\n")
    snapshots.look()
    write(root, "proc/stat", "cpu  150 0 0 950 0 0 0 0 0 0\n")
    seen = snapshots.take(snapshots.look())
    assert (seen.cpu_percent, seen.disk_free_bytes > 0, seen.agent_rss_bytes > 0) == (50.0, True, True)
    write(root, "proc/stat", "cpu  160 0 0 950 0 0 0 0 0 0\n")
    assert snapshots.take(snapshots.look()).cpu_percent == 100.0


def test_of_a_disk_that_is_gone_nothing_is_told_and_all_else_is(tree, tmp_path):
    snapshots = Snapshots(tree("plain-vm"), memory=MEMORY, state_dir=tmp_path / "gone", generated=lambda: 0)
    seen = snapshots.take(snapshots.look())
    assert (seen.disk_free_bytes, seen.agent_rss_bytes > 0) == (None, True)


def test_who_asks_is_told_of_now_and_takes_nothing_from_the_reports(tree, tmp_path):
    """Asked again at once, the same is told: the load of a moment says little, and each reading costs."""
    root = tree("plain-vm")
    shutil.rmtree(root / "proc", ignore_errors=True)
    now = SimpleNamespace(s=0.0)

    def pass_(seconds, *, busy, idle):
        now.s += seconds
        write(root, "proc/stat", f"cpu  {busy} 0 0 {idle} 0 0 0 0 0 0\n")

    pass_(0, busy=100, idle=1000)
    snapshots = Snapshots(root, memory=MEMORY, state_dir=tmp_path, generated=lambda: 0, now_s=lambda: now.s)
    pass_(10, busy=150, idle=1000)
    assert snapshots.take(snapshots.look()).cpu_percent == 100.0
    pass_(0.5, busy=150, idle=1050)
    assert snapshots.now().cpu_percent == 100.0
    pass_(0.5, busy=150, idle=1050)
    assert snapshots.now().cpu_percent == 0.0
    pass_(9, busy=200, idle=1050)
    assert snapshots.now().cpu_percent == 50.0
    assert snapshots.take(snapshots.look()).cpu_percent == 50.0
