"""Figures of soak.py, and their place in the documentation."""

import json

from setup import ROOT


def lowest(samples, begin, end):
    """Return the lowest memory between two moments: a leak raises it, and calls that come and go do not."""
    return min((sample[1] for sample in samples if begin <= sample[0] <= end), default=samples[-1][1])


def table(summary):
    """Return the rows of the documentation."""
    counts, steady = summary["counts"], summary["steady"]
    rows = [(name, f"{number:,}") for name, number in counts.items() if name != "panics"]
    peaks = ", ".join(f"{server['peak_mb']:.0f}" for server in summary["servers"])
    rows += [
        ("panics", str(counts.get("panics", 0))),
        ("memory of the server that lives throughout, before and after", f"{steady['begin_mb']:.0f} and {steady['end_mb']:.0f} MB"),
        ("growth of its lowest memory from the third to the last quarter", f"{steady['growth_of_last_quarter_mb']:.1f} MB"),
        ("its open descriptors, before and after", f"{steady['begin_descriptors']} and {steady['end_descriptors']}"),
        ("largest memory of each server", f"{peaks} MB"),
        ("violations", str(len(summary["violations"]))),
    ]
    head = f"`just soak`, {summary['minutes']:g} minutes, seed {summary['seed']}:\n\n| event or figure | number |\n| --- | --- |\n"
    return head + "".join(f"| {name} | {text} |\n" for name, text in rows)


def write(summary, folder=ROOT / "docs"):
    """Write the summary, and replace the table of the page."""
    (folder / "reliability.json").write_text(json.dumps(summary, indent=2) + "\n")
    page = folder / "reliability.md"
    begin, end = "<!-- soak: begin -->\n", "<!-- soak: end -->\n"
    head, tail = page.read_text().split(begin)
    page.write_text(f"{head}{begin}{table(summary)}{end}{tail.split(end)[1]}")
