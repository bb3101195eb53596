"""What somebody sees who looks at a fleet, at every width, and where each key leads."""

import pytest
from fleeting import Band, engine
from rich.cells import cell_len

from edge_agent.cli import fleet_list
from edge_agent.cli.fleet_screen import Scene, page, screen
from edge_agent.cli.keyboard import keys
from edge_agent.cli.words import curve, fit, span
from edge_agent.fleet.browsing import PROMPT_MAX, WORDS_MAX, Browsing, Screen
from edge_agent.fleet.rows import SortOrder, rows
from edge_agent.protocol.payloads import AcceleratorReading, ServedModel

HEIGHT = 24
WIDTHS = (80, 120, 200)


class Viewer:
    """Somebody at a terminal of this width, before a fleet."""

    def __init__(self, band, width, at=None):
        self.band, self.width = band, width
        self.at = at or Browsing()

    @property
    def rows(self):
        return rows(self.band.roster, self.band.now_s, sort=self.at.sort, words=self.at.words, reverse=self.at.reverse)

    def look(self):
        """Return the lines on the screen."""
        found = self.rows
        self.at = self.at.settle(found)
        member = self.band.roster.member(self.at.chosen or "")
        row = next((each for each in found if each.agent == self.at.chosen), None)
        scene = Scene(
            rows=found, known=len(self.band.roster), head="edge/v1", hint="nobody yet", member=member, member_row=row
        )
        text, top = screen(scene, self.at, self.width, HEIGHT)
        self.at = self.at.scrolled(top)
        return text.plain.split("\n")

    def press(self, *pressed):
        for key in pressed:
            self.look()
            self.at = self.at.press(key, self.rows, page=page(HEIGHT, self.at.place))
        return self.look()


def band_of(agents):
    """A fleet of so many, the first of them ill, the second gone, the third hot."""
    band = Band()
    for number in range(agents):
        band.born(
            f"press-{number:03}",
            hottest_celsius=50.0,
            heat_margin_c=30.0,
            memory_total_bytes=2**33,
            memory_available_bytes=2**31,
        )
    band.telemetry("press-000", health="unhealthy", reasons=("phi: no build fits into the memory of this machine",))
    if agents > 2:
        band.presence("press-001", "offline")
        band.telemetry("press-002", health="degraded", reasons=("fewer lanes: hot",), hottest_celsius=84.0)
    band.now_s = 3.0
    return band


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("agents", [1, 20, 300])
def test_the_list_fills_the_screen_and_no_line_is_too_long(width, agents):
    lines = Viewer(band_of(agents), width).look()
    assert len(lines) == HEIGHT
    assert {cell_len(line) for line in lines} == {width}
    assert f"{agents} agent" in lines[-2]
    assert "q quit" in lines[-1]


@pytest.mark.parametrize("width", WIDTHS)
def test_columns_stand_below_their_headings_and_the_worst_first(width):
    _, heading, ill, gone, hot, well, *_ = Viewer(band_of(20), width).look()
    at = heading.index("health")
    for line, state in ((ill, "unhealthy"), (gone, "offline"), (hot, "degraded"), (well, "ready")):
        assert line[at:].startswith(state)
    end = heading.index("queue") + len("queue")
    assert well[:end].endswith("  3")
    assert "seen" in heading
    assert "tok/s" in heading


def test_eighty_columns_have_everything_that_was_asked_for():
    """Health, model, device, queue, tokens/s, heat, memory, version, last seen."""
    heading = Viewer(band_of(300), 80).look()[1]
    for name in ("agent", "health", "model", "on", "queue", "tok/s", "heat", "mem", "version", "seen"):
        assert name in heading, name


def test_long_names_and_models_give_way_and_numbers_do_not():
    band = band_of(3)
    long_name = "a-device-with-a-very-long-name-in-hall-seven-beside-the-press"
    band.born(long_name, engines=(engine(model="a-model-with-a-name-of-more-than-twenty-letters"),))
    lines = Viewer(band, 80).look()
    (line,) = [line for line in lines if "a-devi" in line]
    assert "…" in line
    assert "9.5" in line
    assert {cell_len(each) for each in lines} == {80}


def test_wide_letters_keep_the_columns():
    band = band_of(3)
    band.telemetry("press-000", health="unhealthy", reasons=("内存不足" * 30,), engines=(engine(model="模型" * 20),))
    for width in WIDTHS:
        assert {cell_len(line) for line in Viewer(band, width).look()} == {width}


def test_the_reason_of_the_chosen_one_stands_below_a_narrow_list_and_beside_it_in_a_wide_one():
    band = band_of(20)
    assert "no build fits" in Viewer(band, 80).look()[-3]
    assert "no build fits" in Viewer(band, 200).look()[2]


def test_the_chosen_one_stays_in_sight_and_chosen():
    """Also when others get worse and push it down."""
    viewer = Viewer(band_of(300), 80)
    lines = viewer.press("end")
    assert any(line.startswith("> press-299") for line in lines)
    assert "of 300" in lines[0]
    viewer.press("home", "down", "down", "down", "down")
    chosen = viewer.at.chosen
    for number in range(100, 140):
        viewer.band.telemetry(f"press-{number}", health="unhealthy")
    assert any(line.startswith(f"> {chosen}") for line in viewer.look())


def test_an_empty_fleet_says_why():
    lines = Viewer(Band(), 80).look()
    assert "nobody yet" in lines[2]
    assert "0 agents" in lines[-2]


def test_sorting_goes_round():
    viewer = Viewer(band_of(3), 80)
    seen = []
    for _ in SortOrder:
        viewer.press("s")
        seen.append(viewer.at.sort)
    assert set(seen) == set(SortOrder)
    viewer.press("S", "s", "r")
    assert (viewer.at.sort, viewer.at.reverse) == (SortOrder.HEALTH, True)


