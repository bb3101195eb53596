"""What a machine shows, on trees like those of real machines and on nonsense."""

import errno
import os
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hardware import heat, power, usage
from hardware.heat import Cooling, Heat, Sensor
from hardware.power import Battery, Meter, Power, Rail
from hardware.pressure import Pressure, Stall
from hardware.readings import Readings, readings
from hardware.usage import Activity, Clock, CpuTime, Traffic, Usage
from tests.machines import FOLDER, build

NO_HEAT = Heat(sensors=(), cooling=(), throttle_events=None)
NO_POWER = Power(meters=(), rails=(), batteries=(), mains=None, undervoltage=None)
NO_PRESSURE = Pressure(cpu=None, memory=None, io=None, own_memory=None, load_1m=None)
NO_USAGE = Usage(
    cpu=None,
    cpu_clock=None,
    available_bytes=None,
    swap_used_bytes=None,
    own_memory_bytes=None,
    network=None,
    accelerators=(),
)
CALM = Stall(some_percent=0.0, full_percent=0.0)


def reading(*, at_s=7.0, heat=NO_HEAT, power=NO_POWER, pressure=NO_PRESSURE, usage=NO_USAGE):
    return Readings(at_s=at_s, heat=heat, power=power, pressure=pressure, usage=usage)


def heat_of(*sensors, cooling=(), throttle_events=None):
    return Heat(sensors=sensors, cooling=cooling, throttle_events=throttle_events)


def power_of(**known):
    return Power(**{name: known.get(name, getattr(NO_POWER, name)) for name in Power.__slots__})


def usage_of(**known):
    return Usage(**{name: known.get(name, getattr(NO_USAGE, name)) for name in Usage.__slots__})


def pressure_of(**known):
    return Pressure(**{name: known.get(name, getattr(NO_PRESSURE, name)) for name in Pressure.__slots__})


EXAMPLE_CPU = CpuTime(busy_s=7_276_128.92, total_s=26_022_659.8)
EXAMPLE_TRAFFIC = Traffic(received_bytes=16_089_670, sent_bytes=3_079_084)

MACHINES = {
    "arc-a770-box": reading(),
    "epyc-vm-recorded": reading(
        pressure=Pressure(cpu=Stall(91.37, 0.0), memory=CALM, io=Stall(0.84, 0.0), own_memory=None, load_1m=3.83),
        usage=usage_of(
            cpu=CpuTime(busy_s=2814.42, total_s=10_875.98),
            available_bytes=24_821_489_664,
            swap_used_bytes=0,
            network=Traffic(received_bytes=206_003_378, sent_bytes=322_547),
        ),
    ),
    "jetson-orin-nano": reading(
        heat=heat_of(
            Sensor("cpu-thermal", 47.4, passive_c=95.0, hot_c=99.0, critical_c=104.5), Sensor("gpu-thermal", 43.0)
        )
    ),
    "limited-container": reading(pressure=pressure_of(memory=CALM, own_memory=CALM)),
    "lunar-lake-laptop": reading(
        usage=usage_of(accelerators=(Activity("accel0", busy_us=979_473, clock=Clock(0.0, None, 1900.0)),))
    ),
    "meteor-lake-laptop": reading(
        heat=heat_of(
            Sensor("x86_pkg_temp", 60.0),
            Sensor("coretemp: Package id 0", 60.0, hot_c=100.0, critical_c=100.0),
            Sensor("coretemp: Core 0", 57.0, hot_c=100.0, critical_c=100.0),
            Sensor("coretemp: Core 4", 59.0, hot_c=100.0, critical_c=100.0),
        ),
        power=power_of(meters=(Meter("package-0", 26_963.529117, range_joules=262_143.32885),)),
    ),
    "nvidia-server": reading(usage=usage_of(cpu=EXAMPLE_CPU, network=EXAMPLE_TRAFFIC)),
    "plain-vm": reading(
        pressure=pressure_of(cpu=Stall(0.0, None), memory=CALM, io=CALM),
        usage=usage_of(cpu=EXAMPLE_CPU, network=EXAMPLE_TRAFFIC),
    ),
    "raspberry-pi-5": reading(
        heat=heat_of(
            Sensor("cpu-thermal", 31.235, passive_c=80.0, critical_c=110.0),
            Sensor("rp1_adc: temp1", 55.472),
            Sensor("nvme: Composite", 32.85),
        ),
        power=power_of(undervoltage=False),
        usage=usage_of(cpu_clock=Clock(None, None, 2400.0)),
    ),
    "ryzen-ai-laptop": reading(
        heat=heat_of(Sensor("amdgpu: edge", 38.0)),
        power=power_of(rails=(Rail("amdgpu: PPT", 15.0),)),
        usage=usage_of(accelerators=(Activity("card1", busy_percent=0.0),)),
    ),
    "snapdragon-x-laptop": reading(
        heat=heat_of(
            Sensor("aoss0-thermal", 44.1, hot_c=90.0, critical_c=115.0),
            Sensor("nvme: Composite", 29.85, hot_c=77.85, critical_c=81.85),
            Sensor("nvme: Sensor 1", 29.85),
        ),
        power=power_of(
            batteries=(Battery("qcom-battmgr-bat", percent=None, discharging=None, watts=4.25, energy_joules=None),)
        ),
    ),
}
"""What each of the trees below tests/machines shows; where its values are published stands there."""


