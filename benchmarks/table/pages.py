"""Pages of the results: docs/results.json, docs/results.md and the picture docs/results.svg."""

import json
import statistics
from html import escape

import models
import rows as table_rows
import sepal_runs
import tasks

# Rows of the table in its order: name in the results, name on the page.
ROWS = [
    ("tf-idf", "tf-idf, logistic regression (scikit-learn)"),
    ("sentence encoder", "frozen all-MiniLM-L6-v2, logistic regression"),
    ("SetFit", "SetFit, all-MiniLM-L6-v2 trained on pairs of rows"),
    ("linear probe", "frozen {model}, logistic regression"),
    ("PEFT prompt tuning", "PEFT's prompt tuning, 16 prompts"),
    ("PEFT LoRA", "PEFT's LoRA of all layers, rank 8"),
    ("zero-shot", "Sepal: verbalizer, calibrated, no training"),
    ("ptune", "Sepal: `ptune`, 16 prompts"),
    ("prefix-kv", "Sepal: `prefix-kv`, 16 positions"),
    ("deep-ptune", "Sepal: `deep-ptune`, 16 prompts"),
    ("verbalizer", "Sepal: `verbalizer`, `deep-ptune`"),
    ("lora", "Sepal: `lora` of all layers, rank 8"),
    ("lora, random head", "Sepal: the same with a head drawn at random"),
]
SIZES = {"16-shot": "16 rows of each class", "1k": "1024 rows", "full": "all rows"}
INTRO = """# Results

`just table` writes this page from its results ([results.json](results.json), with the figures of each seed). Figures are
accuracies on the validation rows in percent: mean over the seeds, standard deviation, and number of seeds if it is not
{seeds}. "not run" stands for a combination without a result.

![accuracy by task and method](results.svg)

## Protocol

- Each task has {validation} validation rows, the same for all methods and seeds. The seed draws the training rows, their
  order and the initial values; all methods read the same files.
- Training rows: 16 of each class (30 steps of 16 rows), or {large} drawn at random (32 steps of 32 rows, so each row
  once). The language models read 64 tokens of a text with its template, all-MiniLM-L6-v2 64 tokens without it, and tf-idf
  its first 2000 characters, which is far more of a mail or an article. PEFT takes the same number of steps, rows and
  tokens.
- SetFit reads the same rows, 16 of each class, but takes its own steps with its authors' options except for the 64
  tokens: one epoch of pairs of rows in batches of 16, as many pairs of one class as of two, then logistic regression.
  32 rows of two classes make 544 pairs and 34 steps. It trains its whole encoder, all-MiniLM-L6-v2 with 22.6 million
  numbers, which had been trained on more than a billion pairs of sentences before; SmolLM2-135M had not. {large} rows
  make half a million pairs and 33,000 steps, so SetFit has no result with them.
- Options are fixed for all tasks and were not chosen by these validation rows: AdamW without decay, a linear schedule with
  5 steps of warm-up, gradients clipped at norm 1. Rates are 1e-3 for LoRA and deep prompts, 3e-3 for prompts and 1e-2 for
  `prefix-kv`. Prompts start as the text of the task. Sepal's heads start from the words of the labels, unless the
  table says otherwise; PEFT's start at random.
- The language models come from the package index and are computed in fp32:
  {models}.
  Rows without the name of a model are those of {default}.
- Trained numbers, time and bytes are those of the largest training file with a result. Time is that of the processor
  (all threads, loading and evaluation included) in seconds, on machines of two cores that did other work at the same
  time. Bytes are those that client and embedded server exchange, which would travel to a server elsewhere.
"""


def group(rows):
    """Return the rows of all seeds, in their order, by task, size, method and language model."""
    found = {}
    for row in sorted(rows, key=lambda row: row["key"][3]):
        task, size, method, _, model = row["key"]
        found.setdefault((task, size, method, model), []).append(row)
    return found


def in_each_size(groups):
    """Return the groups with those of the size `any` in every size of the page."""
    sizes = [size for size in SIZES if size != "full" or any(key[1] == "full" for key in groups)]
    return {(task, one, method, model): rows for (task, size, method, model), rows in groups.items()
            for one in (sizes if size == "any" else [size])}


def table_lines(results):
    """Return method, language model and title of each line of a task: all methods with the default model, then those that
    have a result with another one."""
    found = [(method, models.DEFAULT, title.format(model=models.MODELS[models.DEFAULT].title)) for method, title in ROWS]
    for name, model in models.MODELS.items():
        measured = {key[2] for key in results if key[3] == name}
        if name != models.DEFAULT:
            found += [(method, name, f"{model.title}: {title.removeprefix('Sepal: ').format(model='model')}")
                      for method, title in ROWS if method in measured]
    return found


