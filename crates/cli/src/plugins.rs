use sepal_plugin::{Head, RegisterError, Registry, Tuning, standard};

/// Returns the registry with the plugins of this repository.
///
/// # Errors
/// [`RegisterError`] if two have the same name.
pub fn plugins() -> Result<Registry, RegisterError> {
    let mut registry = Registry::new();
    standard::register(&mut registry)?;
    // the list
    registry.register::<Head, sepal_causal_lm::CausalLm>()?;
    registry.register::<Head, sepal_multiple_choice::MultipleChoice>()?;
    registry.register::<Head, sepal_sequence_classification::SequenceClassification>()?;
    registry.register::<Head, sepal_token_classification::TokenClassification>()?;
    registry.register::<Head, sepal_verbalizer::Verbalizer>()?;
    registry.register::<Tuning, sepal_deep_ptune::DeepPtune>()?;
    registry.register::<Tuning, sepal_ia3::Ia3>()?;
    registry.register::<Tuning, sepal_lora::Lora>()?;
    registry.register::<Tuning, sepal_p_tuning::PTuning>()?;
    registry.register::<Tuning, sepal_prefix_kv::PrefixKv>()?;
    registry.register::<Tuning, sepal_ptune::Ptune>()?;
    Ok(registry)
}

#[cfg(test)]
mod tests {
    use sepal_front::ENGINE_PLUGINS;
    use sepal_plugin::{Catalog, PluginKind};
    use serde_json::{Value, json};

    use super::*;

    /// All that a catalog says of its plugins, but for those that only the engine knows.
    fn described(catalog: &Catalog) -> Vec<Value> {
        let mut described = Vec::new();
        for kind in PluginKind::ALL {
            for entry in catalog.entries(kind).filter(|entry| !ENGINE_PLUGINS.contains(&entry.name)) {
                let defaults = entry.resolve(entry.example.clone()).expect("an example");
                described.push(json!({
                    "kind": kind.key(),
                    "name": entry.name,
                    "aliases": entry.aliases,
                    "summary": entry.summary,
                    "schema": entry.schema,
                    "example": entry.example,
                    "defaults": defaults,
                }));
            }
        }
        described
    }

    #[test]
    fn front_and_engine_have_the_same_plugins() {
        let engine = plugins().expect("plugins");
        let front = sepal_front::catalog().expect("options");
        let known = described(engine.catalog());
        assert!(known.len() > 20);
        assert_eq!(described(&front), known, "a plugin of one crate belongs to ENGINE_PLUGINS of sepal-front");
    }
}
