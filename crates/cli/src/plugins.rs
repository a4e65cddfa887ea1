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
