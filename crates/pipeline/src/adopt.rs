//! Adapters that another program or another run trained: as a run, and as initial values.

use std::path::Path;

use sepal_config::Spec;
use sepal_core::{HostTensor, in_one_line};
use sepal_nn::{Parameters, file, from_host};
use sepal_plugin::{Registry, TuningMode, adapter_file};
use sepal_track::{Bytes, DataFacts, Manifest, Status, Versions};

use crate::error::{AdapterError, AssembleError, ClassifierError};
use crate::finish::{LIBTORCH, nearest_words};
use crate::frozen_model::{BuiltHead, FrozenModel};
use crate::model_files::ModelFiles;
use crate::progress::{Event, Observer};

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
    let mut built = BuiltHead::new(spec, registry, &frozen)?;
    let ends = frozen.load_ends()?;
    let tuning = built.build_tuning(spec, registry, &frozen, ends.embedding_matrix(), true)?;
    frozen.check_positions(spec.data.max_length, tuning.pre_seq_len())?;
    let BuiltHead { head, mut params } = built;
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
            template: data.template.clone(),
            max_length: Some(spec.data.max_length),
            truncation_side: Some(frozen.truncation_side(spec).name().to_owned()),
            ..DataFacts::default()
        },
        parameters: sepal_track::Parameters { trainable, total: trainable + frozen.checkpoint.parameter_count() },
        steps: 0,
        skipped_steps: 0,
        scale: None,
        bytes: Bytes::default(),
        started: sepal_track::now(),
        seconds: 0.0,
        train_seconds: 0.0,
        train_tokens: 0,
        metrics: Default::default(),
        adapter_digest: params.digest().map_err(|error| AssembleError::Copy(error.into()))?,
        labels: head.label_names().to_vec(),
        best: None,
        ended_early: None,
        resumed_at: Vec::new(),
        servers: Vec::new(),
        near_words: nearest_words(&params, &ends, &frozen),
    })
}

/// Initialises the head with that of the adapter that the tuning mode is initialised with, if its labels are the same.
/// `names` are the head's parameters.
pub(crate) fn initialise_head(
    built: &BuiltHead,
    names: &[String],
    tuning: &dyn TuningMode,
    observer: &mut dyn Observer,
) -> Result<(), AssembleError> {
    let Some(adapter) = tuning.starts_as() else { return Ok(()) };
    let path = adapter_file(adapter);
    let contents =
        file::read(&path).map_err(|error| AdapterError { path: path.clone(), problem: in_one_line(&error) })?;
    let notice = match matching_head(&built.params, names, built.head.label_names(), &contents) {
        Ok(head) => {
            for (name, tensor) in head {
                copy(&built.params, name, tensor)?;
            }
            format!("the head starts as that of {}", path.display())
        }
        Err(reason) => format!("the head starts anew: {reason}"),
    };
    observer.event(Event::Notice(&notice));
    Ok(())
}

/// Values of the adapter for each of the head's parameters, or the reason that they do not fit.
fn matching_head<'a>(
    params: &Parameters,
    names: &'a [String],
    labels: &[String],
    adapter: &'a file::Contents,
) -> Result<Vec<(&'a str, &'a HostTensor)>, String> {
    let adapter_labels = adapter.metadata.get("labels").map_or("", String::as_str);
    if adapter_labels.is_empty() {
        return Err("the adapter does not name its labels".to_owned());
    }
    let adapter_labels: Vec<&str> = adapter_labels.split('\n').collect();
    if adapter_labels != labels && !are_placeholders(&adapter_labels, labels.len()) {
        return Err(format!("the adapter's labels are `{}`, not these", adapter_labels.join("`, `")));
    }
    let find = |name: &'a String| {
        let found = adapter.tensors.iter().find(|named| &named.name == name);
        let tensor = &found.ok_or_else(|| format!("the adapter has no `{name}`"))?.tensor;
        let expected = params.get(name).map(tch::Tensor::size).unwrap_or_default();
        let found: Vec<i64> = tensor.shape().iter().map(|&dim| dim as i64).collect();
        match found == expected {
            true => Ok((name.as_str(), tensor)),
            false => Err(format!("`{name}` is {found:?} in the adapter, expected {expected:?}")),
        }
    };
    names.iter().map(find).collect()
}

/// True if these are the names that transformers gives to unnamed labels.
fn are_placeholders(names: &[&str], n_labels: usize) -> bool {
    names.len() == n_labels && names.iter().enumerate().all(|(id, name)| *name == format!("LABEL_{id}"))
}

fn copy(params: &Parameters, name: &str, tensor: &HostTensor) -> Result<(), AssembleError> {
    let values = from_host(tensor).map_err(|error| AssembleError::Copy(error.into()))?;
    let Some(parameter) = params.get(name) else { return Ok(()) };
    tch::no_grad(|| parameter.shallow_clone().f_copy_(&values)).map_err(|error| AssembleError::Copy(error.into()))
}
