//! Adapters in folders that PEFT wrote.

use sepal_checkpoint::Checkpoint;
use sepal_peft::{Import, ImportOptions};
use serde_json::{Value, json};

use crate::checkpoints::{config as model_config, file_of_header, header as model_header};
use crate::with_files;

/// The `adapter_config.json` beside tensors of each method, and the record of an export.
pub(crate) fn config(bytes: &[u8]) {
    for (config, header) in methods() {
        let (config, file) = (config.to_string(), tensors(&header));
        let saved = [("adapter_model.safetensors", &file[..])];
        import(&[&saved[..], &[("adapter_config.json", bytes)]].concat());
        let exported = [("adapter_config.json", config.as_bytes()), ("sepal.json", bytes)];
        import(&[&saved[..], &exported, &[("sepal_adapter.safetensors", &file[..])]].concat());
    }
}

/// The tensors of an adapter beside a configuration of each method. An input that begins with a brace is their header.
pub(crate) fn weights(bytes: &[u8]) {
    let file = if bytes.first() == Some(&b'{') { file_of_header(bytes) } else { bytes.to_vec() };
    for (config, _) in methods() {
        let config = config.to_string();
        import(&[("adapter_config.json", config.as_bytes()), ("adapter_model.safetensors", &file[..])]);
    }
}

/// Imports a folder with these files for a small Llama. Errors are answers.
fn import(files: &[(&str, &[u8])]) {
    let (config, tensors) = (model_config(), file_of_header(&model_header()));
    let model = [("config.json", &config[..]), ("model.safetensors", &tensors[..])];
    with_files(&[&model[..], files].concat(), |folder| {
        let Ok(checkpoint) = Checkpoint::open(folder) else { return };
        let options = ImportOptions { model_folder: Some(folder.to_owned()), ..ImportOptions::default() };
        match Import::open(&options, Some(&checkpoint), folder, &folder.join("adapter")) {
            Ok(import) => {
                let _ = (import.description(), import.prefix_len(), import.labels().len(), import.notices().len());
                let _ = (import.modes().len(), import.run().is_some(), import.multi_label());
            }
            Err(error) => {
                let _ = sepal_core::in_one_line(&error);
            }
        }
    });
}

fn tensors(header: &Value) -> Vec<u8> {
    file_of_header(header.to_string().as_bytes())
}

/// Configuration of each method, with the header of its tensors.
fn methods() -> [(Value, Value); 4] {
    let base = "base_model.model.model.layers.0.self_attn";
    let (a, b) = (format!("{base}.q_proj.lora_A.weight"), format!("{base}.q_proj.lora_B.weight"));
    let (factors, score) = (format!("{base}.k_proj.ia3_l"), "base_model.model.score.weight");
    let (prompts, prompts_score) = ("prompt_embeddings", "base_model.score.weight");
    let (lora_keys, factor_keys) = (json!(["q_proj"]), json!(["k_proj"]));
    let common = |method: &str| json!({"peft_type": method, "task_type": "SEQ_CLS", "base_model_name_or_path": "a/b"});
    let with = |method: &str, more: Value| {
        let mut config = common(method);
        if let (Some(config), Value::Object(more)) = (config.as_object_mut(), more) {
            config.extend(more);
        }
        config
    };
    [
        (
            with("LORA", json!({"r": 1, "lora_alpha": 2, "alpha_pattern": {}, "target_modules": lora_keys})),
            header(&[(a.as_str(), [1, 4]), (b.as_str(), [4, 1]), (score, [2, 4])]),
        ),
        (
            with("IA3", json!({"target_modules": factor_keys, "feedforward_modules": []})),
            header(&[(factors.as_str(), [2, 1]), (score, [2, 4])]),
        ),
        (
            with("PREFIX_TUNING", json!({"num_virtual_tokens": 1, "num_layers": 1})),
            header(&[(prompts, [1, 4]), (prompts_score, [2, 4])]),
        ),
        (
            with("PROMPT_TUNING", json!({"num_virtual_tokens": 1})),
            header(&[(prompts, [1, 4]), (prompts_score, [2, 4])]),
        ),
    ]
}

/// Header of tensors of fp32, one after the other.
fn header(tensors: &[(&str, [usize; 2])]) -> Value {
    let (mut header, mut start) = (serde_json::Map::new(), 0);
    for (name, shape) in tensors {
        let end = start + 4 * shape[0] * shape[1];
        header.insert((*name).to_owned(), json!({"dtype": "F32", "shape": shape, "data_offsets": [start, end]}));
        start = end;
    }
    Value::Object(header)
}

/// Configurations of all methods.
pub(crate) fn config_seeds() -> Vec<Vec<u8>> {
    methods().into_iter().map(|(config, _)| config.to_string().into_bytes()).collect()
}

/// Headers of the tensors of all methods.
pub(crate) fn weight_seeds() -> Vec<Vec<u8>> {
    methods().into_iter().map(|(_, header)| header.to_string().into_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_are_imported() {
        let (model, model_tensors) = (model_config(), file_of_header(&model_header()));
        for (config, header) in methods() {
            let (text, file) = (config.to_string(), tensors(&header));
            let files = [
                ("config.json", &model[..]),
                ("model.safetensors", &model_tensors[..]),
                ("adapter_config.json", text.as_bytes()),
                ("adapter_model.safetensors", &file[..]),
            ];
            with_files(&files, |folder| {
                let checkpoint = Checkpoint::open(folder).expect("a model");
                let out = folder.join("adapter");
                let import = Import::open(&ImportOptions::default(), Some(&checkpoint), folder, &out);
                assert!(import.expect("imported").is_foreign(), "{config}");
            });
        }
    }
}
