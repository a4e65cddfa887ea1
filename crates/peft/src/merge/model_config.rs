//! `config.json` of a model with a classifier.

use std::path::Path;

use sepal_checkpoint::Checkpoint;
use sepal_core::Family;
use serde_json::{Map, Value, json};

use super::{CONFIG, MergeError};
use crate::adapter::Adapter;
use crate::folder::{self, Staged};
use crate::used_plugin::UsedPlugin;

/// Keys of a configuration that differ from those of the base model.
#[derive(Debug)]
pub(super) struct ConfigChanges<'a> {
    labels: &'a [String],
    class: &'static str,
    /// Kind of the labels, by the name of transformers.
    problem_type: &'static str,
}

impl<'a> ConfigChanges<'a> {
    pub(super) fn new(adapter: &'a Adapter, task: Option<&UsedPlugin>, class: &'static str) -> Self {
        let is_multi = task.and_then(|task| task.option("multi_label")?.as_bool()).unwrap_or(false);
        let problem_type = match adapter.n_labels() {
            _ if is_multi => "multi_label_classification",
            1 => "regression",
            _ => "single_label_classification",
        };
        Self { labels: &adapter.facts.labels, class, problem_type }
    }

    pub(super) fn class(&self) -> &'static str {
        self.class
    }

    /// Writes the configuration of the model in the folder `model`, open as `checkpoint`, with the changes; of a multimodal
    /// model that of its text model. Returns notices for the user.
    pub(super) fn write(
        &self,
        model: &Path,
        checkpoint: &Checkpoint,
        staged: &Staged,
    ) -> Result<Vec<String>, MergeError> {
        let text = sepal_machine::regular::read(&model.join(CONFIG)).map_err(MergeError::Config)?;
        let mut config: Map<String, Value> = serde_json::from_slice(&text)?;
        if checkpoint.multimodal_type().is_some() {
            config = of_text_model(config, checkpoint.config().family);
        }
        let notices = self.apply(&mut config);
        staged.write(CONFIG, &folder::json(&config)?)?;
        Ok(notices)
    }

    fn apply(&self, config: &mut Map<String, Value>) -> Vec<String> {
        let by_id = self.labels.iter().enumerate().map(|(id, label)| (id.to_string(), json!(label)));
        let by_label = self.labels.iter().enumerate().map(|(id, label)| (label.clone(), json!(id)));
        // `id2label` tells the number of labels.
        config.remove("num_labels");
        config.insert("architectures".to_owned(), json!([self.class]));
        config.insert("id2label".to_owned(), Value::Object(by_id.collect()));
        config.insert("label2id".to_owned(), Value::Object(by_label.collect()));
        config.insert("problem_type".to_owned(), json!(self.problem_type));
        let mut notices = Vec::new();
        if let Some(format) = without_quantization(config) {
            notices.push(format!(
                "layers of the model are quantized; the merged weights are their dequantized numbers in {format}"
            ));
        }
        match with_pad_token(config) {
            PadToken::Present => {}
            PadToken::EndOfText(id) => notices.push(format!(
                "{CONFIG} of the model names no padding token; `pad_token_id` is now {id}, the end of a text, so pad rows with it"
            )),
            PadToken::Absent => notices.push(format!(
                "{CONFIG} of the model names neither a padding token nor the end of a text: transformers takes one row at a \
                 time until `pad_token_id` is set"
            )),
        }
        notices
    }
}

/// Removes the quantization. Returns the format of the dequantized numbers, if there was one. It is bf16 for MXFP4, which bf16
/// holds exactly; otherwise it is fp32, and transformers loads the model in it.
fn without_quantization(config: &mut Map<String, Value>) -> Option<&'static str> {
    let quantization = config.remove("quantization_config").filter(|quantization| !quantization.is_null())?;
    if quantization.get("quant_method").and_then(Value::as_str) == Some("mxfp4") {
        return Some("bf16");
    }
    for key in ["dtype", "torch_dtype"] {
        if let Some(dtype) = config.get_mut(key) {
            *dtype = json!("float32");
        }
    }
    Some("f32")
}

/// Keys of a multimodal model that apply to its text model, unless that states them.
const SHARED: [&str; 6] =
    ["bos_token_id", "eos_token_id", "pad_token_id", "dtype", "torch_dtype", "quantization_config"];

/// The configuration of the text model, of the given family, within that of a multimodal model.
fn of_text_model(mut config: Map<String, Value>, family: Family) -> Map<String, Value> {
    let mut text = match config.remove("text_config") {
        Some(Value::Object(text)) => text,
        _ => Map::new(),
    };
    for key in SHARED {
        if !text.contains_key(key)
            && let Some(value) = config.remove(key)
        {
            text.insert(key.to_owned(), value);
        }
    }
    text.insert("model_type".to_owned(), json!(family.name()));
    text
}

