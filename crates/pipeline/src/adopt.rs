//! Adapters that another program trained, as runs.

use std::path::Path;

use sepal_config::Spec;
use sepal_core::in_one_line;
use sepal_plugin::Registry;
use sepal_prepare::ModelFiles;
use sepal_track::{DataFacts, Manifest, Status, Traffic, Versions};

use crate::error::{AdapterError, AssembleError, ClassifierError};
use crate::finish::{LIBTORCH, nearest_words};
use crate::frozen_model::{BuiltHead, FrozenModel};

/// Entry of a manifest for unknown training rows.
const UNKNOWN_ROWS: &str = "not known, another program trained it";

/// Returns the manifest of an adapter that another program trained, as if a run of `spec` had trained it. A folder with both
/// can predict. The adapter must fit the pipeline's task and tuning mode.
///
/// # Errors
/// [`ClassifierError`] if the model has no usable tokenizer or embeddings, or the adapter does not fit.
pub fn adopted(
    spec: &Spec,
    registry: &Registry,
    files: ModelFiles,
    adapter: &Path,
) -> Result<Manifest, ClassifierError> {
    let frozen = FrozenModel::new(files)?;
    let mut built = BuiltHead::new(spec, registry, &frozen, true)?;
    let tuning = built.build_tuning(spec, registry, &frozen, true)?;
    frozen.check_positions(spec.data.max_length, tuning.pre_seq_len())?;
    let BuiltHead { head, mut params, ends } = built;
    params.load(adapter).map_err(|error| AdapterError {
        path: adapter.parent().unwrap_or(adapter).to_owned(),
        problem: in_one_line(&error),
    })?;
    let trainable = params.count() as u64;
    let data = &spec.data.rows;
    Ok(Manifest {
        name: spec.name.clone(),
        status: Status::Finished,
        versions: Versions { sepal: env!("CARGO_PKG_VERSION").to_owned(), libtorch: LIBTORCH.to_owned() },
        seed: spec.train.seed,
        model: frozen.facts(spec),
        data: DataFacts {
            train: UNKNOWN_ROWS.to_owned(),
            validation: "none".to_owned(),
            text: data.text.clone(),
            text_pair: data.text_pair.clone(),
            label: data.label.clone(),
            options: data.options.clone(),
            words: data.words,
            template: data.template.clone(),
            max_length: Some(spec.data.max_length),
            truncation_side: Some(frozen.truncation_side(spec).name().to_owned()),
            long_texts: spec.data.long_texts.description(),
            ..DataFacts::default()
        },
        parameters: sepal_track::ParameterCounts { trainable, total: trainable + frozen.checkpoint.parameter_count() },
        steps: 0,
        skipped_steps: 0,
        scale: None,
        bytes: Traffic::default(),
        started: sepal_track::timestamp(),
        seconds: 0.0,
        train_seconds: 0.0,
        train_tokens: 0,
        metrics: Default::default(),
        adapter_digest: params.digest().map_err(|error| AssembleError::Copy(error.into()))?,
        labels: head.label_names().to_vec(),
        calibration: None,
        best: None,
        ended_early: None,
        resumed_at: Vec::new(),
        servers: Vec::new(),
        nearest_words: nearest_words(&params, &ends, &frozen),
    })
}