@pytest.mark.parametrize("name", sorted(MACHINES))
def test_machine(name, tmp_path):
    """A machine shows exactly what its files say, and nothing where they say nothing."""
    assert readings(build(name, tmp_path), clock=lambda: 7.0) == MACHINES[name]


def test_every_machine_is_in_the_table():
    assert {file.parent.name for file in FOLDER.glob("*/readings.toml")} == set(MACHINES)


def write(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")


def put(root, folder, **files):
    write(root, {f"{folder}/{name}": text for name, text in files.items()})


def test_empty_root(tmp_path):
    """A machine that tells nothing shows nothing, not zeros."""
    assert readings(tmp_path, clock=lambda: 7.0) == reading()


def test_this_machine():
    """Wherever this runs, processors have worked."""
    now = readings()
    assert now.usage.cpu is None or 0 < now.usage.cpu.busy_s <= now.usage.cpu.total_s


# Heat


def test_margin_is_to_the_first_limit(tmp_path):
    """A sensor's margin is what is left to its lowest limit; without limits there is none."""
    zone = "sys/class/thermal/thermal_zone0"
    put(tmp_path, zone, type="cpu-thermal", temp="91500")
    put(tmp_path, zone, trip_point_0_type="critical", trip_point_0_temp="110000")
    put(tmp_path, zone, trip_point_1_type="passive", trip_point_1_temp="95000")
    put(tmp_path, zone, trip_point_2_type="passive", trip_point_2_temp="90000")
    put(tmp_path, "sys/class/thermal/thermal_zone1", type="acpitz", temp="20000")
    cpu, other = readings(tmp_path).heat.sensors
    assert (cpu.passive_c, cpu.margin_c) == (90.0, -1.5)
    assert other.margin_c is None


@pytest.mark.parametrize("temp", ["-274000", "65261850", "", "hot", "1" * 40, "48.5"])
def test_a_sensor_that_is_off_is_absent(tmp_path, temp):
    put(tmp_path, "sys/class/thermal/thermal_zone0", type="cv0-thermal", temp=temp)
    put(tmp_path, "sys/class/hwmon/hwmon0", name="nvme", temp1_input=temp)
    assert readings(tmp_path).heat.sensors == ()


@pytest.mark.parametrize("limit", ["0", "-274000", "20800", "65261850"])
def test_a_limit_that_nobody_set_is_none(tmp_path, limit):
    put(tmp_path, "sys/class/thermal/thermal_zone0", type="acpitz", temp="48000")
    put(tmp_path, "sys/class/thermal/thermal_zone0", trip_point_0_type="critical", trip_point_0_temp=limit)
    put(tmp_path, "sys/class/hwmon/hwmon0", name="nvme", temp1_input="30000", temp1_max=limit)
    assert [sensor.margin_c for sensor in readings(tmp_path).heat.sensors] == [None, None]


def test_an_offline_zone_answers_again_later(tmp_path, monkeypatch):
    """Zones 2 to 4 of a Jetson Orin Nano answer EAGAIN: absent, neither an error nor a wait."""
    put(tmp_path, "sys/class/thermal/thermal_zone2", type="cv0-thermal", temp="48000")
    offline = (tmp_path / "sys/class/thermal/thermal_zone2/temp").stat().st_ino
    os_read = os.read

    def read(handle, size):
        if os.fstat(handle).st_ino == offline:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        return os_read(handle, size)

    assert readings(tmp_path).heat.sensors != ()
    monkeypatch.setattr(os, "read", read)
    assert readings(tmp_path).heat.sensors == ()


def test_cooling_at_work(tmp_path):
    """A fan cools, and that slows nothing; a limited clock does; what rests is not named."""
    folder = "sys/class/thermal/cooling_device"
    put(tmp_path, f"{folder}0", type="pwm-fan", cur_state="3", max_state="4")
    put(tmp_path, f"{folder}1", type="Processor", cur_state="0", max_state="10")
    put(tmp_path, f"{folder}2", type="intel_powerclamp", cur_state="-1", max_state="50")
    put(tmp_path, f"{folder}10", type="cpufreq-cpu0", cur_state="2", max_state="noise")
    now = readings(tmp_path).heat
    assert now.cooling == (Cooling("pwm-fan", 3, 4), Cooling("cpufreq-cpu0", 2, None))
    assert heat.slowed(now, now) == ("cooled by cpufreq-cpu0",)


def throttled(tmp_path, **counts):
    for cpu in ("cpu0", "cpu1"):
        put(tmp_path, f"sys/devices/system/cpu/{cpu}/thermal_throttle", **counts)
    return readings(tmp_path).heat


def test_thermal_throttling(tmp_path):
    """Intel's counters say that the processor was slowed between two readings; standing high they say nothing."""
    before = throttled(tmp_path, core_throttle_count="5", package_throttle_count="9")
    assert heat.slowed(before, before) == ()
    after = throttled(tmp_path, core_throttle_count="5", package_throttle_count="10")
    assert heat.slowed(before, after) == ("the processor reports thermal throttling",)
    assert heat.slowed(NO_HEAT, after) == heat.slowed(after, NO_HEAT) == ()


def test_large_servers_are_sampled(tmp_path):
    """Of many processors some are asked, from the first to the last, so that every package is among them."""
    for cpu in range(512):
        put(tmp_path, f"sys/devices/system/cpu/cpu{cpu}/thermal_throttle", package_throttle_count=str(cpu // 256))
    assert readings(tmp_path).heat.throttle_events == 28


# Power


def test_rapl_zones_that_do_not_contain_each_other(tmp_path):
    """Package, memory beside it and the platform are metered; the cores, a part of the package, are not."""
    zones = {"intel-rapl:0": "package-0", "intel-rapl:0/intel-rapl:0:0": "core", "intel-rapl:0/intel-rapl:0:1": "dram"}
    for number, (zone, name) in enumerate((zones | {"intel-rapl:1": "psys", "intel-rapl-mmio:0": "package-0"}).items()):
        put(
            tmp_path,
            f"sys/class/powercap/{zone}",
            name=name,
            energy_uj=f"{number}000000",
            max_energy_range_uj="9000000",
        )
    assert readings(tmp_path).power.meters == (
        Meter("package-0", 0.0, 9.0),
        Meter("package-0 dram", 2.0, 9.0),
        Meter("psys", 3.0, 9.0),
    )


def test_rails(tmp_path):
    """A Jetson's rails are volts times amperes, without those that are not connected; a card's counter is a meter."""
    put(tmp_path, "sys/class/hwmon/hwmon0", name="ina3221", in1_label="VDD_IN", in1_input="5000", curr1_input="1200")
    put(tmp_path, "sys/class/hwmon/hwmon0", in2_label="NC", in2_input="5000", curr2_input="0")
    put(tmp_path, "sys/class/hwmon/hwmon0", in3_label="VDD_SOC", in3_input="5000", in7_input="12")
    put(tmp_path, "sys/class/hwmon/hwmon1", name="xe", energy2_label="pkg", energy2_input="414000000")
    put(tmp_path, "sys/class/hwmon/hwmon2", name="amdgpu", power1_average="noise", power1_input="18000000")
    now = readings(tmp_path).power
    assert now.rails == (Rail("ina3221: VDD_IN", 6.0), Rail("amdgpu: power1", 18.0))
    assert [rail.whole for rail in now.rails] == [True, False]
    assert now.meters == (Meter("xe: pkg", 414.0, None),)


def test_a_sleeping_card_is_left_asleep(tmp_path):
    """Neither the chip nor the load of a suspended graphics card is read: that would wake it."""
    for device in ("sys/class/drm/card0/device", "sys/class/hwmon/hwmon0/device"):
        put(tmp_path, f"{device}/power", runtime_status="active")
    put(tmp_path, "sys/class/hwmon/hwmon0", name="amdgpu", power1_average="1000000", temp1_input="40000")
    put(tmp_path, "sys/class/drm/card0/device", gpu_busy_percent="3")
    awake = readings(tmp_path)
    assert awake.power.rails
    assert awake.heat.sensors
    assert awake.usage.accelerators
    for device in ("sys/class/drm/card0/device", "sys/class/hwmon/hwmon0/device"):
        put(tmp_path, f"{device}/power", runtime_status="suspended")
    assert readings(tmp_path, clock=lambda: 7.0) == reading()


def supply(tmp_path, name, **files):
    put(tmp_path, f"sys/class/power_supply/{name}", **files)


def test_batteries(tmp_path):
    """A battery tells watts or amperes, which is no rail as well; a mouse's is not the machine's."""
    supply(tmp_path, "BAT0", type="Battery", status="Discharging", capacity="81", power_now="9500000")
    supply(tmp_path, "BAT0", energy_now="40000000")
    supply(tmp_path, "BAT1", type="Battery", status="Charging", capacity="130", current_now="-1500000")
    supply(tmp_path, "BAT1", voltage_now="8000000", charge_now="2000000")
    supply(tmp_path, "hidpp_battery_0", type="Battery", scope="Device", status="Discharging", capacity="5")
    supply(tmp_path, "AC", type="Mains", online="0")
    put(tmp_path, "sys/class/hwmon/hwmon0", name="BAT0", power1_input="9500000")
    (tmp_path / "sys/class/hwmon/hwmon0/device").symlink_to("../../power_supply/BAT0")
    now = readings(tmp_path).power
    assert now.rails == ()
    assert now.batteries == (
        Battery("BAT0", percent=81.0, discharging=True, watts=9.5, energy_joules=144_000.0),
        Battery("BAT1", percent=None, discharging=False, watts=12.0, energy_joules=57_600.0),
    )
    assert now.mains is False
    supply(tmp_path, "ucsi-source-psy", type="USB", online="1")
    assert readings(tmp_path).power.mains is True


def test_idle_chargers_of_a_box_without_battery(tmp_path):
    """A box that runs has power, whatever its USB ports say."""
    supply(tmp_path, "ucsi-source-psy", type="USB", online="0")
    assert readings(tmp_path).power.mains is None


def test_undervoltage(tmp_path):
    put(tmp_path, "sys/class/hwmon/hwmon3", name="rpi_volt", in0_lcrit_alarm="1")
    assert readings(tmp_path).power.undervoltage is True


def test_energy_becomes_power():
    """The mean of each meter over the time between two readings, when it can be true, then what flows now."""
    before = power_of(meters=(Meter("package-0", 100.0, 1000.0), Meter("psys", 990.0, 1000.0)))
    after = power_of(
        meters=(Meter("package-0", 160.0, 1000.0), Meter("psys", 30.0, 1000.0)), rails=(Rail("PPT", 15.0),)
    )
    assert power.drawn(before, after, 4.0) == (Rail("package-0", 15.0), Rail("psys", 10.0), Rail("PPT", 15.0))
    assert power.drawn(before, after, 0.0001) == (Rail("PPT", 15.0),)
    assert power.drawn(before, after, 0.0) == power.drawn(NO_POWER, after, 4.0) == (Rail("PPT", 15.0),)


@pytest.mark.parametrize(
    ("before", "after", "range_joules", "spent"),
    [
        (1.0, 3.5, None, 2.5),
        (9.0, 1.0, 10.0, 2.0),
        (9.0, 1.0, None, None),
        (11.0, 1.0, 10.0, None),
        (5.0, 5.0, 10.0, 0.0),
    ],
)
def test_energy_between_two_readings(before, after, range_joules, spent):
    """A counter that passed its range went on at 0; one that was set back tells nothing."""
    assert power.joules(Meter("psys", before, range_joules), Meter("psys", after, range_joules)) == spent


# Pressure and use


def test_pressure(tmp_path):
    put(tmp_path, "proc/self", cgroup="0::/system.slice/edge-agent.service")
    own = "sys/fs/cgroup/system.slice/edge-agent.service"
    stalled = "some avg10=12.34 avg60=0.00 avg300=0.00 total=1\nfull avg10=5.60 avg60=0.00 avg300=0.00 total=1"
    write(tmp_path, {f"{own}/memory.pressure": stalled, f"{own}/memory.current": 2**30})
    write(
        tmp_path, {"proc/pressure/io": "some avg10=nan avg60=0.00", "proc/pressure/cpu": "some avg10=101.00 avg60=0.00"}
    )
    now = readings(tmp_path)
    assert now.pressure == pressure_of(own_memory=Stall(some_percent=12.34, full_percent=5.6))
    assert now.usage.own_memory_bytes == 2**30


def test_swap_in_use(tmp_path):
    write(tmp_path, {"proc/meminfo": "MemAvailable: 7 kB\nSwapTotal: 2048 kB\nSwapFree: 1024 kB"})
    now = readings(tmp_path).usage
    assert (now.available_bytes, now.swap_used_bytes) == (7 * 1024, 2**20)


def test_clock_of_unequal_processors(tmp_path):
    """The processors' clock is their mean; what heat or a setting took from them shows in what they may."""
    folder = "sys/devices/system/cpu/cpufreq"
    put(
        tmp_path, f"{folder}/policy0", scaling_cur_freq="800000", scaling_max_freq="1500000", cpuinfo_max_freq="2000000"
    )
    put(
        tmp_path,
        f"{folder}/policy4",
        scaling_cur_freq="<unknown>",
        scaling_max_freq="3000000",
        cpuinfo_max_freq="3000000",
    )
    assert readings(tmp_path).usage.cpu_clock == Clock(now_mhz=800.0, allowed_mhz=2250.0, max_mhz=2500.0)


def test_accelerators(tmp_path):
    """i915 and xe tell clocks, amdgpu and the Jetson's driver load, an NPU both its clock and how long it worked."""
    put(tmp_path, "sys/class/drm/card0", gt_act_freq_mhz="1150", gt_max_freq_mhz="2000", gt_RP0_freq_mhz="2250")
    put(tmp_path, "sys/class/drm/card1/device/tile0/gt0/freq0", act_freq="0", max_freq="1900", rp0_freq="1950")
    put(tmp_path, "sys/class/drm/card1-DP-1/device", gpu_busy_percent="1")
    put(tmp_path, "sys/class/drm/card2/device", gpu_busy_percent="97")
    put(tmp_path, "sys/class/drm/card3/device", gpu_busy_percent="101")
    put(tmp_path, "sys/class/accel/accel0/device", npu_busy_time_us="979473", npu_max_frequency_mhz="1900")
    put(tmp_path, "sys/class/devfreq/17000000.gpu", cur_freq="306000000", max_freq="624750000")
    put(tmp_path, "sys/class/devfreq/17000000.gpu/device", load="345")
    put(tmp_path, "sys/class/devfreq/memory", cur_freq="306000000")
    assert readings(tmp_path).usage.accelerators == (
        Activity("card0", clock=Clock(1150.0, 2000.0, 2250.0)),
        Activity("card1", clock=Clock(0.0, 1900.0, 1950.0)),
        Activity("card2", busy_percent=97.0),
        Activity("accel0", busy_us=979_473, clock=Clock(None, None, 1900.0)),
        Activity("17000000.gpu", busy_percent=34.5, clock=Clock(306.0, 624.75, None)),
    )


@pytest.mark.parametrize(
    ("before", "after", "share"),
    [
        (CpuTime(10.0, 100.0), CpuTime(13.0, 112.0), 0.25),
        (CpuTime(10.0, 100.0), CpuTime(10.0, 100.0), None),
        (CpuTime(10.0, 100.0), CpuTime(9.9, 101.0), 0.0),
        (CpuTime(10.0, 100.0), CpuTime(11.01, 101.0), 1.0),
        (CpuTime(10.0, 100.0), CpuTime(1.0, 2.0), None),
        (None, CpuTime(1.0, 2.0), None),
        (CpuTime(1.0, 2.0), None, None),
    ],
)
def test_busy_share(before, after, share):
    """The share of processor time that was busy, within 0 and 1 though the kernel's idle time may run back."""
    assert usage.busy_share(before, after) == share


@pytest.mark.parametrize(
    ("before_us", "after_us", "elapsed_s", "share"),
    [
        (1_000_000, 1_500_000, 2.0, 0.25),
        (0, 9_000_000, 2.0, 1.0),
        (5, 4, 1.0, None),
        (None, 4, 1.0, None),
        (1, 2, 0.0, None),
    ],
)
def test_worked_share(before_us, after_us, elapsed_s, share):
    before, after = Activity("accel0", busy_us=before_us), Activity("accel0", busy_us=after_us)
    assert usage.worked_share(before, after, elapsed_s) == share


# Nonsense

EVERY_FILE = (
    "proc/device-tree/compatible",
    "proc/loadavg",
    "proc/meminfo",
    "proc/net/dev",
    "proc/pressure/memory",
    "proc/self/cgroup",
    "proc/stat",
    "sys/class/accel/accel0/device/npu_busy_time_us",
    "sys/class/devfreq/gpu/device/load",
    "sys/class/drm/card0/device/gpu_busy_percent",
    "sys/class/drm/card0/device/power/runtime_status",
    "sys/class/hwmon/hwmon0/name",
    "sys/class/hwmon/hwmon0/energy1_input",
    "sys/class/hwmon/hwmon0/power1_input",
    "sys/class/hwmon/hwmon0/temp1_crit",
    "sys/class/hwmon/hwmon0/temp1_input",
    "sys/class/hwmon/hwmon0/temp1_label",
    "sys/class/power_supply/BAT0/capacity",
    "sys/class/power_supply/BAT0/current_now",
    "sys/class/power_supply/BAT0/status",
    "sys/class/power_supply/BAT0/type",
    "sys/class/power_supply/BAT0/voltage_now",
    "sys/class/powercap/intel-rapl:0/energy_uj",
    "sys/class/powercap/intel-rapl:0/name",
    "sys/class/thermal/cooling_device0/cur_state",
    "sys/class/thermal/cooling_device0/type",
    "sys/class/thermal/thermal_zone0/temp",
    "sys/class/thermal/thermal_zone0/trip_point_0_temp",
    "sys/class/thermal/thermal_zone0/trip_point_0_type",
    "sys/class/thermal/thermal_zone0/type",
    "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_cur_freq",
    "sys/fs/cgroup/memory.current",
    "sys/fs/cgroup/memory.pressure",
)

ODD = st.one_of(
    st.binary(max_size=100),
    st.integers().map(lambda number: str(number).encode()),
    st.sampled_from(
        [
            b"",
            b"-1",
            b"9" * 5000,
            b"9" * 18,
            b"\xc2\xb2",
            b"1e9",
            b"0x10",
            b"inf",
            b"name" * 1000,
            b"Battery",
            b"Discharging",
            b"ina3221",
            b"cpu 1 2",
            b"cpu  1 2 3 4 5 6 7 8 9 \xff",
            b"eth0: 1 2 3\n:\nlo:",
            b"0::/\0",
            b"0::" + b"/long" * 2000,
            b"some avg10=1.00 x\nfull avg10=9.00 x",
            b"passive",
            b"50000",
        ]
    ),
)


@settings(max_examples=100, deadline=None)
@given(texts=st.lists(ODD, min_size=len(EVERY_FILE), max_size=len(EVERY_FILE)))
def test_nonsense_in_every_file(texts):
    """Whatever the files hold, nothing raises, and what is shown could be true."""
    with TemporaryDirectory() as folder:
        root = Path(folder)
        for name, text in zip(EVERY_FILE, texts, strict=True):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(text)
        now = readings(root)
    for sensor in now.heat.sensors:
        assert -60 <= sensor.celsius <= 250
        assert sensor.name.isprintable()
        assert sensor.margin_c is None or sensor.margin_c < 400
    assert all(0 <= rail.watts <= 1_000_000 for rail in power.drawn(now.power, now.power, 1.0))
    assert all(each.percent is None or 0 <= each.percent <= 100 for each in now.power.batteries)
    assert all(each.busy_percent is None or 0 <= each.busy_percent <= 100 for each in now.usage.accelerators)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["FIFO", "folder"])
def test_other_things_in_place_of_files(tmp_path, make):
    """A FIFO without a writer would make a reader wait for ever, a folder raise: both are unknown."""
    for name in EVERY_FILE:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        make(tmp_path / name)
    assert readings(tmp_path, clock=lambda: 7.0) == reading()


@pytest.mark.parametrize("folder", ["sys/class/thermal", "sys/class/hwmon", "sys/class/power_supply", "sys/class/drm"])
def test_files_in_place_of_folders(tmp_path, folder):
    write(tmp_path, {folder: "noise"})
    assert readings(tmp_path, clock=lambda: 7.0) == reading()


def test_links_in_a_circle(tmp_path):
    (tmp_path / "sys/class").mkdir(parents=True)
    (tmp_path / "sys/class/hwmon").symlink_to("hwmon")
    (tmp_path / "sys/class/thermal/thermal_zone0").mkdir(parents=True)
    (tmp_path / "sys/class/thermal/thermal_zone0/temp").symlink_to("temp")
    assert readings(tmp_path, clock=lambda: 7.0) == reading()
