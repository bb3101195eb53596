"""What an agent reports of itself and its machine, in words: for the agent on this machine and for those of a fleet."""

from collections.abc import Iterator

from edge_agent.cli.words import duration, size
from edge_agent.protocol.payloads import Telemetry

Rows = Iterator[tuple[str, str]]


def facts(told: Telemetry) -> Rows:
    """Yield the name and the value of everything that is known, in words."""
    yield from _work(told)
    yield from _machine(told)


def _work(told: Telemetry) -> Rows:
    waiting = ", ".join(f"{count} {state}" for state, count in told.queue.items() if count) or "nothing to do"
    yield "queue", waiting + (f", the oldest for {duration(told.queue_oldest_s)}" if told.queue_oldest_s else "")
    done = (f"{count:,} {name.replace('_', ' ')}" for name, count in told.counters.items())
    yield "since start", ", ".join(done) or "no jobs"
    if told.lifetime:
        succeeded, tokens = told.lifetime.get("succeeded", 0), told.lifetime.get("completion_tokens", 0)
        yield "ever", f"{told.lifetime.get('accepted', 0):,} accepted, {succeeded:,} succeeded, {tokens:,} tokens"
    if told.outbox_waiting or told.outbox_dropped:
        yield "outbox", f"{told.outbox_waiting or 0} waiting, {told.outbox_dropped or 0} dropped"
    if told.reconnects:
        yield "reconnects", str(told.reconnects)


def _machine(told: Telemetry) -> Rows:
    if told.cpu_percent is not None:
        load = "" if told.load_1m is None else f", load {told.load_1m:.2f}"
        yield "processor", f"{told.cpu_percent:.0f} %{load}"
    if told.memory_available_bytes is not None:
        total = f" of {size(told.memory_total_bytes)}" if told.memory_total_bytes else ""
        stall = f", {told.memory_stall_percent:.0f} % waiting" if told.memory_stall_percent else ""
        yield "memory", f"{size(told.memory_available_bytes)} free{total}{stall}"
    if told.disk_free_bytes is not None:
        yield "disk", f"{size(told.disk_free_bytes)} free"
    if told.hottest_celsius is not None:
        margin = "" if told.heat_margin_c is None else f", {told.heat_margin_c:.0f} K below its limit"
        yield "heat", ", ".join((f"{told.hottest_celsius:.0f} °C ({told.hottest}{margin})", *(told.slowed or ())))
    if told.power_watts is not None:
        energy = f", {told.joules_per_token:.1f} J a token" if told.joules_per_token is not None else ""
        yield "power", f"{told.power_watts:.1f} W ({told.power_of}){energy}"
    if told.on_battery is not None:
        charge = "" if told.battery_percent is None else f", {told.battery_percent:.0f} %"
        yield "battery", ("in use" if told.on_battery else "not in use") + charge
    if told.undervoltage:
        yield "supply", "gives way"
    for each in told.accelerators or ():
        shown = ((each.busy_percent, "% busy"), (each.clock_mhz, "MHz"), (each.celsius, "°C"))
        yield each.name, ", ".join(f"{value:.0f} {unit}" for value, unit in shown if value is not None)
