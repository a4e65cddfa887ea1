#!/usr/bin/env python3
"""Checks names and comments of the hand-written Rust code against CONTRIBUTING.md.

    python3 scripts/check_language.py               # all rules; exit code 1 if one is broken
    python3 scripts/check_language.py --list        # also lists every doc comment with an interrogative opening
    python3 scripts/check_language.py --self-test   # the check itself, on good and bad samples
    python3 scripts/check_language.py --root DIR    # another checkout

Rules: at most 5 % of doc comments open with an interrogative word; no name or phrase from the last column of the
glossary in CONTRIBUTING.md; no test name that begins with a question or an article; no file over 500 lines.
"""
import argparse
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

INTERROGATIVES = (
    "What Whether Which Who Whose Whom Whoever Whatever Whichever How However Where Wherever When Whenever Why That Those".split()
)
MAX_INTERROGATIVE_PERCENT = 5.0
MAX_LINES = 500
TEST_PREFIXES = (
    "what who whose whoever whatever which how where when whenever whether why that those nothing nobody a an the".split()
)
GENERATED = "crates/wire/src/generated/"

# Comments, literals and identifiers. A lifetime is told from a character by the missing second quote.
TOKEN = re.compile(
    r"""
    (?P<line>//[^\n]*)
  | (?P<block>/\*.*?\*/)
  | (?P<text>b?r(?P<hashes>\#*)".*?"(?P=hashes) | [bc]?"(?:\\.|[^"\\])*" | b?'(?:\\(?:u\{[^}]*\}|x..|.)|[^'\\\n])')
  | (?P<lifetime>'[A-Za-z_]\w*)
  | (?P<name>(?:r\#)?[A-Za-z_]\w*)
  | (?P<attribute>\#!?\[)
    """,
    re.X | re.S,
)


class Source:
    """One file, split into names and comment blocks."""

    def __init__(self, path, text):
        self.path = path
        self.lines = text.count("\n")
        self.names = []  # (line, name)
        self.docs = []  # (line, text) of each block of doc comments
        self.comments = []  # (line, text) of each block of comments, doc comments included
        self.tests = []  # (line, name) of each test function
        self._read(text)

    def _read(self, text):
        line, offset, last = 1, 0, None  # last: (line, prefix) of the comment line above
        is_test, previous = False, ""
        for token in TOKEN.finditer(text):
            line += text.count("\n", offset, token.start())
            offset = token.start()
            kind, value = token.lastgroup if token.lastgroup != "hashes" else "text", token.group()
            if kind == "line":
                prefix = re.match(r"//[/!]?", value).group()
                if value.startswith("////"):
                    prefix = "//"
                alone = not text[text.rfind("\n", 0, offset) + 1 : offset].strip()
                body = value[len(prefix) :].strip()
                blocks = [self.comments] + ([self.docs] if prefix != "//" else [])
                for found in blocks:
                    if alone and last == (line - 1, prefix):
                        found[-1] = (found[-1][0], found[-1][1] + "\n" + body)
                    else:
                        found.append((line, body))
                last = (line, prefix) if alone else None
            elif kind == "block":
                self.comments.append((line, value[2:-2].strip("* \n")))
            elif kind == "attribute":
                rest = text[offset : offset + 200]
                if re.match(r"#\[(?:tokio::|rstest|test_case)?[\w:]*\btest\b", rest):
                    is_test = True
            elif kind == "name":
                self.names.append((line, value))
                if previous == "fn" and is_test:
                    self.tests.append((line, value))
                    is_test = False
                previous = value


def first_word(comment):
    """First word of a comment, without Markdown in front of it."""
    match = re.match(r"[\s*_`\[\"'(#-]*([A-Za-z][\w'-]*)", comment)
    return match.group(1) if match else ""


def is_interrogative(comment):
    return first_word(comment).split("'")[0] in INTERROGATIVES


