"""Changes one thing in a module that decides, and sees whether the module's own tests notice. `make mutants` runs it.

For each module a number of changes is drawn at random (`--seed` repeats a draw): a comparison turned, a number moved
by one, a condition negated, `and` for `or`, a statement left out. The module's tests run against each in a process of
its own, with the changed source in place of the file, which itself is never touched. What no test notices is printed,
to be read: it is either a missing test or a change that means the same.
"""

import argparse
import ast
import copy
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
SUBJECTS = {
    "edge_agent/client/placement.py": ["test_placement_state.py", "test_placement.py"],
    "edge_agent/engine/hosting/residency.py": ["test_residency.py"],
    "edge_agent/health/governor.py": ["test_governor.py"],
    "edge_agent/models/choose.py": ["test_choose.py"],
    "edge_agent/watch/rules.py": ["test_rules.py"],
    "edge_agent/watch/decide.py": ["test_watch.py"],
}
"""Pure modules, and the unit tests that are theirs."""
TIMEOUT_S = 120.0
"""A change that makes a loop endless is noticed by this."""

SWAPS: dict[type, type] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.And: ast.Or,
    ast.Or: ast.And,
}


@dataclass(frozen=True)
class Mutant:
    """One change: where, in words, and the whole source with it."""

    line: int
    what: str
    source: str


def mutants(source: str) -> Iterator[Mutant]:
    """Yield every change that can be made, one at a time."""
    tree = ast.parse(source)
    count = len(list(_nodes(tree)))
    for index in range(count):
        for choice in range(2):
            changed = copy.deepcopy(tree)
            node = list(_nodes(changed))[index]
            if what := _change(changed, node, choice):
                yield Mutant(node.lineno, what, ast.unparse(changed))


def _nodes(tree: ast.AST) -> Iterator[ast.expr | ast.stmt]:
    """Yield what runs when something is decided: no decorators, annotations or docstrings, and no imports."""
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            for statement in function.body:
                for node in ast.walk(statement):
                    if isinstance(node, ast.expr | ast.stmt) and not isinstance(node, ast.FunctionDef):
                        yield node


def _change(tree: ast.AST, node: ast.AST, choice: int) -> str:
    """Change a node in place; return what was done, empty when there is nothing to change in it that way."""
    match node:
        case ast.Compare(ops=[operator, *_]) if choice == 0 and type(operator) in SWAPS:
            before = ast.unparse(node)
            node.ops[0] = SWAPS[type(operator)]()
        case ast.BinOp(op=operator) if choice == 0 and type(operator) in SWAPS:
            before = ast.unparse(node)
            node.op = SWAPS[type(operator)]()
        case ast.BoolOp(op=operator) if choice == 0:
            before = ast.unparse(node)
            node.op = SWAPS[type(operator)]()
        case ast.Constant(value=bool(value)) if choice == 0:
            before, node.value = ast.unparse(node), not value
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            before, node.value = ast.unparse(node), value + (1 if choice == 0 else -1)
        case ast.If() | ast.IfExp() | ast.While() if choice == 0:
            before = f"if {ast.unparse(node.test)}"
            node.test = ast.UnaryOp(ast.Not(), node.test)
        case ast.Expr(value=ast.Call()) | ast.Assign() | ast.AugAssign() if choice == 0:
            return _leave_out(tree, node)
        case _:
            return ""
    ast.fix_missing_locations(tree)
    return f"{before}  →  {ast.unparse(node).splitlines()[0]}"


def _leave_out(tree: ast.AST, node: ast.AST) -> str:
    before = ast.unparse(node).splitlines()[0]
    for parent in ast.walk(tree):
        for name in ("body", "orelse"):
            body = getattr(parent, name, None)
            if isinstance(body, list) and node in body:
                body[body.index(node)] = ast.copy_location(ast.Pass(), node)
                return f"{before}  →  (left out)"
    return ""


def survives(module: str, mutant: Mutant, tests: list[str], folder: Path) -> bool:
    """Return whether no test notices a change."""
    file = folder / f"{abs(hash((module, mutant.what, mutant.line)))}.py"
    file.write_text(mutant.source, encoding="utf-8")
    name = module.removesuffix(".py").replace("/", ".")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "mutant", "-p", "no:cacheprovider"]
    command += [str(ROOT / "tests/unit" / each) for each in tests]
    environ = os.environ | {"MUTANT_MODULE": name, "MUTANT_FILE": str(file)}
    environ["PYTHONPATH"] = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
    try:
        ran = subprocess.run(command, cwd=folder, env=environ, capture_output=True, timeout=TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return False
    finally:
        file.unlink()
    return ran.returncode == 0


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> int:
    """Draw, run, report; return 1 when more survived than may."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=70, help="changes per module")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--at-once", type=int, default=2)
    parser.add_argument("--killed-least", type=float, default=0.9, help="share that the tests must notice")
    parser.add_argument("modules", nargs="*", default=list(SUBJECTS))
    options = parser.parse_args()
    short = False
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(options.at_once) as pool:
        folder = Path(name)
        for module in options.modules:
            source = (ROOT / module).read_text(encoding="utf-8")
            if not survives(module, Mutant(0, "nothing", source), SUBJECTS[module], folder):
                raise SystemExit(f"{module}: its tests fail as they are")
            every = list(mutants(source))
            drawn = random.Random(options.seed).sample(every, min(options.count, len(every)))
            fates = pool.map(lambda each, of=module: survives(of, each, SUBJECTS[of], folder), drawn)
            alive = [each for each, survived in zip(drawn, fates, strict=True) if survived]
            share = 1 - len(alive) / len(drawn)
            short = short or share < options.killed_least
            _say(f"{module}: {share:.0%} of {len(drawn)} noticed (of {len(every)} possible)")
            for each in sorted(alive, key=lambda each: each.line):
                _say(f"  {module}:{each.line}: {each.what}")
    return int(short)


if __name__ == "__main__":
    sys.exit(main())
