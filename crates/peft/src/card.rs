//! `README.md`: the model card of an export.

use std::fmt::Write;

use sepal_track::{Calibration, DataFacts, Manifest};

use crate::adapter::Adapter;
use crate::export_options::{ExportOptions, Form, Method};
use crate::verify::Verified;

/// Inputs of a model card.
pub(crate) struct Card<'a> {
    pub(crate) options: &'a ExportOptions,
    pub(crate) form: Form,
    pub(crate) notices: &'a [String],
    pub(crate) adapter: &'a Adapter,
    pub(crate) verified: Option<Verified>,
}

impl Card<'_> {
    /// Returns the text, with the front matter for the hub.
    pub(crate) fn text(&self) -> String {
        let Self { options, notices, adapter, verified, .. } = *self;
        let mut card = front_matter(options);
        push(&mut card, format!("\n# Text classification with {}\n", options.base_model));
        let (description, method) = (upper_first(&adapter.description()), self.method());
        push(&mut card, format!("{description} and a linear head, trained with Sepal, {method}.\n"));
        push(&mut card, snippet(options, adapter));
        if let Some(run) = &options.run {
            uses(&mut card, &run.manifest);
        }
        for notice in notices {
            push(&mut card, format!("**Note:** {notice}.\n"));
        }
        if let Some(found) = verified {
            let Verified { rows, difference, largest, .. } = found;
            let text = format!(
                "When this was written, the logits of {rows} rows by these files differed by at most {difference:.1e} from \
                 those of the trained adapter; the largest logit was {largest:.2}.\n"
            );
            push(&mut card, text);
        }
        if let Some(run) = &options.run {
            push(&mut card, SEPAL.to_owned());
            facts(&mut card, &run.manifest);
        }
        push(&mut card, "## Licence\n\nNot chosen yet: say here under which licence you give this on.".to_owned());
        card
    }

    fn method(&self) -> String {
        let are_folded = self.form == Form::PrefixTuning && self.adapter.keys_values().is_none();
        let content = if are_folded { "the keys and values that the frozen blocks make of them" } else { "they are" };
        format!("written as {content} ({})", self.form.peft_type())
    }
}

fn upper_first(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}

const SEPAL: &str = "With Sepal (`hub:OWNER/NAME` in place of `.` if the folder is on the hub):\n\n\
                     ```\nsepal import peft . classifier\nsepal predict classifier --input texts.csv\n```\n";

fn front_matter(options: &ExportOptions) -> String {
    let base = quoted(&options.base_model);
    format!(
        "---\nbase_model: {base}\nlibrary_name: peft\npipeline_tag: text-classification\n# license: say under which licence you \
         give this on\n---\n"
    )
}

