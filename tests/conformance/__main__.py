"""Prints the tables of docs/fidelity.md: `python -m tests.conformance`."""

from .harness import PARTS, File, measure, names


def table() -> str:
    """Returns the largest relative difference per file and part, in Markdown."""
    lines = [f"| file | {' | '.join(PARTS)} |", "|---|" + "---|" * len(PARTS)]
    for name in names():
        report = measure(name)
        cells = [f"{report.worst(part):.0e}" for part in PARTS]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def sources() -> str:
    """Returns the repositories and commits that the files were made from, in Markdown."""
    rows = {}
    for name in names():
        meta = File(name).meta
        path = (meta.get("path") or meta["file"]).split(" (")[0]
        repository, _, remark = meta["repository"].removeprefix("https://github.com/").partition(" ")
        link = f"[{repository}](https://github.com/{repository}) {remark}".strip()
        rows.setdefault(File(name).agent, f"{link} | `{meta['commit']}` | {path}")
    lines = ["| agent | repository | commit | files |", "|---|---|---|---|"]
    return "\n".join([*lines, *(f"| `{agent}` | {row} |" for agent, row in rows.items())])


if __name__ == "__main__":
    print(table(), sources(), sep="\n\n")
