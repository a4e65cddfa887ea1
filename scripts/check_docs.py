#!/usr/bin/env python3
"""Check links between the pages of the project: each file and each heading that a link names exists.

    python3 scripts/check_docs.py                # all pages; exit code 1 if a link is broken
    python3 scripts/check_docs.py --self-test    # the check itself

Every page of docs/ is listed in docs/README.md, and every decision in docs/decisions/README.md. Links to other sites are not
followed.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"!?\[[^\]]*\]\(([^()\s]+(?:\([^()\s]*\)[^()\s]*)*)(?:\s+\"[^\"]*\")?\)")
CODE = re.compile(r"^(```|~~~).*?^\1[^\n]*$|`[^`\n]*`", re.M | re.S)
HEADING = re.compile(r"^#{1,6} +(.*?)#*$", re.M)


def anchors(text):
    """Return the anchors of a page's headings, as the common hosts of Markdown name them."""
    found, counts = set(), {}
    for heading in HEADING.findall(re.sub(r"^(```|~~~).*?^\1[^\n]*$", "", text, flags=re.M | re.S)):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        anchor = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        number = counts.get(anchor, 0)
        counts[anchor] = number + 1
        found.add(anchor if number == 0 else f"{anchor}-{number}")
    return found


def broken_links(page, root):
    """Yield (line, link, reason) of each broken link of a page."""
    text = page.read_text()
    visible = CODE.sub(lambda code: re.sub(r"[^\n]", " ", code.group()), text)
    for match in LINK.finditer(visible):
        link = text[match.start(1):match.end(1)]
        line = text.count("\n", 0, match.start()) + 1
        if re.match(r"[a-z][a-z0-9+.-]*:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists():
            yield line, link, "there is no such file"
        elif root not in target.parents and target != root:
            yield line, link, "it is outside of the project"
        elif anchor and target.suffix == ".md" and anchor not in anchors(target.read_text()):
            yield line, link, "the page has no such heading"


def unlisted(folder):
    """Yield the pages of a folder that its README.md does not link."""
    index = folder / "README.md"
    if not index.is_file():
        return
    links = {link.partition("#")[0] for link in LINK.findall(index.read_text())}
    for page in sorted(folder.glob("*.md")):
        if page != index and page.name not in links:
            yield page


def check(root, pages):
    problems = [f"{page.relative_to(root)}:{line}: {link}: {reason}"
                for page in pages for line, link, reason in broken_links(page, root)]
    for folder in (root / "docs", root / "docs/decisions"):
        problems += [f"{folder.relative_to(root)}/README.md: {page.name} is not listed" for page in unlisted(folder)]
    return problems


def self_test():
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder).resolve()
        (root / "docs").mkdir()
        (root / "docs/README.md").write_text("# Pages\n\n[a](a.md#one-two) [b](a.md#three) [c](no.md) [d](https://x.y)\n")
        (root / "docs/a.md").write_text("# A\n\n## One `two`\n\n```\n[e](no.md)\n## three\n```\n`[f](no.md)`\n[g](#a)\n")
        (root / "docs/b.md").write_text("# B\n\n[up](../../x)\n")
        pages = sorted(root.rglob("*.md"))
        found = check(root, pages)
        expected = ["docs/README.md:3: a.md#three: the page has no such heading", "docs/README.md:3: no.md: there is no such file",
                    "docs/b.md:3: ../../x: there is no such file", "docs/README.md: b.md is not listed"]
        assert sorted(found) == sorted(expected), found


def main():
    parser = argparse.ArgumentParser(description="Check links between pages.")
    parser.add_argument("--self-test", action="store_true", help="test the check itself")
    if parser.parse_args().self_test:
        return self_test()
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True)
    pages = [ROOT / name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]
    problems = check(ROOT, pages)
    if problems:
        sys.exit("\n".join(problems))


if __name__ == "__main__":
    main()
