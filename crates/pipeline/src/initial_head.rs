//! Initial values of the task head from the adapter of an earlier run.

use sepal_core::{HostTensor, in_one_line, split_labels};
use sepal_nn::{Parameters, file, from_host};
use sepal_plugin::{TaskHead, TuningMode, adapter_file};

use crate::error::{AdapterError, AssembleError};
use crate::progress::{Event, Observer};

/// Initialises the head, whose parameters are `names`, with that of the tuning mode's adapter if the labels are the same.
pub(crate) fn initialise_head(
    head: &dyn TaskHead,
    params: &Parameters,
    names: &[String],
    tuning: &dyn TuningMode,
    observer: &mut dyn Observer,
) -> Result<(), AssembleError> {
    let Some(adapter) = tuning.starts_as().filter(|_| !names.is_empty()) else { return Ok(()) };
    let path = adapter_file(adapter);
    let contents =
        file::read(&path).map_err(|error| AdapterError { path: path.clone(), problem: in_one_line(&error) })?;
    let notice = match matching_head(params, names, head.label_names(), &contents) {
        Ok(values) => {
            for (name, tensor) in values {
                copy(params, name, tensor)?;
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
    let adapter_labels = split_labels(adapter_labels);
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
fn are_placeholders(names: &[String], n_labels: usize) -> bool {
    names.len() == n_labels && names.iter().enumerate().all(|(id, name)| *name == format!("LABEL_{id}"))
}

fn copy(params: &Parameters, name: &str, tensor: &HostTensor) -> Result<(), AssembleError> {
    let values = from_host(tensor).map_err(|error| AssembleError::Copy(error.into()))?;
    let Some(parameter) = params.get(name) else { return Ok(()) };
    tch::no_grad(|| parameter.shallow_clone().f_copy_(&values)).map_err(|error| AssembleError::Copy(error.into()))
}
