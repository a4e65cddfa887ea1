#!/usr/bin/env python3
"""Make a plugin crate that passes its contract, or the skeleton of a model family.

    python3 scripts/new_plugin.py head my-head
    python3 scripts/new_plugin.py tuning my-tuning
    python3 scripts/new_plugin.py family my-family

A head or a tuning mode is a crate under plugins/, and one line each in the dependencies of the workspace and of the
engine, in the list of plugins, and in the front's list of plugins that only the engine knows. A family is a variant of `Family`, an entry in the family tables of `checkpoint` and
`blocks` with a file each, and a tiny model among the goldens. It computes what a Llama does until it is changed. All
texts are made before the first file is written, so that an error leaves the repository unchanged.
"""

import os
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
KINDS = {"head": "Head", "tuning": "Tuning", "family": None}
CORE = "crates/core/src/model.rs"
BLOCKS = "crates/blocks/src/families"
CHECKPOINT = "crates/checkpoint/src/families"
GOLDENS = "crates/testkit/goldens/make_goldens.py"


def fail(text):
    sys.exit(f"new-plugin: error: {text}")


def read(path):
    return (ROOT / path).read_text()


def after_marker(text, marker, line, path):
    """``text`` with ``line`` sorted into the lines that follow ``marker``."""
    lines = text.splitlines()
    starts = [i for i, existing in enumerate(lines) if existing.strip() == marker]
    if not starts:
        fail(f"{path} has no line `{marker}`")
    start = starts[0] + 1
    end = start
    while end < len(lines) and lines[end].strip() and not lines[end].strip().startswith(("#", "[", "]", "}", "Ok(")):
        end += 1
    lines[start:end] = sorted(lines[start:end] + [line])
    return "\n".join(lines) + "\n"


def sort_key(line):
    """Sort key of an item: its name, with numbers as numbers (gpt2, gpt10, gpt_neox)."""
    name = re.match(r"(?:mod |&)?(\w+)", line.strip())
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name.group(1) if name else "")]


def find(lines, begins, start, path):
    """Index of the first line from ``start`` that begins with ``begins``."""
    for i in range(start, len(lines)):
        if lines[i].strip().startswith(begins):
            return i
    fail(f"{path} has no line `{begins}`")


def among(text, path, anchors, item):
    """``text`` with ``item`` sorted into the braces or brackets that the last of ``anchors`` opens. Each anchor is the
    beginning of a line below the previous anchor."""
    lines = text.splitlines()
    start = -1
    for anchor in anchors:
        start = find(lines, anchor, start + 1, path)
    outer = re.match(" *", lines[start]).group()
    inner = outer + 4 * " "
    end = next((i for i in range(start + 1, len(lines)) if re.match(rf"{outer}[}}\]]", lines[i])), None)
    if end is None:
        fail(f"{path}: `{anchors[-1]}` does not end")
    lines.insert(place(lines, start + 1, end, inner, item), inner + item)
    return "\n".join(lines) + "\n"


def among_mods(text, path, item):
    """``text`` with ``item`` sorted into the module declarations."""
    lines = text.splitlines()
    start = find(lines, "mod ", 0, path)
    end = next((i for i in range(start, len(lines)) if not lines[i].strip()), len(lines))
    lines.insert(place(lines, start, end, "", item), item)
    return "\n".join(lines) + "\n"


def place(lines, start, end, indent, item):
    """Index at which ``item`` is inserted: before the first item of that indent that sorts after it."""
    for i in range(start, end):
        if re.match(rf"{indent}[\w&]", lines[i]) and sort_key(lines[i]) > sort_key(item):
            while lines[i - 1].strip().startswith(("#[", "//")):
                i -= 1
            return i
    return end


def at_end(text, path, anchor, line):
    """``text`` with ``line`` before the closing brace of the block that ``anchor`` opens."""
    lines = text.splitlines()
    start = find(lines, anchor, 0, path)
    lines.insert(find(lines, "}", start, path), line)
    return "\n".join(lines) + "\n"


def type_name(name):
    return "".join(part.capitalize() for part in name.split("-"))


