"""What a trial costs: the load of a model with a canary and without one, in turns.

The child's own clock, from its start of loading to ready; without a trial a model answers once too, with 4 tokens.
"""

from dataclasses import replace

from edge_agent.engine.backend import ModelSpec, backend_of
from edge_agent.engine.hosting.one_shot import OneShotEngine
from edge_agent.engine.messages import Canary
from hardware.probe import probe
from tests.bench.rig import arguments, interleave, median, model_folder, report


def main() -> None:
    options = arguments(__doc__, model="tiny", pairs=10, context=4096).parse_args()
    folder = model_folder(options.model)
    plain = ModelSpec(folder, backend_of(folder), options.context, 1, probe().cpu.granted_cores)
    tried = replace(plain, canary=Canary("What is the capital of France? Answer with one word."))

    def load_ms(spec: ModelSpec) -> float:
        with OneShotEngine(spec) as trial:
            return trial.ready.load_ms

    load_ms(plain)  # from the disk
    pairs = interleave(options.pairs, lambda _pair: load_ms(tried), lambda _pair: load_ms(plain))
    figures = [
        median("load with a trial", [with_ms for with_ms, _ in pairs], "ms"),
        median("load without", [without_ms for _, without_ms in pairs], "ms"),
        median("difference of a pair", [with_ms - without_ms for with_ms, without_ms in pairs], "ms", at_most=2000.0),
    ]
    report("What a trial costs", figures, as_json=options.json, notes=[str(folder)])


if __name__ == "__main__":
    main()