class Glossary:
    """Names and phrases that the glossary replaces."""

    def __init__(self, markdown):
        self.names = set()  # refused in every crate
        self.crate_names = set()  # (crate, name)
        phrases = set()
        for row in re.findall(r"^\|(.*)\|\s*$", glossary_section(markdown), re.M):
            cells = [cell.strip() for cell in row.split("|")]
            if len(cells) != 3 or cells[2] == "instead of":
                continue
            for name in re.findall(r"`([^`]+)`", cells[2]):
                crate, _, item = name.rpartition("::")
                self.crate_names.add((crate, item)) if crate else self.names.add(name)
            phrases.update(re.findall(r'"([^"]+)"', cells[2]))
        self.size = len(self.names) + len(self.crate_names) + len(phrases)
        words = "|".join(sorted(r"\s+".join(map(re.escape, phrase.split())) for phrase in phrases))
        self.phrases = re.compile(rf"\b(?:{words})\b", re.I) if phrases else None

    def refuses(self, path, name):
        crate = Path(path).parts[1] if len(Path(path).parts) > 2 else ""
        return name in self.names or (crate, name) in self.crate_names

    def phrase_in(self, comment):
        found = self.phrases and self.phrases.search(re.sub(r"`[^`]*`", "``", comment))
        return " ".join(found.group().split()) if found else None


def glossary_section(markdown):
    return markdown.partition("\n## Glossary\n")[2].partition("\n## ")[0]


def problems_of(source, glossary):
    """Everything that is refused in one file, but for its share of interrogative openings."""
    found = []
    if source.lines > MAX_LINES:
        found.append((1, f"{source.lines} lines; a file has at most {MAX_LINES}"))
    seen = set()
    for line, name in source.names:
        if glossary.refuses(source.path, name) and name not in seen:
            seen.add(name)
            found.append((line, f"the glossary replaces the name `{name}`"))
    for line, comment in source.comments:
        phrase = glossary.phrase_in(comment)
        if phrase:
            found.append((line, f"the glossary replaces the words \"{phrase}\""))
    for line, name in source.tests:
        if name.split("_")[0] in TEST_PREFIXES:
            found.append((line, f"the test `{name}` is not named feature_condition_result"))
    return found


def interrogative_docs(sources):
    return [(s, line, text) for s in sources for line, text in s.docs if is_interrogative(text)]


def hand_written(root):
    listed = subprocess.run(
        ["git", "-C", str(root), "ls-files", "--cached", "--others", "--exclude-standard", "*.rs"],
        check=True, capture_output=True, text=True,
    )
    paths = [path for path in listed.stdout.splitlines() if not path.startswith((GENERATED, "target/"))]
    return [Source(path, (root / path).read_text(encoding="utf-8")) for path in sorted(paths) if (root / path).exists()]


def check(root, list_all):
    markdown = (root / "CONTRIBUTING.md").read_text(encoding="utf-8")
    glossary = Glossary(markdown)
    if not glossary.size:
        print("error: CONTRIBUTING.md has no glossary with names to replace", file=sys.stderr)
        return 1
    sources = hand_written(root)
    docs = sum(len(source.docs) for source in sources)
    offenders = interrogative_docs(sources)
    percent = 100 * len(offenders) / max(docs, 1)
    is_over = percent > MAX_INTERROGATIVE_PERCENT

    print(
        f"{len(sources)} files, {sum(s.lines for s in sources)} lines; {len(offenders)} of {docs} doc comments open with an "
        f"interrogative word ({percent:.1f} %, at most {MAX_INTERROGATIVE_PERCENT:.0f} %)"
    )
    if is_over or list_all:
        for crate, count in Counter("/".join(s.path.split("/")[:2]) for s, _, _ in offenders).most_common():
            print(f"  {count:5} {crate}")
        for source, line, text in offenders if list_all else offenders[:20]:
            print(f"{source.path}:{line}: {text.splitlines()[0]}")
    broken = [(source.path, line, text) for source in sources for line, text in problems_of(source, glossary)]
    for path, line, text in broken:
        print(f"{path}:{line}: {text}")
    if is_over or broken:
        print(f"error: {len(broken) + is_over} breaches of CONTRIBUTING.md (Prose, Names, Tests, Glossary)", file=sys.stderr)
        return 1
    return 0


