//! `README.md`: how the folder is loaded, and what it was made of.

use std::fmt::Write;

use sepal_track::{DataFacts, Manifest};

use crate::adapter::Adapter;
use crate::export::{ExportOptions, Form};
use crate::verify::Verified;

/// The file's name.
pub(crate) const CARD: &str = "README.md";

/// The model card, with the front matter that the hub reads.
pub(crate) fn text(
    options: &ExportOptions,
    notices: &[String],
    adapter: &Adapter,
    verified: Option<Verified>,
) -> String {
    let mut card = front_matter(options);
    let what = if adapter.deep_prompts.is_some() { "soft prompts and deep prompts" } else { "soft prompts" };
    let (prefix_len, base) = (adapter.prefix_len(), &options.base_model);
    let form = match options.form {
        Form::PrefixTuning => "written as the keys and values that the frozen blocks make of them (PREFIX_TUNING)",
        Form::PromptTuning => "written as they are (PROMPT_TUNING)",
    };
    push(&mut card, format!("\n# Text classification with {base}\n"));
    push(&mut card, format!("{prefix_len} {what} and a linear head, trained with Sepal, {form}.\n"));
    push(&mut card, snippet(options, adapter));
    for notice in notices {
        push(&mut card, format!("**Note:** {notice}.\n"));
    }
    if let Some(found) = verified {
        let Verified { rows, difference, largest, .. } = found;
        let text = format!(
            "When this was written, the logits of {rows} rows by these files differed by at most {difference:.1e} from those of \
             the trained prompts; the largest logit was {largest:.2}.\n"
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

const SEPAL: &str = "With Sepal (`hub:OWNER/NAME` in the place of `.` if it lies on the hub):\n\n\
                     ```\nsepal import peft . classifier\nsepal predict classifier --input texts.csv\n```\n";

fn front_matter(options: &ExportOptions) -> String {
    let base = quoted(&options.base_model);
    format!(
        "---\nbase_model: {base}\nlibrary_name: peft\npipeline_tag: text-classification\n# license: say under which licence you \
         give this on\n---\n"
    )
}

fn snippet(options: &ExportOptions, adapter: &Adapter) -> String {
    let labels = adapter.facts.labels.iter().enumerate();
    let labels: Vec<String> = labels.map(|(at, label)| format!("{at}: {}", quoted(label))).collect();
    format!(
        r#"```python
from peft import AutoPeftModelForSequenceClassification
from transformers import AutoTokenizer

folder = "."  # this folder
tokenizer = AutoTokenizer.from_pretrained({base}, padding_side="right", truncation_side="right")
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
        base = quoted(&options.base_model),
        n_labels = adapter.n_labels(),
        labels = labels.join(", "),
        rows = rows(options.run.as_ref().map(|run| &run.manifest.data)),
    )
}

/// The lines that make texts what they were in training. Templates are written as Python's `str.format` takes them.
fn rows(data: Option<&DataFacts>) -> String {
    let mut lines = vec!["texts = [\"a text\", \"another, longer text\"]".to_owned()];
    let template = data.and_then(|data| data.template.as_deref());
    // Two braces are one of the text.
    let in_template = template.is_some_and(|template| template.replace("{{", "").contains("{text_pair}"));
    let has_pairs = data.is_some_and(|data| data.text_pair.is_some());
    if has_pairs {
        lines.push("pairs = [\"what the first is compared with\", \"and the second\"]".to_owned());
    }
    if let Some(template) = template {
        let (each, names) = if in_template {
            ("text=text, text_pair=pair", "text, pair in zip(texts, pairs)")
        } else {
            ("text=text", "text in texts")
        };
        lines.push(format!("template = {}", quoted(template)));
        lines.push(format!("texts = [template.format({each}) for {names}]"));
    }
    let pairs = if has_pairs && !in_template { "pairs, " } else { "" };
    let cut = data.and_then(|data| data.max_length).map(|n| format!(", truncation=True, max_length={n}"));
    let cut = cut.unwrap_or_default();
    lines.push(format!("rows = tokenizer(texts, {pairs}return_tensors=\"pt\", padding=True{cut})"));
    lines.join("\n")
}

fn facts(card: &mut String, manifest: &Manifest) {
    if !manifest.metrics.is_empty() {
        push(card, "## Metrics\n\nOf the validation rows:\n\n| metric | value |\n| --- | --- |".to_owned());
        for (metric, value) in &manifest.metrics {
            push(card, format!("| {metric} | {value:.4} |"));
        }
        push(card, String::new());
    }
    let data = &manifest.data;
    let rows = (data.train_rows, data.validation_rows);
    push(card, "## Training\n".to_owned());
    push(
        card,
        format!("- rows: `{}` ({} rows); validation: `{}` ({} rows)", data.train, rows.0, data.validation, rows.1),
    );
    let (model, parameters) = (&manifest.model, manifest.parameters);
    push(card, format!("- frozen model: `{}` ({}), {}", model.source, model.weights, model.digest));
    push(
        card,
        format!("- {} numbers trained in {} steps, seed {}", parameters.trainable, manifest.steps, manifest.seed),
    );
    push(card, format!("- run `{}`, adapter {}\n", manifest.name, manifest.adapter_digest));
}

/// As a string that JSON, YAML and Python read alike.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn push(card: &mut String, line: String) {
    // Writing to a string does not fail.
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
    fn texts_are_given_as_in_training() {
        let tokenized = |data: &DataFacts| rows(Some(data)).lines().last().map(str::to_owned).unwrap_or_default();
        let cut = "return_tensors=\"pt\", padding=True, truncation=True, max_length=64)";
        let plain = data(None, None);
        assert_eq!(tokenized(&plain), format!("rows = tokenizer(texts, {cut}"));
        assert!(rows(None).ends_with("padding=True)"), "nobody knows how many tokens");
        let around = data(Some("{text}\nSentiment:"), None);
        let text = rows(Some(&around));
        assert!(text.contains("template = \"{text}\\nSentiment:\"\n"), "{text}");
        assert!(text.contains("[template.format(text=text) for text in texts]"), "{text}");
        let pairs = data(Some("Premise: {text}"), Some("hypothesis"));
        assert_eq!(tokenized(&pairs), format!("rows = tokenizer(texts, pairs, {cut}"));
        let escaped = data(Some("{text} {{text_pair}}"), Some("hypothesis"));
        assert_eq!(tokenized(&escaped), format!("rows = tokenizer(texts, pairs, {cut}"));
        let both = data(Some("{text} so {text_pair}"), Some("hypothesis"));
        assert_eq!(tokenized(&both), format!("rows = tokenizer(texts, {cut}"));
        assert!(rows(Some(&both)).contains("text_pair=pair) for text, pair in zip(texts, pairs)]"));
    }
}
