use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use sepal_core::{LinearSite, SiteRole};
use serde::de::value::SeqAccessDeserializer;
use serde::de::{Deserializer, SeqAccess, Unexpected, Visitor};
use serde::{Deserialize, Serialize, Serializer};

use crate::OptionError;

/// Linear layers of each block that a tuning mode changes, as in PEFT's `target_modules`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Targets {
    /// All layers that adapters can change.
    AllLinear,
    /// Layers by their full names in the block, or by the part of it after a dot.
    Names(Vec<String>),
}

/// Text that stands for [`Targets::AllLinear`].
const ALL_LINEAR: &str = "all-linear";

impl Targets {
    /// Returns the layers of `sites` that `targets` selects, or without targets those with one of the roles
    /// `default_roles`. At least one is returned.
    ///
    /// # Errors
    /// [`OptionError`] if a name matches no layer, or nothing is selected.
    pub fn select<'a>(
        targets: Option<&Self>,
        default_roles: &[SiteRole],
        sites: &'a [LinearSite],
    ) -> Result<Vec<&'a LinearSite>, OptionError> {
        if let Some(Self::Names(names)) = targets {
            check_names(names, sites)?;
        }
        let is_selected = |site: &&LinearSite| match targets {
            None => default_roles.contains(&site.role),
            Some(Self::AllLinear) => true,
            Some(Self::Names(names)) => names.iter().any(|name| matches(name, &site.name)),
        };
        let selected: Vec<&LinearSite> = sites.iter().filter(is_selected).collect();
        match selected.as_slice() {
            [] if sites.is_empty() => {
                Err(refused("the model has no linear layers that adapters can change".to_owned()))
            }
            [] => Err(refused(format!("name at least one of the layers {}", list(sites)))),
            _ => Ok(selected),
        }
    }
}

/// Returns an error if a name matches no layer.
fn check_names(names: &[String], sites: &[LinearSite]) -> Result<(), OptionError> {
    let unknown = names.iter().find(|name| !sites.iter().any(|site| matches(name, &site.name)));
    match unknown {
        Some(name) if !sites.is_empty() => Err(refused(format!(
            "`{name}` matches no linear layer that adapters can change; there are {}",
            list(sites)
        ))),
        _ => Ok(()),
    }
}

/// True if the name is that of the layer, or its end after a dot.
fn matches(name: &str, site: &str) -> bool {
    site.strip_suffix(name).is_some_and(|before| before.is_empty() || before.ends_with('.'))
}

fn refused(message: String) -> OptionError {
    OptionError { key: "targets", message }
}

fn list(sites: &[LinearSite]) -> String {
    sites.iter().map(|site| site.name.as_str()).collect::<Vec<_>>().join(", ")
}

impl Serialize for Targets {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Targets::AllLinear => serializer.serialize_str(ALL_LINEAR),
            Targets::Names(names) => names.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Targets {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TargetsVisitor)
    }
}

struct TargetsVisitor;

impl<'de> Visitor<'de> for TargetsVisitor {
    type Value = Targets;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{ALL_LINEAR}` or a list of layers")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Targets, E> {
        if text == ALL_LINEAR { Ok(Targets::AllLinear) } else { Err(E::invalid_value(Unexpected::Str(text), &self)) }
    }

    fn visit_seq<A: SeqAccess<'de>>(self, names: A) -> Result<Targets, A::Error> {
        Deserialize::deserialize(SeqAccessDeserializer::new(names)).map(Targets::Names)
    }
}

impl JsonSchema for Targets {
    fn schema_name() -> Cow<'static, str> {
        "Targets".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "anyOf": [
                { "type": "string", "enum": [ALL_LINEAR] },
                { "type": "array", "minItems": 1, "items": { "type": "string", "minLength": 1 } },
            ],
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn sites() -> Vec<LinearSite> {
        [("attn.c_attn", SiteRole::QueryKeyValue), ("attn.c_proj", SiteRole::AttentionOutput)]
            .into_iter()
            .chain([("mlp.c_fc", SiteRole::MlpInput), ("mlp.c_proj", SiteRole::MlpOutput)])
            .map(|(name, role)| LinearSite::new(name, 4, 4, role))
            .collect()
    }

    fn selected(targets: serde_json::Value) -> Result<Vec<String>, String> {
        let targets: Option<Targets> = serde_json::from_value(targets).map_err(|error| error.to_string())?;
        let sites = sites();
        let found = Targets::select(targets.as_ref(), &[SiteRole::QueryKeyValue], &sites);
        let found = found.map_err(|error| error.to_string())?;
        Ok(found.into_iter().map(|site| site.name.clone()).collect())
    }

    #[test]
    fn names_match_whole_layers_and_ends_after_a_dot() {
        let check = |targets, expected: &[&str]| assert_eq!(selected(targets).expect("layers"), expected);
        check(json!(null), &["attn.c_attn"]);
        check(json!(["c_proj"]), &["attn.c_proj", "mlp.c_proj"]);
        check(json!(["mlp.c_proj", "c_attn", "c_attn"]), &["attn.c_attn", "mlp.c_proj"]);
        check(json!("all-linear"), &["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"]);
    }

    #[test]
    fn targets_without_layers_are_refused() {
        let layers = "attn.c_attn, attn.c_proj, mlp.c_fc, mlp.c_proj";
        for (targets, expected) in [
            (
                json!(["c_attn", "w1"]),
                format!("`w1` matches no linear layer that adapters can change; there are {layers}"),
            ),
            (json!(["proj"]), format!("`proj` matches no linear layer that adapters can change; there are {layers}")),
            (json!([]), format!("name at least one of the layers {layers}")),
        ] {
            assert_eq!(selected(targets).expect_err("no layers"), format!("use option `targets`: {expected}"));
        }
        for wrong in [json!("c_attn"), json!(3), json!([1])] {
            assert!(selected(wrong.clone()).is_err(), "{wrong}");
        }
        let error = Targets::select(Some(&Targets::AllLinear), &[], &[]).expect_err("no layers").to_string();
        assert!(error.ends_with("the model has no linear layers that adapters can change"), "{error}");
    }

    #[test]
    fn targets_are_written_as_they_are_read() {
        for written in [json!("all-linear"), json!(["q_proj", "v_proj"])] {
            let targets: Targets = serde_json::from_value(written.clone()).expect("targets");
            assert_eq!(serde_json::to_value(targets).expect("written"), written);
        }
    }
}
