"""The `[[watch]]` tables, read: every fault is found here, before anything is subscribed."""

from collections.abc import Sequence

from pydantic import ValidationError

from edge_agent.base.errors import EdgeAgentError, SettingsError
from edge_agent.engine.guides import guide
from edge_agent.engine.messages import Guide, GuideKind
from edge_agent.jobs.response_format import ResponseFormat
from edge_agent.protocol import filters
from edge_agent.protocol.messages import faults
from edge_agent.protocol.topics import Topics
from edge_agent.settings.load import Settings
from edge_agent.settings.watch import WatchSection
from edge_agent.watch.decide import Rule
from edge_agent.watch.template import Path, Slot, Template, path

ROOT_SENTENCE = "can take a topic below mqtt.root, where agents talk; begin it with a level of its own"


def read(settings: Settings, topics: Topics) -> tuple[Rule, ...]:
    """Return the rules of the settings. Raises SettingsError, one line per fault, each naming its key."""
    found: list[str] = []
    read_: list[Rule] = []
    for number, section in enumerate(settings.watch):
        reader = _TableReader(f"watch.{number}", settings, topics)
        rule = reader.rule(section)
        if section.name in {each.name for each in read_}:
            reader.fault("name", "another [[watch]] table has the same")
        read_.append(rule)
        found += reader.faults
    found = found or _circles(read_)
    if found:
        raise SettingsError("\n".join(found))
    return tuple(read_)


def _circles(rules: Sequence[Rule]) -> list[str]:
    """Return the rules whose answers could be watched: an answer that makes a job would go on for ever."""
    return [
        f"watch.{number}.answer_topic: may be a topic that [[watch]] {other.name!r} takes ({topic}), "
        "and answers would make jobs for ever; publish them elsewhere"
        for number, rule in enumerate(rules)
        for other in rules
        for topic in other.section.topics
        if any(filters.intersect(shape(rule.answer, own), topic) for own in rule.section.topics)
    ]


def shape(answer: Template, topic: str) -> str:
    """Return a filter that takes every topic the template can give for a message on a topic this filter takes."""
    levels: list[list[str | Slot]] = [[]]
    for part in answer.parts:
        if isinstance(part, Slot):
            levels[-1].append(part)
            continue
        first, *more = part.split("/")
        levels[-1].append(first)
        levels += [[piece] for piece in more]
    found: list[str] = []
    for level in levels:
        parts = [part for part in level if part != ""]
        if parts == [Slot(("topic",))] and not topic.endswith("#"):
            found += topic.split("/")
        elif any(isinstance(part, Slot) and part.variable == ("topic",) for part in parts):
            return "/".join([*found, "#"])
        else:
            found.append(_level(parts, topic))
    return "/".join(found)


def _level(parts: Sequence[str | Slot], topic: str) -> str:
    """Return what a level of an answer's topic can be: a word, or any."""
    if not any(isinstance(part, Slot) for part in parts):
        return "".join(part for part in parts if isinstance(part, str))
    match parts:
        case [Slot(variable=("topic", number))]:
            levels = topic.split("/")
            at = int(number) - 1
            return levels[at] if at < len(levels) and levels[at] != "#" else "+"
    return "+"


class _TableReader:
    """Reads one table and keeps what is wrong with it."""

    def __init__(self, key: str, settings: Settings, topics: Topics) -> None:
        self._key = key
        self._settings = settings
        self._topics = topics
        self.faults: list[str] = []

    def fault(self, key: str, sentence: str) -> None:
        """Note what is wrong with a key."""
        self.faults.append(f"{self._key}.{key}: {sentence}")

    def rule(self, section: WatchSection) -> Rule:
        """Return the rule of a table; meaningless when there were faults."""
        self._filters(section)
        self._model(section)
        if section.image not in {"auto", "payload", "none"} and not self._path("image", section.image)[1:]:
            self.fault("image", "must be auto, payload, none or json.FIELD")
        return Rule(
            section=section,
            prompt=self._template("prompt", section.prompt, section),
            answer=self._answer(section),
            when={self._path(f"when.{name}", name, section): wanted for name, wanted in section.when.items()},
            changed=None if section.changed is None else self._path("changed", section.changed, section),
            response_format=self._response_format(section),
        )

    def _filters(self, section: WatchSection) -> None:
        for topic in section.topics:
            try:
                filters.check(topic)
            except ValueError as error:
                self.fault("topic", str(error))
            else:
                if filters.intersect(topic, f"{self._topics.root}/#"):
                    self.fault("topic", f"{topic} {ROOT_SENTENCE}")

    def _model(self, section: WatchSection) -> None:
        names = [serve.name for serve in self._settings.models.serve]
        if section.model not in {"auto", *names}:
            self.fault("model", f"no [[models.serve]] table has this name; there are: {', '.join(names)}")
        if section.ttl_s > self._settings.queue.ttl_max_s:
            self.fault("ttl_s", "must be at most queue.ttl_max_s")

    def _path(self, key: str, name: str, section: WatchSection | None = None) -> Path:
        try:
            variable = path(name)
        except ValueError as error:
            self.fault(key, str(error))
            return ("topic",)
        if section is not None:
            self._reachable(key, variable, section)
        return variable

    def _reachable(self, key: str, variable: Path, section: WatchSection) -> None:
        """Note a level that no topic of the rule has."""
        match variable:
            case ["topic", number]:
                pass
            case _:
                return
        for topic in section.topics:
            levels = topic.split("/")
            if int(number) > len(levels) and levels[-1] != "#":
                self.fault(key, f"topic.{number}: {topic} has {len(levels)} levels")

    def _template(self, key: str, text: str, section: WatchSection) -> Template:
        try:
            template = Template.parse(text)
        except ValueError as error:
            self.fault(key, str(error))
            return Template(())
        for slot in template.slots:
            self._reachable(key, slot.variable, section)
        return template

    def _answer(self, section: WatchSection) -> Template:
        if section.answer_topic is None:
            return Template((self._topics.watch(section.name),))
        template = self._template("answer_topic", section.answer_topic, section)
        literal = "".join(part for part in template.parts if isinstance(part, str))
        if not filters.publishable(f"x{literal}") or section.answer_topic.startswith("$"):
            self.fault("answer_topic", "must be a topic: without +, # and control characters, not beginning with $")
        elif any(filters.intersect(shape(template, topic), f"{self._topics.root}/#") for topic in section.topics):
            self.fault("answer_topic", ROOT_SENTENCE)
        return template

    def _response_format(self, section: WatchSection) -> ResponseFormat | None:
        if section.response_format is None:
            return None
        try:
            found = ResponseFormat.model_validate(section.response_format)
        except ValidationError as error:
            self.fault("response_format", faults(error))
            return None
        served = [each for each in self._settings.models.serve if section.model in {"auto", each.name}]
        if found.guide is not None and all(each.openai is None for each in served):  # a server has bounds of its own
            kind, text = found.guide
            try:
                guide.check(Guide(GuideKind(kind), text))
            except EdgeAgentError as error:
                self.faults.append(f"{self._key}.{error.message}")
        return found
