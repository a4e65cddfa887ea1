#!/usr/bin/env python3
"""Make a plugin crate under plugins/ that builds and passes its contract.

    python3 scripts/new_plugin.py head my-head
    python3 scripts/new_plugin.py tuning my-tuning

Copies the template of its kind, and adds the crate to the workspace's dependencies, to the program's and to
the one list of plugins. Nothing is left half done: all texts are made before the first is written.
"""

import os
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
KINDS = {"head": "Head", "tuning": "Tuning"}


def fail(text):
    sys.exit(f"new-plugin: error: {text}")


def read(path):
    return (ROOT / path).read_text()


def after_marker(text, marker, line, path):
    """``text`` with ``line`` among the lines that follow ``marker``, sorted with its like."""
    lines = text.splitlines()
    starts = [i for i, existing in enumerate(lines) if existing.strip() == marker]
    if not starts:
        fail(f"{path} has no line `{marker}`")
    start = starts[0] + 1
    end = start
    while end < len(lines) and lines[end].strip() and not lines[end].strip().startswith(("#", "[", "}", "Ok(")):
        end += 1
    lines[start:end] = sorted(lines[start:end] + [line])
    return "\n".join(lines) + "\n"


def main():
    if len(sys.argv) != 3 or sys.argv[1] not in KINDS:
        fail("write: just new-plugin head my-head, or: just new-plugin tuning my-tuning")
    kind, name = sys.argv[1:]
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
        fail(f"`{name}` is not a plugin's name; write lower-case words with hyphens, for example my-{kind}")
    folder = ROOT / "plugins" / name
    if folder.exists():
        fail(f"plugins/{name} exists already")
    if (ROOT / "crates" / name).exists():
        fail(f"there is a crate `sepal-{name}` already; choose another name")
    type_name = "".join(part.capitalize() for part in name.split("-"))
    ident = "sepal_" + name.replace("-", "_")

    files = {}
    for template in ("Cargo.toml", "lib.rs"):
        text = read(f"scripts/templates/{kind}.{template}")
        text = text.replace("@NAME@", name).replace("@TYPE@", type_name).replace("@IDENT@", ident)
        files[folder / ("Cargo.toml" if template == "Cargo.toml" else "src/lib.rs")] = text
    for path, marker, line in [
        ("Cargo.toml", "# plugins", f'sepal-{name} = {{ path = "plugins/{name}" }}'),
        ("crates/cli/Cargo.toml", "# plugins", f"sepal-{name}.workspace = true"),
        ("crates/cli/src/plugins.rs", "// the list",
         f"    registry.register::<{KINDS[kind]}, {ident}::{type_name}>()?;"),
    ]:
        files[ROOT / path] = after_marker(read(path), marker, line, path)

    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(path.name + ".new")
        temporary.write_text(text)
        os.replace(temporary, path)
    print(f"plugins/{name} is made: `cargo test -p sepal-{name}` checks its contract,")
    print(f"and a pipeline names it by `{'task' if kind == 'head' else 'tuning'}: {{ use: {name} }}`. See docs/plugins.md.")


if __name__ == "__main__":
    main()