def summary(rows):
    """Return mean and deviation of the seeds, and the mean cost."""
    accuracy = [100 * row["accuracy"] for row in rows]
    mean = lambda name: statistics.mean(row[name] for row in rows)
    return {
        "mean": round(statistics.mean(accuracy), 2),
        "deviation": round(statistics.stdev(accuracy), 2) if len(accuracy) > 1 else None,
        "f1_macro": round(100 * mean("f1_macro"), 2),
        "seeds": len(accuracy),
        "cpu_seconds": round(mean("cpu_seconds"), 1),
        "bytes": round(mean("bytes")),
        "trained_numbers": rows[0]["trained_numbers"],
    }


def cell(found, seeds, method):
    if found is None:
        return "not run"
    text = f"{found['mean']:.1f}"
    if found["deviation"] is not None:
        text += f" ± {found['deviation']:.1f}"
    if found["seeds"] != seeds and method != "zero-shot":
        text += f" ({found['seeds']} seed{'s' if found['seeds'] > 1 else ''})"
    return text


def amount(number):
    for limit, unit in [(1e9, "GB"), (1e6, "MB"), (1e3, "kB")]:
        if number >= limit:
            return f"{number / limit:.1f} {unit}"
    return "none"


def task_table(name, results, sizes, seeds):
    """Return the table of one task."""
    lines = ["| | " + " | ".join(SIZES[size] for size in sizes) + " | trained numbers | CPU seconds | bytes |",
             "| --- |" + " ---: |" * (len(sizes) + 3)]
    for method, model, title in table_lines(results):
        found = [results.get((name, size, method, model)) for size in sizes]
        # The cost is that of the larger training file.
        cost = next((one for one in reversed(found) if one), None)
        costs = [f"{cost['trained_numbers']:,}", f"{cost['cpu_seconds']:.0f}", amount(cost["bytes"])] if cost else [""] * 3
        lines.append("| " + " | ".join([title, *(cell(one, seeds, method) for one in found), *costs]) + " |")
    return lines


def markdown(results, seeds):
    sizes = [size for size in SIZES if size != "full" or any(key[1] == "full" for key in results)]
    named = " and ".join(model.note for name, model in models.MODELS.items() if any(key[3] == name for key in results))
    lines = [INTRO.format(seeds=seeds, validation=tasks.VALIDATION_ROWS, large=tasks.LARGE, models=named,
                          default=models.MODELS[models.DEFAULT].title)]
    for name, task in tasks.TASKS.items():
        note = f" ({task.note})" if task.note else ""
        source = f"`{task.source}`" if ":" in task.source else "a folder of the user's own (`--sst2`)"
        heading = task.title[0].upper() + task.title[1:]
        lines += [f"## {heading}", "", f"From {source}{note}. Licence: {task.licence}.", ""]
        if any(key[0] == name for key in results):
            lines += [*task_table(name, results, sizes, seeds), ""]
        else:
            lines += ["Not run.", ""]
    lines += ["## Not run here", "", "The hub could not be reached, so these have no figures:", ""]
    lines += [f"- {name}" for name in tasks.HUB]
    lines += [""] if "full" in sizes else ["", "Full training files (`--sizes full`) were not run.", ""]
    return "\n".join(lines)


WIDTH, LEFT, RIGHT, LINE = 860, 300, 800, 20
STYLE = """text { fill: #1f2328; } .dim { fill: #656d76; } .head { font-weight: bold; } .back { fill: #ffffff; }
.axis { stroke: #d0d7de; } .few { fill: #9a6700; } .many { fill: #2f7d32; } .range { stroke-width: 2; }
.few.range { stroke: #9a6700; } .many.range { stroke: #2f7d32; }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3; } .dim { fill: #9198a1; } .back { fill: #0d1117; } .axis { stroke: #30363d; }
.few { fill: #e3b341; } .many { fill: #57a65a; } .few.range { stroke: #e3b341; } .many.range { stroke: #57a65a; }
}"""


