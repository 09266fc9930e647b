"""Measures how a checkout is built: python experiments/evidence/house.py --checkout=DIR [--other=DIR].

Everything is read from the code's text, nothing of it is run, so that any two commits compare. A module is a file below
`flowrl/` or `agents/`; it imports another one wherever an import statement says so, in functions too.
"""

if __name__ == "__main__":
    import flowrl.cli.start  # noqa: F401 - before the other imports, which take seconds

import ast
import functools
import io
import keyword
import tokenize
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from flowrl.cli import flags
from flowrl.config import record, static
from flowrl.errors import UserError
from flowrl.machine.provenance import git_commit
from flowrl.run_folder import logs

LONG_FILE, LONG_FUNCTION, RUN = 350, 50, 6
"""Lines of a file and of a function that are too many, and the lines in a row that make a copy."""
WALKERS = {"batch": ("batch",), "observation": ("observation", "observations"), "flag": ("flag", "flags", "given"),
           "plan": ("plan",)}  # fmt: skip
"""What walks through modules as a parameter, by the names that it has."""
PLUMBING = ("init", "make", "policy", "acting", "evaluations", "multipliers", "loss_fn")
"""Names in an agent, of functions or values, that hold no equation."""


@record
class Settings:
    """What is measured."""

    checkout: str = static(".", "Folder of a checkout.")
    other: str | None = static(None, "Folder of another one, shown beside it.")
    out: str = static("", "JSON file for the numbers.")


