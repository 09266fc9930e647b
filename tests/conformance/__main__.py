"""Prints docs/fidelity.md's table: `python -m tests.conformance`."""

from .harness import PARTS, File, measure, names


def table() -> str:
    """Returns the largest relative difference per file and part, in Markdown."""
    lines = [f"| agent, file | {' | '.join(PARTS)} |", "|---|" + "---|" * len(PARTS)]
    for name in names():
        report = measure(name)
        cells = [f"{report.worst(part):.0e}" for part in PARTS]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def sources() -> str:
    """Returns the repositories and commits that the files were made from, in Markdown."""
    lines = ["| files | repository | commit | path |", "|---|---|---|---|"]
    for name in names():
        meta = File(name).meta
        path = meta["path"].split(" (")[0]
        lines.append(f"| `{name}` | {meta['repository']} | `{meta['commit'][:10]}` | {path} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(sources(), table(), sep="\n\n")