def plugin(kind, name):
    """The files of a head or a tuning mode, and a message about them."""
    folder = ROOT / "plugins" / name
    if folder.exists():
        fail(f"plugins/{name} exists already")
    if (ROOT / "crates" / name).exists():
        fail(f"there is a crate `sepal-{name}` already; choose another name")
    ident = "sepal_" + name.replace("-", "_")

    files = {}
    for template in ("Cargo.toml", "lib.rs"):
        text = read(f"scripts/templates/{kind}.{template}")
        text = text.replace("@NAME@", name).replace("@TYPE@", type_name(name)).replace("@IDENT@", ident)
        files[folder / ("Cargo.toml" if template == "Cargo.toml" else "src/lib.rs")] = text
    for path, marker, line in [
        ("Cargo.toml", "# plugins", f'sepal-{name} = {{ path = "plugins/{name}" }}'),
        ("crates/cli/Cargo.toml", "# plugins", f"sepal-{name}.workspace = true"),
        ("crates/cli/src/plugins.rs", "// the list",
         f"    registry.register::<{KINDS[kind]}, {ident}::{type_name(name)}>()?;"),
        ("crates/front/src/engine_plugins.rs", "// the list", f'    "{name}",'),
    ]:
        files[ROOT / path] = after_marker(read(path), marker, line, path)
    return files, (
        f"plugins/{name} is made: `cargo test -p sepal-{name}` checks its contract,\n"
        f"and a pipeline names it by `{'task' if kind == 'head' else 'tuning'}: {{ use: {name} }}`. See docs/plugins.md.")


def family(name):
    """The files of a model family, and a message about them."""
    module, variant = name.replace("-", "_"), type_name(name)
    core, goldens = read(CORE), read(GOLDENS)
    for path in (f"{BLOCKS}/{module}.rs", f"{CHECKPOINT}/{module}.rs"):
        if (ROOT / path).exists():
            fail(f"{path} exists already")
    if f'{variant} = "' in core or f'= "{module}"' in core:
        fail(f"there is a family `{module}` already")
    if f'    "{name}": ' in goldens:
        fail(f"{GOLDENS} has a tiny model `{name}` already")

    files = {ROOT / CORE: among(core, CORE, ["families! {"], f'{variant} = "{module}",')}
    for folder in (CHECKPOINT, BLOCKS):
        path = f"{folder}/mod.rs"
        text = among_mods(read(path), path, f"mod {module};")
        files[ROOT / path] = among(text, path, ["const FAMILIES: "], f"&{module}::SPEC,")

    # At the end, because the index of a tiny model seeds its numbers.
    entry = f'    "{name}": auto("{module}", **llama(num_hidden_layers=2)),'
    files[ROOT / GOLDENS] = at_end(goldens, GOLDENS, "MODELS = {", entry)
    for folder, template in ((BLOCKS, "family.block.rs"), (CHECKPOINT, "family.checkpoint.rs")):
        files[ROOT / folder / f"{module}.rs"] = read(f"scripts/templates/{template}").replace("@TYPE@", variant)
    return files, f"""\
The family `{module}` is made. It computes what a Llama does; next:
1. {CHECKPOINT}/{module}.rs: names of its tensors, its config.json, its GGUF files.
   {BLOCKS}/{module}.rs: its blocks and ends.
2. {GOLDENS}: its entry at the end of MODELS, and one for each form that it has.
   `python3 {GOLDENS} {name}` makes tiny-{name} and its golden, with torch and
   transformers as VERSIONS.txt beside it says.
3. `cargo test --workspace --test it` compares them; it fails for a family without a golden.
4. If llama.cpp has it: `gguf` of its entry, and files by make_gguf.py beside the goldens.
5. `just families` adds it to the table in docs/families.md, which has each step in full."""


def main():
    if len(sys.argv) != 3 or sys.argv[1] not in KINDS:
        fail("write: just new-plugin head my-head, or: just new-plugin tuning my-tuning, or: "
             "just new-plugin family my-family")
    kind, name = sys.argv[1:]
    # Words of a family begin with a letter, so that `my_family` and `MyFamily` have the same words.
    word = "[a-z][a-z0-9]*" if kind == "family" else "[a-z0-9]+"
    if not re.fullmatch(rf"[a-z][a-z0-9]*(-{word})*", name):
        fail(f"`{name}` is not a name; write lower-case words with hyphens, for example my-{kind}")
    files, said = family(name) if kind == "family" else plugin(kind, name)
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(path.name + ".new")
        temporary.write_text(text)
        os.replace(temporary, path)
    print(said)


if __name__ == "__main__":
    main()
