#!/usr/bin/env python3
"""Makes templates.json: rows in templates, shortened by Python on what transformers gives.

    pip install transformers==5.23.0 && python make_templates_golden.py

The tokenizers are a byte-level one and one with a metaspace, both trained here on a few sentences. `encode` is the
function of the model cards that `sepal export peft` writes.
"""

import json
import pathlib
import random
from string import Formatter

import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

SENTENCES = [
    "a gentle film about two brothers, warm and very funny .", "the plot is dull and the cast is worse !",
    "Sentiment: positive", "Review: it was a moving scene;  the rest was grim", "ein schöner Film, nicht wahr?",
]
TEMPLATES = ["{text}", "{text}\nSentiment:", "Review: {text}\nSentiment:", "  {text}  ", "{{a}} {text}{{b}}", "a{text}b"]
PAIR_TEMPLATES = ["{text} so {text_pair}.", "{text_pair}\n\n{text}\nSentiment:", "{text}{text_pair}"]
LIMITS = [5, 8, 12, 20, 40]


def trained(pre_tokenizer, decoder, alphabet):
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizer, decoder
    trainer = trainers.BpeTrainer(
        vocab_size=120 + len(alphabet), special_tokens=["<unk>", "<s>", "</s>"], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(SENTENCES * 3, trainer)
    return tokenizer


def tokenizers():
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    plain = trained(pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel(), alphabet)
    plain.post_processor = processors.ByteLevel(trim_offsets=True)
    spaced = trained(pre_tokenizers.Metaspace(prepend_scheme="first"), decoders.Metaspace(), [])
    spaced.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    return {"byte-level": plain, "metaspace": spaced}


def encode(tokenizer, template, max_length, side, text, pair):
    takes_pair = "{text_pair}" in template.replace("{{", "")
    prompt, spans, fields = "", [], {"text": text, "text_pair": pair}
    for words, field, _, _ in Formatter().parse(template):
        prompt += words
        if field is not None:
            spans.append((len(prompt), len(prompt) + len(fields[field])))
            prompt += fields[field]
    second = [] if takes_pair or pair is None else [pair]
    row = tokenizer(prompt, *second, return_offsets_mapping=True)
    owned = [[] for _ in range(len(spans) + 1)]
    for at, (sequence, (start, end)) in enumerate(zip(row.sequence_ids(), row["offset_mapping"])):
        inside = [begin <= start or begin < end and prompt[start:begin].isspace() for begin, _ in spans]
        found = next((i for i, (_, stop) in enumerate(spans) if inside[i] and end <= stop), None)
        found = len(spans) if sequence == 1 else found
        if sequence is not None and found is not None:
            owned[found].append(at)
    room, removed = max_length - len(row["input_ids"]) + sum(map(len, owned)), set()
    if room < sum(map(bool, owned)) and len(row["input_ids"]) > max_length:
        return None  # The template does not fit.
    order = sorted(range(len(owned)), key=lambda text: len(owned[text]))
    for rank, text in enumerate(order):
        limit = min(len(owned[text]), room // (len(order) - rank))
        room -= limit
        removed.update(owned[text][: -limit or None] if side == "left" else owned[text][limit:])
    return [token for at, token in enumerate(row["input_ids"]) if at not in removed]


def main():
    rng = random.Random(17)

    def text():
        words = " ".join(SENTENCES).split(" ")
        return rng.choice(["", "", " ", "\n"]) + " ".join(rng.choices(words, k=rng.randint(1, 14))) + rng.choice(["", " ", "\n"])

    cases = []
    built = tokenizers()
    for name, tokenizer in built.items():
        fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
        for template in TEMPLATES + PAIR_TEMPLATES:
            for limit in LIMITS:
                pair = text() if template in PAIR_TEMPLATES or rng.random() < 0.3 else None
                case = {"tokenizer": name, "template": template, "limit": limit, "text": text(), "pair": pair}
                for side in ["right", "left"]:
                    case[side] = encode(fast, template, limit, side, case["text"], pair)
                cases.append(case)
    golden = {
        "transformers": transformers.__version__,
        "tokenizers": {name: json.loads(tokenizer.to_str()) for name, tokenizer in built.items()},
        "cases": cases,
    }
    path = pathlib.Path(__file__).with_name("templates.json")
    path.write_text(json.dumps(golden, ensure_ascii=False, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