def test_a_filter_is_typed_seen_kept_and_cleared():
    viewer = Viewer(band_of(20), 80)
    lines = viewer.press("/", *"press-01x", "backspace")
    assert "filter press-01" in lines[-1]
    assert "10 of 20 agents" in lines[-2]
    assert "only press-01" in viewer.press("enter")[0]
    assert viewer.at.place is Screen.LIST
    viewer.press("escape")
    assert len(viewer.rows) == 20


@pytest.mark.parametrize("width", [60, *WIDTHS])
def test_one_agent_in_detail(width):
    band = band_of(3)
    for number in range(2, 40):
        band.telemetry(
            "press-000",
            health="unhealthy",
            uptime_s=10.0 * number,
            hottest="cpu-thermal",
            hottest_celsius=50.0 + number % 7,
            heat_margin_c=30.0,
            cpu_percent=10.0 + number,
            counters={"completion_tokens": number * number},
            power_watts=8.3,
            power_of="machine",
            accelerators=(AcceleratorReading(name="accel0", busy_percent=25.0),),
        )
    served = ServedModel(name="big", state="ready", host="the-server", pinned=True)
    band.info("press-000", models=(served,))
    viewer = Viewer(band, width, Browsing(place=Screen.DETAIL, chosen="press-000"))
    lines, last = viewer.look(), None
    while viewer.at.top != last:
        last = viewer.at.top
        lines += viewer.press("page down")
    assert {cell_len(line) for line in lines} == {width}
    text = "\n".join(lines)
    for part in ("press-000  ", "Raspberry Pi 5", "accel0", "phi-int4 on cpu, 4.0 GiB, 9.5 tok/s expected", "tokens/s"):
        assert part in text
    assert "there is no NVIDIA GPU" in text
    assert "big: pinned, answered by the-server" in text
    assert "█" in text
    viewer.press("n")
    assert viewer.at.chosen != "press-000"
    assert viewer.press("escape")[-2].startswith("3 agents")


def test_an_agent_that_is_no_more_can_still_be_left():
    band = band_of(3)
    viewer = Viewer(band, 80)
    viewer.press("enter")
    band.say(viewer.at.chosen, "presence", b"")
    assert "nothing is known of" in viewer.look()[1]
    viewer.press("escape")
    assert viewer.at.chosen in {row.agent for row in viewer.rows}


def test_a_test_prompt_is_typed_and_sent_to_the_chosen_agent():
    viewer = Viewer(band_of(3), 80)
    viewer.press("down", "t")
    chosen = viewer.at.chosen
    assert f"ask {chosen}: q?" in viewer.press("q", "?")[1]
    viewer.press("enter")
    assert (viewer.at.chosen, viewer.at.ask) == (chosen, "q?")
    assert viewer.at.place is Screen.DETAIL


def test_a_prompt_that_is_empty_or_called_off_is_not_sent():
    viewer = Viewer(band_of(3), 80)
    viewer.press("t", " ", "enter", "t", "x", "escape")
    assert viewer.at.ask == ""
    viewer.press("t", "up", "home", *("x" * (PROMPT_MAX + 9)))
    assert viewer.at.typed == "x" * PROMPT_MAX


def test_the_words_of_a_filter_have_an_end_and_keys_are_no_letters():
    viewer = Viewer(band_of(3), 80)
    viewer.press("/", "home", *("x" * (WORDS_MAX + 9)))
    assert viewer.at.words == "x" * WORDS_MAX


def test_q_leaves_from_everywhere_but_where_it_is_a_letter():
    for before in ((), ("enter",)):
        viewer = Viewer(band_of(3), 80)
        viewer.press(*before, "q")
        assert viewer.at.over
    viewer = Viewer(band_of(3), 80)
    viewer.press("/", "q")
    assert (viewer.at.over, viewer.at.words) == (False, "q")


@pytest.mark.parametrize(
    ("sent", "pressed"),
    [
        ("qé", ["q", "é"]),
        ("\x1b[A\x1bOB", ["up", "down"]),
        ("\x1b[5~\x1b[6~\x1b[H\x1b[4~", ["page up", "page down", "home", "end"]),
        ("\x1b", ["escape"]),
        ("\r\x7f\x15", ["enter", "backspace", "clear"]),
        ("\x1b[1;5Cx\x1b[24~\x00\x01y", ["x", "y"]),
        ("\x1b[200~a b\x1b[201~", ["a", " ", "b"]),
    ],
)
def test_keys_have_names_and_unknown_ones_do_nothing(sent, pressed):
    assert keys(sent) == pressed


def test_a_curve_reaches_from_low_to_high_and_leaves_what_is_unknown():
    assert curve([0, 50, 100, None, 200, -5], low=0, high=100) == "▁▅█ █▁"
    assert curve([3, 3], low=3, high=3) == "▁▁"


@pytest.mark.parametrize(
    ("text", "width", "fitted"), [("abc", 5, "abc  "), ("abcdef", 4, "abc…"), ("模型模型", 5, "模型…")]
)
def test_texts_fit(text, width, fitted):
    assert fit(text, width) == fitted


@pytest.mark.parametrize(("seconds", "shown"), [(None, ""), (0.4, "0s"), (61, "1m"), (7200, "2h"), (9e5, "10d")])
def test_ages_are_short(seconds, shown):
    assert span(seconds) == shown


def test_columns_do_not_jump_when_readings_change():
    band = band_of(20)
    before = fleet_list.layout(rows(band.roster, band.now_s), 120)
    band.telemetry("press-005", health="degraded", queue={"queued": 1200, "running": 2}, hottest_celsius=101.0)
    assert fleet_list.layout(rows(band.roster, band.now_s), 120) == before