@functools.cache
def sources(root: Path) -> dict[str, Path]:
    """Returns the modules of a checkout by name."""
    found = {}
    for folder in ("flowrl", "agents"):
        for path in sorted((root / folder).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            if parts[:2] != ("flowrl", "agents"):
                named = ("flowrl", *parts) if parts[0] == "agents" else parts
                found[".".join(named).removesuffix(".__init__")] = path
    return found


def tree(path: Path) -> ast.Module:
    """Parses a file."""
    return ast.parse(path.read_text())


def imports(root: Path) -> dict[str, set[str]]:
    """Returns which modules each module imports."""
    modules = sources(root)
    graph: dict[str, set[str]] = {name: set() for name in modules}
    for name, path in modules.items():
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "flowrl":
                for alias in node.names:
                    inner = f"{node.module}.{alias.name}"
                    graph[name].add(inner if inner in modules else node.module)
            elif isinstance(node, ast.Import):
                graph[name] |= {alias.name for alias in node.names if alias.name in modules}
        graph[name] &= modules.keys() - {name}
    return graph


def circles(graph: dict[str, set[str]]) -> list[set[str]]:
    """Returns the groups of modules that all reach each other."""
    reach = {name: {name} for name in graph}
    for _ in graph:
        grown = {name: own.union(*(reach[other] for other in graph[name])) for name, own in reach.items()}
        if grown == reach:
            break
        reach = grown
    groups = {frozenset(other for other in reach[name] if name in reach[other]) for name in graph}
    return [set(group) for group in groups if len(group) > 1]


def floors(graph: dict[str, set[str]]) -> int:
    """Returns how many modules the longest chain of imports has; a circle counts as one."""
    together = {name: min(group) for group in circles(graph) for name in group}

    @functools.cache
    def height(name: str) -> int:
        members = [member for member in graph if together.get(member, member) == name]
        below = {together.get(other, other) for member in members for other in graph[member]} - {name}
        return 1 + max((height(other) for other in below), default=0)

    return max(height(together.get(name, name)) for name in graph)


def at_root(path: Path) -> bool:
    """Whether a module lies directly in `flowrl/`, beside the roof, its `__init__`."""
    return path.parent.name == "flowrl" and path.stem != "__init__"


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Yields the functions and methods of a file."""
    for node in ast.walk(tree(path)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node


def rooms(root: Path, names: Sequence[str]) -> list[str]:
    """Returns the modules other than agents with a function that has a parameter of one of these names."""
    found = []
    for name, path in sources(root).items():
        arguments = (a.arg for f in functions(path) for a in (*f.args.posonlyargs, *f.args.args, *f.args.kwonlyargs))
        if not name.startswith("flowrl.agents.") and not set(names).isdisjoint(arguments):
            found.append(name)
    return found


def agents(root: Path) -> dict[str, Path]:
    """Returns the files of agents."""
    return {path.stem: path for path in sorted((root / "agents").glob("*.py")) if path.stem != "__init__"}


def code_lines(path: Path) -> set[int]:
    """Returns the lines of a file that are neither empty, comments nor docstrings."""
    text = path.read_text()
    described = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            described |= set(range(node.lineno, (node.end_lineno or 0) + 1))
    lines = enumerate(text.splitlines(), 1)
    return {number for number, line in lines if line.strip() and not line.strip().startswith("#")} - described


def plumbing(path: Path) -> float:
    """Returns the share of an agent's lines of code, imports apart, that hold no equation and declare nothing.

    They are functions that put together what is declared elsewhere, and signatures from their second line on.
    """
    lines, found = code_lines(path), set[int]()
    for node in ast.walk(tree(path)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            lines -= set(range(node.lineno, (node.end_lineno or 0) + 1))
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id in PLUMBING:
            found |= set(range(node.lineno, (node.end_lineno or 0) + 1))
        elif isinstance(node, ast.FunctionDef):
            whole = node.name in PLUMBING
            first = node.lineno if whole else node.lineno + 1
            found |= set(range(first, (node.end_lineno or 0) + 1 if whole else node.body[0].lineno))
    return len(lines & found) / len(lines)


def shapes(path: Path) -> list[tuple[str, str]]:
    """Returns each line of code as it stands, and with other names and numbers."""
    kept, text = code_lines(path), path.read_text()
    by_line: dict[int, list[str]] = {}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.start[0] in kept and token.string.strip():
            plain = token.type in (tokenize.NAME, tokenize.NUMBER, tokenize.STRING)
            by_line.setdefault(token.start[0], []).append(
                "x" if plain and not keyword.iskeyword(token.string) else token.string
            )
    lines = text.splitlines()
    numbers = [n for n in sorted(by_line) if not lines[n - 1].lstrip().startswith(("import ", "from "))]
    return [(" ".join(lines[n - 1].split()), " ".join(by_line[n])) for n in numbers]


def copies(root: Path, kind: int) -> float:
    """Returns the share of agents' lines that stand in a run of `RUN` which another agent has too.

    Args:
        root: The checkout.
        kind: 0 for runs of the same letters, 1 for those of the same shape.
    """
    texts = {name: [pair[kind] for pair in shapes(path)] for name, path in agents(root).items()}

    def runs(lines: list[str]) -> list[tuple[str, ...]]:
        return [tuple(lines[i : i + RUN]) for i in range(len(lines) - RUN + 1)]

    owners = Counter(run for lines in texts.values() for run in set(runs(lines)))
    copied = 0
    for lines in texts.values():
        inside = {i + k for i, run in enumerate(runs(lines)) if owners[run] > 1 for k in range(RUN)}
        copied += len(inside)
    return copied / sum(map(len, texts.values()))


def measure(root: Path) -> dict[str, Any]:
    """Returns all measures of a checkout.

    Raises:
        UserError: It is none.
    """
    if not (root / "flowrl").is_dir():
        raise UserError(f"{root} is no checkout; it has no folder flowrl")
    modules, graph = sources(root), imports(root)
    lengths = {name: len(path.read_text().splitlines()) for name, path in modules.items()}
    long_functions = [
        f"{name}.{f.name}"
        for name, path in modules.items()
        for f in functions(path)
        if (f.end_lineno or 0) - f.lineno + 1 > LONG_FUNCTION
    ]
    upward = [(n, o) for n in graph if at_root(modules[n]) for o in graph[n] if not at_root(modules[o])]
    found: dict[str, Any] = {
        "modules": len(modules),
        "modules at the root": sum(map(at_root, modules.values())),
        "floors": floors(graph),
        "circles": [sorted(group) for group in circles(graph)],
        "imports from the root into folders": len(upward),
        **{f"rooms that a {name} enters": len(rooms(root, names)) for name, names in WALKERS.items()},
        f"files over {LONG_FILE} lines": [name for name, length in lengths.items() if length > LONG_FILE],
        f"functions over {LONG_FUNCTION} lines": long_functions,
        "copies in agents, same letters": f"{copies(root, 0):.0%}",
        "copies in agents, same shape": f"{copies(root, 1):.0%}",
    }
    for name, path in agents(root).items():
        found[f"agent {name}"] = f"{len(path.read_text().splitlines())} lines, {plumbing(path):.0%} plumbing"
    return found


def main(arguments: Sequence[str]) -> int:
    """Runs the program and returns its exit status."""
    settings = flags.read(Settings(), arguments, str(__doc__))
    if settings is None:
        return 0
    folders = [Path(folder) for folder in (settings.checkout, settings.other) if folder is not None]
    columns = [measure(folder) for folder in folders]
    for name in dict.fromkeys(name for column in columns for name in column):
        cells = [column.get(name, "-") for column in columns]
        told = [f"{len(cell)} {', '.join(map(str, cell))}" if isinstance(cell, list) else str(cell) for cell in cells]
        print(f"{name}: {' | '.join(told)}")
    if settings.out:
        command = "python experiments/evidence/house.py --checkout=DIR --other=DIR --out=FILE"
        found = [{"git_commit": git_commit(folder), **column} for folder, column in zip(folders, columns, strict=True)]
        logs.write_json(Path(settings.out), {"command": command, "checkouts": found})
    return 0


if __name__ == "__main__":
    flags.run(main)
