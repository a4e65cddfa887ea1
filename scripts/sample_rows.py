#!/usr/bin/env python3
"""Write small made-up data for a pipeline: sentences with named entities, texts with endings, or questions with answers.

    python3 scripts/sample_rows.py entities ner.jsonl       # pipelines/ner.yaml
    python3 scripts/sample_rows.py choices choices.jsonl    # pipelines/choice.yaml
    python3 scripts/sample_rows.py answers answers.jsonl    # pipelines/answers.yaml

The same kind gives the same 600 rows.
"""

import json
import random
import sys
from pathlib import Path

N_ROWS = 600
FIRST = "Ada Alan Grace Emmy Edsger Barbara Donald Radia Tim Katherine".split()
LAST = "Lovelace Turing Hopper Noether Dijkstra Liskov Knuth Perlman Lee Johnson".split()
FIRMS = ["Acme", "Blue Harbour Bank", "Northern Rail", "Orchard Press", "Delta Foods", "Granite Works"]
PLACES = ["Paris", "New Delhi", "Cape Town", "Oslo", "San Diego", "Kyoto", "Lima", "Buenos Aires"]
FRAMES = [
    "{per} works for {org} in {loc} .",
    "In {loc} , {org} has hired {per} .",
    "{org} of {loc} made a profit last year .",
    "Yesterday {per} left {loc} .",
    "Nothing new was reported .",
]
OPPOSITES = [("hot", "cold"), ("big", "small"), ("early", "late"), ("open", "closed"), ("dark", "light"), ("fast", "slow"),
             ("full", "empty"), ("high", "low"), ("old", "new"), ("rich", "poor"), ("soft", "hard"), ("wet", "dry")]


def entities(rng):
    names = {"per": ("PER", f"{rng.choice(FIRST)} {rng.choice(LAST)}"), "org": ("ORG", rng.choice(FIRMS)),
             "loc": ("LOC", rng.choice(PLACES))}
    tokens, tags = [], []
    for part in rng.choice(FRAMES).split():
        kind, text = names.get(part.strip("{}"), (None, part)) if part.startswith("{") else (None, part)
        for i, word in enumerate(text.split()):
            tokens.append(word)
            tags.append("O" if kind is None else f"{'I' if i else 'B'}-{kind}")
    return {"tokens": tokens, "ner_tags": tags}


def pair(rng):
    first, second = rng.choice(OPPOSITES)
    return (first, second) if rng.random() < 0.5 else (second, first)


def choices(rng):
    word, opposite = pair(rng)
    others = rng.sample(sorted({one for both in OPPOSITES for one in both} - {word, opposite}), 3)
    endings = rng.sample([opposite, *others], 4)
    row = {"startphrase": f"The opposite of {word} is"}
    row.update({f"ending{i}": f"{ending}." for i, ending in enumerate(endings)})
    return {**row, "label": endings.index(opposite)}


def answers(rng):
    word, opposite = pair(rng)
    return {"question": f"What is the opposite of {word}?", "answer": f"The opposite of {word} is {opposite}."}


KINDS = {"entities": entities, "choices": choices, "answers": answers}


def main():
    if len(sys.argv) != 3 or sys.argv[1] not in KINDS:
        sys.exit(f"usage: sample_rows.py {'|'.join(KINDS)} OUTPUT.jsonl")
    kind, output = sys.argv[1], Path(sys.argv[2])
    if output.exists():
        sys.exit(f"sample_rows: {output} is there already; name another file")
    rng = random.Random(kind)
    output.write_text("".join(json.dumps(KINDS[kind](rng)) + "\n" for _ in range(N_ROWS)))
    print(f"wrote {N_ROWS} rows to {output}")


if __name__ == "__main__":
    main()
