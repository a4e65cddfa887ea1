use sepal_plugin::{Head, RegisterError, Registry, Tuning, standard};

/// Returns the registry with the plugins of this repository.
///
/// # Errors
/// [`RegisterError`] if two have the same name.
pub fn plugins() -> Result<Registry, RegisterError> {
    let mut registry = Registry::new();
    standard::register(&mut registry)?;
    // the list
    registry.register::<Head, sepal_sequence_classification::SequenceClassification>()?;
    registry.register::<Tuning, sepal_deep_ptune::DeepPtune>()?;
    registry.register::<Tuning, sepal_prefix_tuning::PrefixTuning>()?;
    registry.register::<Tuning, sepal_ptune::Ptune>()?;
    Ok(registry)
}