def picture(results):
    """Return a picture with a point and a bar of one standard deviation for each task, method and size."""
    names = [name for name in tasks.TASKS if any(key[0] == name for key in results)]
    low = min([key_result["mean"] for key_result in results.values()], default=50)
    low = max(0, 10 * int((low - 2) // 10))
    across = lambda value: LEFT + (RIGHT - LEFT) * (value - low) / (100 - low)
    parts, y = [], 30
    parts.append(f'<circle class="few" cx="{LEFT}" cy="{y - 4}" r="5"/><text x="{LEFT + 12}" y="{y}">16 rows of each class</text>')
    parts.append(f'<circle class="many" cx="{LEFT + 190}" cy="{y - 4}" r="5"/><text x="{LEFT + 202}" y="{y}">1024 rows</text>')
    for name in names:
        y += 34
        top = y
        parts.append(f'<text class="head" x="14" y="{y}">{escape(tasks.TASKS[name].title)}</text>')
        for method, model, title in table_lines(results):
            found = [(kind, results.get((name, size, method, model))) for kind, size in [("few", "16-shot"), ("many", "1k")]]
            if method == "zero-shot":
                found = found[1:]
            if not any(one for _, one in found):
                continue
            y += LINE
            parts.append(f'<text x="24" y="{y + 4}">{escape(title.replace("`", ""))}</text>')
            for kind, one in found:
                if one:
                    x, spread = across(one["mean"]), one["deviation"] or 0
                    begin, end = across(max(low, one["mean"] - spread)), across(min(100, one["mean"] + spread))
                    parts.append(f'<line class="{kind} range" x1="{begin:.1f}" x2="{end:.1f}" y1="{y}" y2="{y}"/>')
                    parts.append(f'<circle class="{kind}" cx="{x:.1f}" cy="{y}" r="4.5"/>')
        grid = [f'<line class="axis" x1="{across(v):.1f}" x2="{across(v):.1f}" y1="{top + 8}" y2="{y + 10}"/>'
                f'<text class="dim" x="{across(v) - 8:.1f}" y="{top}">{v}</text>' for v in range(low, 101, 10)]
        parts = parts[:1] + grid + parts[1:]
    height = y + 30
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" '
            f'font-size="12.5">\n<title>Accuracy by task and method, by `just table`</title>\n<style>\n{STYLE}\n</style>\n'
            f'<rect class="back" width="{WIDTH}" height="{height}"/>\n' + "\n".join(parts) + "\n</svg>\n")


# Columns of the README's table: method, language model and title.
SHORT = [(method, models.DEFAULT, title) for method, title in [
    ("tf-idf", "tf-idf"), ("sentence encoder", "frozen MiniLM"), ("SetFit", "SetFit"), ("linear probe", "frozen SmolLM2"),
    ("deep-ptune", "deep prompts"), ("lora", "LoRA")]] + [("lora", "gemma3-270m", "LoRA, Gemma 3")]
BEGIN, END = "<!-- results, written by `just table` -->", "<!-- end of results -->"


def short_table(results):
    """Return the table of the README: the tasks and sizes of which some mode of Sepal has a result."""
    rows = [(name, size) for name in tasks.TASKS for size in ["16-shot", "1k"]
            if any((name, size, method, models.DEFAULT) in results for method in ["lora", "deep-ptune"])]
    if not rows:
        return ""
    lines = ["| accuracy (seeds) | " + " | ".join(title for *_, title in SHORT) + " |", "| --- |" + " ---: |" * len(SHORT)]
    for name, size in rows:
        found = [results.get((name, size, method, model)) for method, model, _ in SHORT]
        cells = [f"{one['mean']:.1f} % ({one['seeds']})" if one else "not run" for one in found]
        lines.append(f"| {tasks.TASKS[name].title}, {SIZES[size]} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def replace_between(path, text):
    """Replace the text between the markers of a page."""
    page = path.read_text(encoding="utf-8")
    before, rest = page.split(BEGIN, 1)
    after = rest.split(END, 1)[1]
    new = path.with_suffix(".new")
    new.write_text(f"{before}{BEGIN}\n{text}{END}{after}", encoding="utf-8")
    new.replace(path)


def place(key):
    """Return the place of a result in docs/results.json; methods that the table does not know stay in the file."""
    index = lambda names, name: names.index(name) if name in names else len(names)
    task, size, method, model = key
    return (index(list(tasks.TASKS), task), index(["any", *SIZES], size), index(list(models.MODELS), model),
            index([name for name, _ in ROWS], method), key)


def json_text(groups):
    """Return docs/results.json: a result has the means over its seeds, and its values the figures of each seed."""
    document = {
        "protocol": {"validation_rows": tasks.VALIDATION_ROWS, "large": tasks.LARGE, "steps": sepal_runs.STEPS},
        "results": [{"task": key[0], "size": key[1], "method": key[2], "language_model": key[3],
                     **summary(groups[key]), "values": [table_rows.to_value(row) for row in groups[key]]} for key in sorted(groups, key=place)],
        "not_run": list(tasks.HUB),
    }
    return json.dumps(document, indent=1) + "\n"


def write(rows, root):
    """Write the three files of docs and the table of the README."""
    docs, groups = root / "docs", group(rows)
    results = {key: summary(found) for key, found in in_each_size(groups).items()}
    seeds = max([one["seeds"] for one in results.values()], default=0)
    for name, text in [("results.json", json_text(groups)), ("results.md", markdown(results, seeds)),
                       ("results.svg", picture(results))]:
        new = docs / f"{name}.new"
        new.write_text(text, encoding="utf-8")
        new.replace(docs / name)
    replace_between(root / "README.md", short_table(results))
