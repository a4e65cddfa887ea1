//! Text models inside of multimodal checkpoints: their configuration is an object of `config.json`, and their tensors have
//! longer names. Tensors of the other parts are left out, so that they are not fetched and do not enter the digest.

use sepal_core::Family;
use serde_json::{Map, Value};

use crate::error::OpenError;
use crate::keys::Keys;

/// The `model_type` of supported multimodal models, and the families of their text models.
pub(crate) const MULTIMODAL: [(&str, Family); 2] = [("gemma3", Family::Gemma3), ("mistral3", Family::Mistral)];

/// Key of the text model's configuration.
const TEXT_CONFIG: &str = "text_config";

/// Prefixes of the names of a text model's tensors, and those in the files of the text model alone.
const PREFIXES: [(&str, &str); 2] = [("model.language_model.", "model."), ("language_model.", "")];

/// The `model_type` of the multimodal model with this configuration, and the family of its text model; `None` for others.
pub(crate) fn multimodal_type(json: &Map<String, Value>) -> Option<(&'static str, Family)> {
    let model_type = json.get("model_type")?.as_str()?;
    MULTIMODAL.into_iter().find(|(name, _)| *name == model_type)
}

/// The configuration of the text model, of the given family, within that of a multimodal model.
pub(crate) fn text_keys<'a>(keys: Keys<'a>, family: Family) -> Result<Keys<'a>, OpenError> {
    let map = keys.object(TEXT_CONFIG)?.ok_or_else(|| keys.missing(TEXT_CONFIG))?;
    let text = keys.inside("text_config.", map);
    match text.optional_text("model_type")? {
        Some(other) if other != family.name() => Err(text.unsupported("model_type", family.name())),
        _ => Ok(text),
    }
}

/// The configuration of the text model, which of a model that has only text is all of it.
pub(crate) fn text_json(mut json: Map<String, Value>) -> Map<String, Value> {
    if multimodal_type(&json).is_none() {
        return json;
    }
    match json.remove(TEXT_CONFIG) {
        Some(Value::Object(text)) => text,
        _ => json,
    }
}

/// Name of a multimodal model's tensor in the files of the text model alone; `None` for tensors of other parts.
pub(crate) fn text_name(name: &str) -> Option<String> {
    let renamed = |(prefix, text): (&str, &str)| Some(format!("{text}{}", name.strip_prefix(prefix)?));
    let is_output = name.starts_with("lm_head.");
    PREFIXES.into_iter().find_map(renamed).or_else(|| is_output.then(|| name.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_tensors_have_the_names_of_the_text_model() {
        for (name, text) in [
            ("language_model.model.layers.3.mlp.up_proj.weight", Some("model.layers.3.mlp.up_proj.weight")),
            ("model.language_model.layers.3.mlp.up_proj.weight", Some("model.layers.3.mlp.up_proj.weight")),
            ("language_model.layers.3.mlp.up_proj.weight", Some("layers.3.mlp.up_proj.weight")),
            ("language_model.model.norm.weight", Some("model.norm.weight")),
            ("language_model.lm_head.weight", Some("lm_head.weight")),
            ("lm_head.weight", Some("lm_head.weight")),
            ("vision_tower.vision_model.encoder.layers.0.layer_norm1.bias", None),
            ("model.vision_tower.encoder.layers.0.layer_norm1.bias", None),
            ("multi_modal_projector.mm_input_projection_weight", None),
            ("model.multi_modal_projector.norm.weight", None),
        ] {
            assert_eq!(text_name(name).as_deref(), text, "{name}");
        }
    }
}