/// Token with which rows of a batch are padded. Transformers finds the last token of a row by it.
enum PadToken {
    Present,
    /// Set to the token at the end of a text.
    EndOfText(u64),
    Absent,
}

fn with_pad_token(config: &mut Map<String, Value>) -> PadToken {
    if config.get("pad_token_id").is_some_and(Value::is_u64) {
        return PadToken::Present;
    }
    let end = config.get("eos_token_id").and_then(|end| end.as_u64().or_else(|| end.get(0)?.as_u64()));
    match end {
        Some(id) => {
            config.insert("pad_token_id".to_owned(), json!(id));
            PadToken::EndOfText(id)
        }
        None => PadToken::Absent,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn applied(config: Value, labels: &[&str]) -> (Value, Vec<String>) {
        let labels: Vec<String> = labels.iter().map(|label| (*label).to_owned()).collect();
        let changes =
            ConfigChanges { labels: &labels, class: "GPT2ForSequenceClassification", problem_type: "regression" };
        let mut config = config.as_object().expect("an object").clone();
        let notices = changes.apply(&mut config);
        (Value::Object(config), notices)
    }

    #[test]
    fn configuration_names_class_and_labels() {
        let base = json!({ "architectures": ["GPT2LMHeadModel"], "n_embd": 8, "num_labels": 5, "pad_token_id": 3 });
        let (config, notices) = applied(base, &["no", "yes"]);
        let expected = json!({ "architectures": ["GPT2ForSequenceClassification"], "n_embd": 8, "pad_token_id": 3,
            "id2label": { "0": "no", "1": "yes" }, "label2id": { "no": 0, "yes": 1 }, "problem_type": "regression" });
        assert_eq!((config, notices), (expected, Vec::new()));
    }

    #[test]
    fn configuration_of_a_text_model_has_the_shared_keys_beside_it() {
        let config = json!({ "model_type": "gemma3", "eos_token_id": [1, 106], "torch_dtype": "bfloat16", "vision_config": {},
            "bos_token_id": 2, "text_config": { "hidden_size": 8, "bos_token_id": 3 } });
        let text = of_text_model(config.as_object().expect("an object").clone(), Family::Gemma3);
        let expected = json!({ "model_type": "gemma3_text", "eos_token_id": [1, 106], "torch_dtype": "bfloat16",
            "hidden_size": 8, "bos_token_id": 3 });
        assert_eq!(Value::Object(text), expected);
    }

    #[test]
    fn quantization_beside_a_text_model_is_left_out_and_reported() {
        let config = json!({ "model_type": "mistral3", "torch_dtype": "bfloat16", "vision_config": {},
            "quantization_config": { "quant_method": "fp8" }, "text_config": { "hidden_size": 8, "pad_token_id": 3 } });
        let text = of_text_model(config.as_object().expect("an object").clone(), Family::Mistral);
        let (config, notices) = applied(Value::Object(text), &["a"]);
        assert_eq!((config.get("quantization_config"), &config["torch_dtype"]), (None, &json!("float32")));
        assert!(notices.len() == 1 && notices[0].contains("quantized"), "{notices:?}");
    }

    #[test]
    fn quantization_is_left_out() {
        let quantization = json!({ "quant_method": "gptq", "bits": 4 });
        let base = json!({ "pad_token_id": 3, "torch_dtype": "float16", "quantization_config": quantization });
        let (config, notices) = applied(base, &["a"]);
        assert_eq!((config.get("quantization_config"), &config["torch_dtype"]), (None, &json!("float32")));
        assert!(config.get("dtype").is_none() && notices.len() == 1, "{notices:?}");
        let (config, notices) = applied(json!({ "pad_token_id": 3, "torch_dtype": "float16" }), &["a"]);
        assert_eq!((&config["torch_dtype"], notices), (&json!("float16"), Vec::new()));
        let mxfp4 =
            json!({ "pad_token_id": 3, "dtype": "bfloat16", "quantization_config": { "quant_method": "mxfp4" } });
        let (config, notices) = applied(mxfp4, &["a"]);
        assert_eq!((config.get("quantization_config"), &config["dtype"]), (None, &json!("bfloat16")));
        assert!(notices.len() == 1 && notices[0].ends_with("in bf16"), "{notices:?}");
    }

    #[test]
    fn missing_padding_token_is_the_end_of_a_text() {
        for (end, expected) in [(json!(2), json!(2)), (json!([7, 8]), json!(7)), (Value::Null, Value::Null)] {
            let (config, notices) = applied(json!({ "eos_token_id": end, "pad_token_id": null }), &["a"]);
            assert_eq!((&config["pad_token_id"], notices.len()), (&expected, 1));
        }
    }
}