fn snippet(options: &ExportOptions, adapter: &Adapter) -> String {
    let data = options.run.as_ref().map(|run| &run.manifest.data);
    let has_template = data.is_some_and(|data| data.template.is_some());
    let labels = adapter.facts.labels.iter().enumerate();
    let labels: Vec<String> = labels.map(|(index, label)| format!("{index}: {}", quoted(label))).collect();
    format!(
        r#"```python
{imports}from peft import AutoPeftModelForSequenceClassification
from transformers import AutoTokenizer

folder = "."  # this folder
tokenizer = AutoTokenizer.from_pretrained({base}, padding_side="right", truncation_side="{side}")
if tokenizer.pad_token_id is None:
    tokenizer.pad_token = tokenizer.eos_token
model = AutoPeftModelForSequenceClassification.from_pretrained(
    folder,
    num_labels={n_labels},
    id2label={{{labels}}},
    pad_token_id=tokenizer.pad_token_id,
).eval()
{rows}
print(model(input_ids=rows["input_ids"], attention_mask=rows["attention_mask"]).logits)
```
"#,
        imports = if has_template { "from string import Formatter\n\n" } else { "" },
        base = quoted(&options.base_model),
        n_labels = adapter.n_labels(),
        labels = labels.join(", "),
        side = data.map_or("right", side),
        rows = rows(data),
    )
}

/// Returns Python lines that prepare texts as in training. Templates use the syntax of `str.format`.
fn rows(data: Option<&DataFacts>) -> String {
    let mut lines = vec!["texts = [\"a text\", \"another, longer text\"]".to_owned()];
    let has_pairs = data.is_some_and(|data| data.text_pair.is_some());
    if has_pairs {
        lines.push("pairs = [\"what the first is compared with\", \"and the second\"]".to_owned());
    }
    let limit = data.and_then(|data| data.max_length);
    lines.push(match data.and_then(|data| data.template.as_deref().map(|template| (data, template))) {
        Some((data, template)) => in_template(data, template, limit),
        None => {
            let pairs = if has_pairs { "pairs, " } else { "" };
            let cut = limit.map(|n| format!(", truncation=True, max_length={n}")).unwrap_or_default();
            format!("rows = tokenizer(texts, {pairs}return_tensors=\"pt\", padding=True{cut})")
        }
    });
    lines.join("\n")
}

/// Returns lines for texts in a template. Long texts are shortened, the longest first; the template stays complete.
fn in_template(data: &DataFacts, template: &str, limit: Option<usize>) -> String {
    // Doubled braces are literal.
    let takes_pair = template.replace("{{", "").contains("{text_pair}");
    let (each, names) = match &data.text_pair {
        Some(_) => ("text, pair", "text, pair in zip(texts, pairs)"),
        None => ("text", "text in texts"),
    };
    let fields = if takes_pair { "{\"text\": text, \"text_pair\": pair}" } else { "{\"text\": text}" };
    let second = if data.text_pair.is_some() && !takes_pair { ", pair" } else { "" };
    let removed = if side(data) == "left" { "owned[text][:-limit or None]" } else { "owned[text][limit:]" };
    let limit = limit.map_or_else(|| "10**9".to_owned(), |limit| limit.to_string());
    format!(
        r#"template = {template}
max_length = {limit}


def encode({each}):
    # If the row is too long, tokens of its texts give way; those of the template stay.
    prompt, spans, fields = "", [], {fields}
    for words, field, _, _ in Formatter().parse(template):
        prompt += words
        if field is not None:
            spans.append((len(prompt), len(prompt) + len(fields[field])))
            prompt += fields[field]
    row = tokenizer(prompt{second}, return_offsets_mapping=True)
    owned = [[] for _ in range(len(spans) + 1)]
    for at, (sequence, (start, end)) in enumerate(zip(row.sequence_ids(), row["offset_mapping"])):
        inside = [begin <= start or begin < end and prompt[start:begin].isspace() for begin, _ in spans]
        text = next((i for i, (_, stop) in enumerate(spans) if inside[i] and end <= stop), None)
        text = len(spans) if sequence == 1 else text
        if sequence is not None and text is not None:
            owned[text].append(at)
    room, removed = max_length - len(row["input_ids"]) + sum(map(len, owned)), set()
    if room < sum(map(bool, owned)) and len(row["input_ids"]) > max_length:
        raise ValueError("the template leaves no token to the text")
    order = sorted(range(len(owned)), key=lambda text: len(owned[text]))
    for rank, text in enumerate(order):
        limit = min(len(owned[text]), room // (len(order) - rank))
        room -= limit
        removed.update({removed})
    return [token for at, token in enumerate(row["input_ids"]) if at not in removed]


rows = tokenizer.pad({{"input_ids": [encode({each}) for {names}]}}, return_tensors="pt")"#,
        template = quoted(template),
    )
}

/// Returns the end at which long texts are cut.
fn side(data: &DataFacts) -> &str {
    data.truncation_side.as_deref().unwrap_or("right")
}

/// Says what predictions do beside the logits of one row.
fn uses(card: &mut String, manifest: &Manifest) {
    if let (Some(long_texts), Some(limit)) = (&manifest.data.long_texts, manifest.data.max_length) {
        push(
            card,
            format!(
                "Sepal predicts a text of more than {limit} tokens by {long_texts}; the lines above truncate it.\n"
            ),
        );
    }
    if let Some(calibration) = &manifest.calibration {
        let description = calibration.description();
        let text = format!(
            "Probabilities are calibrated on {} rows, and `{}` has the values ({description}): divide the logits by the \
             temperature; a label with a threshold is predicted if its probability is at least that.\n",
            calibration.rows,
            Calibration::FILE,
        );
        push(card, text);
    }
}

fn facts(card: &mut String, manifest: &Manifest) {
    if !manifest.metrics.is_empty() {
        push(card, "## Metrics\n\nOf the validation rows:\n\n| metric | value |\n| --- | --- |".to_owned());
        for (metric, value) in &manifest.metrics {
            push(card, format!("| {metric} | {value:.4} |"));
        }
        push(card, String::new());
    }
    let DataFacts { train, train_rows, validation, validation_rows, .. } = &manifest.data;
    push(card, "## Training\n".to_owned());
    push(card, format!("- rows: `{train}` ({train_rows} rows); validation: `{validation}` ({validation_rows} rows)"));
    let (model, steps, seed) = (&manifest.model, manifest.steps, manifest.seed);
    push(card, format!("- frozen model: `{}` ({}), {}", model.source, model.weights, model.digest));
    push(card, format!("- {} numbers trained in {steps} steps, seed {seed}", manifest.parameters.trainable));
    push(card, format!("- run `{}`, adapter {}\n", manifest.name, manifest.adapter_digest));
}

/// Quotes text as a string that JSON, YAML and Python read alike.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn push(card: &mut String, line: String) {
    writeln!(card, "{line}").ok();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(template: Option<&str>, pair: Option<&str>) -> DataFacts {
        DataFacts {
            template: template.map(str::to_owned),
            text_pair: pair.map(str::to_owned),
            max_length: Some(64),
            ..DataFacts::default()
        }
    }

    #[test]
    fn card_prepares_texts_as_in_training() {
        let tokenized = |data: &DataFacts| rows(Some(data)).lines().last().map(str::to_owned).unwrap_or_default();
        let cut = "return_tensors=\"pt\", padding=True, truncation=True, max_length=64)";
        let plain = data(None, None);
        assert_eq!(tokenized(&plain), format!("rows = tokenizer(texts, {cut}"));
        assert!(rows(None).ends_with("padding=True)"), "nobody knows how many tokens");
        let pairs = data(None, Some("hypothesis"));
        assert_eq!(tokenized(&pairs), format!("rows = tokenizer(texts, pairs, {cut}"));
    }

    #[test]
    fn card_keeps_the_training_template_whole() {
        let check = |template: &str, pair: Option<&str>, lines: &[&str]| {
            let text = rows(Some(&data(Some(template), pair)));
            lines.iter().for_each(|line| assert!(text.contains(line), "{line} in {text}"));
        };
        check(
            "{text}\nSentiment:",
            None,
            &[
                "template = \"{text}\\nSentiment:\"\nmax_length = 64\n",
                "def encode(text):",
                "fields = \"\", [], {\"text\": text}",
                "tokenizer(prompt, return",
                "[encode(text) for text in texts]",
            ],
        );
        let in_pairs = "[encode(text, pair) for text, pair in zip(texts, pairs)]";
        check("{text} {{text_pair}}", Some("hypothesis"), &["tokenizer(prompt, pair, return", in_pairs]);
        check(
            "{text} so {text_pair}",
            Some("hypothesis"),
            &["{\"text\": text, \"text_pair\": pair}", "tokenizer(prompt, return", in_pairs],
        );
        let left = DataFacts { truncation_side: Some("left".into()), ..data(Some("{text}"), None) };
        assert!(rows(Some(&left)).contains("owned[text][:-limit or None]"));
    }
}
