use std::path::Path;

use sepal_config::Spec;
use sepal_core::{DType, HostTensor, in_one_line};
use sepal_nn::to_host;
use sepal_plugin::Registry;
use sepal_prepare::ModelFiles;

use crate::error::{AdapterError, AssembleError, ClassifierError};
use crate::frozen_model::{BuiltHead, FrozenModel};

/// Returns the soft prompts `[pre_seq_len, hidden]` that the tuning modes of a run compute from the parameters in
/// `adapter`, for example with an encoder; `None` if they have no prompts. Of the model only the ends are loaded.
///
/// # Errors
/// [`ClassifierError`] if the model has no usable tokenizer or embeddings, or the adapter does not fit.
pub fn trained_prompts(
    spec: &Spec,
    registry: &Registry,
    files: ModelFiles,
    adapter: &Path,
) -> Result<Option<HostTensor>, ClassifierError> {
    let frozen = FrozenModel::new(files)?;
    let mut built = BuiltHead::new(spec, registry, &frozen, true)?;
    let tuning = built.build_tuning(spec, registry, &frozen, true)?;
    built.params.load(adapter).map_err(|error| AdapterError {
        path: adapter.parent().unwrap_or(adapter).to_owned(),
        problem: in_one_line(&error),
    })?;
    let prompts = tch::no_grad(|| tuning.prefix()).map_err(AssembleError::Tuning)?;
    let prompts = prompts.map(|prompts| to_host(&prompts, DType::F32)).transpose();
    Ok(prompts.map_err(|error| AssembleError::Copy(error.into()))?)
}
