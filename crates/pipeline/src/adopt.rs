//! Adapters that something else than this pipeline trained: as a run of it, and as the start of one.

use std::path::Path;

use sepal_blocks::Ends;
use sepal_core::{HostTensor, in_one_line};
use sepal_nn::{Parameters, file, from_host};
use sepal_plugin::{Registry, TuningMode, adapter_file};
use sepal_track::{Bytes, DataFacts, Manifest, Status, Versions};

use crate::assemble::{Frozen, build_head, build_tuning};
use crate::error::RunError;
use crate::model_files::ModelFiles;
use crate::progress::{Event, Observer};
use crate::run::{LIBTORCH, near_words};
use crate::spec::Spec;

/// Entry of a manifest for training rows that are not known.
const UNKNOWN_ROWS: &str = "not known, another program trained it";

/// The manifest of an adapter that another program trained, as a run of `spec` on these files leaves one: with both in a
/// folder, it predicts. The adapter is read and must fit the pipeline's task and tuning mode.
///
/// # Errors
/// [`RunError`] if the model has no usable tokenizer or embeddings, or the adapter does not fit.
pub fn adopted(spec: &Spec, registry: &Registry, files: ModelFiles, adapter: &Path) -> Result<Manifest, RunError> {
    let frozen = Frozen::of(files)?;
    let mut params = Parameters::new();
    let head = build_head(spec, registry, &frozen, &mut params)?;
    let ends = Ends::load(&frozen.checkpoint)
        .map_err(|source| RunError::Load { what: "embeddings and final norm", source: source.into() })?;
    let cx = (&*head, ends.embedding_matrix(), true);
    let tuning = build_tuning(spec, registry, &frozen, cx, &mut params)?;
    frozen.check_positions(spec.data.max_length, tuning.pre_seq_len())?;
    params.load(adapter).map_err(|error| RunError::Adapter {
        path: adapter.parent().unwrap_or(adapter).to_owned(),
        problem: in_one_line(&error),
    })?;
    let trainable = params.count() as u64;
    let data = &spec.data;
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
            max_length: Some(data.max_length),
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
        adapter_digest: params.digest().map_err(RunError::Numbers)?,
        labels: head.label_names().to_vec(),
        best: None,
        ended_early: None,
        resumed_at: Vec::new(),
        servers: Vec::new(),
        near_words: near_words(&params, &ends, &frozen),
    })
}

/// Gives the head, whose parameters have these names, the numbers of the adapter that the tuning mode starts as, if its
/// labels are the same; it stays as it is otherwise. The observer is told which.
pub(crate) fn start_head(
    params: &Parameters,
    names: &[String],
    labels: &[String],
    tuning: &dyn TuningMode,
    observer: &mut dyn Observer,
) -> Result<(), RunError> {
    let Some(adapter) = tuning.starts_as() else { return Ok(()) };
    let path = adapter_file(adapter);
    let contents =
        file::read(&path).map_err(|error| RunError::Adapter { path: path.clone(), problem: in_one_line(&error) })?;
    let adapter_labels = contents.metadata.get("labels").map_or("", String::as_str);
    let notice = match fitting_head(params, names, labels, (adapter_labels, &contents)) {
        Ok(head) => {
            for (name, tensor) in head {
                copy(params, name, tensor)?;
            }
            format!("the head starts as that of {}", path.display())
        }
        Err(reason) => format!("the head starts anew: {reason}"),
    };
    observer.event(Event::Notice(&notice));
    Ok(())
}

/// The numbers of each of the head's parameters, or why they do not fit.
fn fitting_head<'a>(
    params: &Parameters,
    names: &'a [String],
    labels: &[String],
    (adapter_labels, contents): (&str, &'a file::Contents),
) -> Result<Vec<(&'a str, &'a HostTensor)>, String> {
    if adapter_labels.is_empty() {
        return Err("the adapter does not name its labels".to_owned());
    }
    let theirs: Vec<&str> = adapter_labels.split('\n').collect();
    if theirs != labels && !are_placeholders(&theirs, labels.len()) {
        return Err(format!("the adapter's labels are `{}`, not these", theirs.join("`, `")));
    }
    let find = |name: &'a String| {
        let found = contents.tensors.iter().find(|named| &named.name == name);
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

/// Returns true if these are the names that transformers gives to unnamed labels.
fn are_placeholders(names: &[&str], n_labels: usize) -> bool {
    names.len() == n_labels && names.iter().enumerate().all(|(id, name)| *name == format!("LABEL_{id}"))
}

fn copy(params: &Parameters, name: &str, tensor: &HostTensor) -> Result<(), RunError> {
    let numbers = from_host(tensor).map_err(RunError::Numbers)?;
    let Some(parameter) = params.get(name) else { return Ok(()) };
    tch::no_grad(|| parameter.shallow_clone().f_copy_(&numbers)).map_err(RunError::Torch)
}
