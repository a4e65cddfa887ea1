//! `README.md`: how the folder is loaded, and what it was made of.

use std::fmt::Write;

use sepal_track::Manifest;

use crate::adapter::Adapter;
use crate::export::{ExportOptions, Form};
use crate::verify::Verified;

/// The model card, with the front matter that the hub reads.
pub(crate) fn text(options: &ExportOptions, adapter: &Adapter, verified: Option<Verified>) -> String {
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
    if options.form == Form::PromptTuning {
        push(&mut card, PADDING.to_owned());
    }
    if let Some(found) = verified {
        let Verified { rows, difference, largest, .. } = found;
        let text = format!(
            "When this was written, the logits of {rows} rows by these files differed by at most {difference:.1e} from those of \
             the trained prompts; the largest logit was {largest:.2}.\n"
        );
        push(&mut card, text);
    }
    if let Some(manifest) = &options.manifest {
        facts(&mut card, manifest);
    }
    push(&mut card, "## Licence\n\nNot chosen yet: say here under which licence you give this on.".to_owned());
    card
}

const PADDING: &str = "**One row at a time, or rows of equal length:** PEFT pools rows of padded batches at their padding with this \
                       method (peft#764).\n";

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
tokenizer = AutoTokenizer.from_pretrained({base}, padding_side="right")
if tokenizer.pad_token_id is None:
    tokenizer.pad_token = tokenizer.eos_token
model = AutoPeftModelForSequenceClassification.from_pretrained(
    folder,
    num_labels={n_labels},
    id2label={{{labels}}},
    pad_token_id=tokenizer.pad_token_id,
).eval()
rows = tokenizer(["a text", "another, longer text"], return_tensors="pt", padding=True)
print(model(input_ids=rows["input_ids"], attention_mask=rows["attention_mask"]).logits)
```
"#,
        base = quoted(&options.base_model),
        n_labels = adapter.n_labels(),
        labels = labels.join(", "),
    )
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