GLOSSARY_SAMPLE = """
## Glossary

| term | meaning | instead of |
| --- | --- | --- |
| mailbox | tensors that wait | `Parcels`, "looks for it" |
| packed batch | rows end to end | `blocks::Run` |
| (plain words) | name the subject | "whoever" |

## After

| x | y | `Fine` |
"""

GOOD = '''//! Mailboxes of the server.

/// Number of blocks. What follows is free.
/// Which line continues the block.
struct Mailbox<'a> { places_moved: u64, text: &'a str }

/// The `whoever` of code is not prose.
fn parcels_seen() -> char { let _ = "Parcels // whoever"; let _ = r#"fn "what_x" Parcels"#; '"' }

#[test]
fn resume_after_kill_is_bit_exact() {}

fn what_a_helper_may_be_called() {}
'''

BAD = [
    ("crates/wire/src/a.rs", "struct Parcels;\n", "name `Parcels`"),
    ("crates/blocks/src/a.rs", "struct Run;\n", "name `Run`"),
    ("crates/wire/src/a.rs", "// A frame wakes whoever\n// waits.\n", '"whoever"'),
    ("crates/wire/src/a.rs", "let x = 1; // a reader looks\n", None),
    ("crates/wire/src/a.rs", "/// A reader looks\n/// for it.\nfn x() {}\n", '"looks for it"'),
    ("crates/wire/src/a.rs", "#[test]\nfn what_is_sent_arrives() {}\n", "test `what_is_sent_arrives`"),
    ("crates/wire/src/a.rs", '#[tokio::test(flavor = "current_thread")]\nasync fn the_call_ends() {}\n', "test `the_call_ends`"),
    ("crates/wire/src/a.rs", "\n" * 501, "501 lines"),
    ("crates/wire/src/a.rs", "\n" * 500, None),
    ("crates/wire/src/a.rs", "struct Run;\nstruct Fine;\n", None),
    ("crates/wire/src/a.rs", GOOD, None),
]

OPENINGS = [
    ("/// Whether it is.\nfn x() {}\n", 1, 1),
    ("/// **What** it is.\n\n/// `How` it is.\n", 2, 2),
    ("//! Front page.\n//!\n//! Why it is.\n", 0, 1),
    ("// What a plain comment says.\n", 0, 0),
    ("//// What a ruler says.\n", 0, 0),
    ("/// Number.\nfn a() {}\n/// That one.\nfn b() {}\n", 1, 2),
    ("/// Thatched roof.\n/// Who is a later line.\n", 0, 1),
    ('const X: &str = "\n/// What is in a string.\n";\n', 0, 0),
    (GOOD, 0, 3),
]


def self_test():
    glossary = Glossary(GLOSSARY_SAMPLE)
    assert glossary.size == 4, vars(glossary)
    for path, text, expected in BAD:
        found = [message for _, message in problems_of(Source(path, text), glossary)]
        if expected is None:
            assert not found, (text, found)
        else:
            assert len(found) == 1 and expected in found[0], (text, found, expected)
    for text, expected, n_docs in OPENINGS:
        source = Source("crates/wire/src/a.rs", text)
        assert len(source.docs) == n_docs, (text, source.docs)
        assert len(interrogative_docs([source])) == expected, (text, source.docs)
    print(f"self-test: {len(BAD) + len(OPENINGS)} samples passed")
    return 0


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--self-test", action="store_true", help="check the check itself on samples")
    parser.add_argument("--list", action="store_true", help="list every interrogative opening")
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parent.parent, help="checkout to check")
    args = parser.parse_args()
    return self_test() if args.self_test else check(args.root, args.list)


if __name__ == "__main__":
    sys.exit(main())
