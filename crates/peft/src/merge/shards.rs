//! Files of weights: one, or several with an index.

use std::collections::BTreeMap;

use sepal_core::HostTensor;
use sepal_nn::file::{TensorLayout, write_streaming};
use serde_json::{Map, Value, json};

use super::MergeError;
use super::changes::Weight;
use crate::folder::{self, FolderError, Staged};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Writes the weights to files of at most `shard_bytes` bytes, each with at least one tensor. `read` returns the numbers of
/// a weight.
pub(super) fn write(
    staged: &Staged,
    weights: &[Weight],
    shard_bytes: u64,
    read: impl Fn(&Weight) -> Result<HostTensor, MergeError>,
) -> Result<(), MergeError> {
    let shards = cut(weights, shard_bytes);
    let file = |index: usize| match shards.len() {
        1 => SINGLE.to_owned(),
        count => format!("model-{:05}-of-{count:05}.safetensors", index + 1),
    };
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    let mut weight_map = Map::new();
    for (index, shard) in shards.iter().enumerate() {
        let layouts: Vec<TensorLayout> = shard.iter().map(|weight| weight.layout.clone()).collect();
        weight_map.extend(layouts.iter().map(|layout| (layout.name.clone(), Value::from(file(index)))));
        let mut remaining = shard.iter();
        write_streaming(&staged.path().join(file(index)), &layouts, &metadata, |layout| match remaining.next() {
            Some(weight) => Ok(read(weight)?),
            None => Err(format!("`{}` is missing", layout.name).into()),
        })
        .map_err(FolderError::from)?;
    }
    if shards.len() > 1 {
        let total: u64 = weights.iter().map(size).sum();
        let index = json!({ "metadata": { "total_size": total }, "weight_map": weight_map });
        staged.write(INDEX, &folder::json(&index)?)?;
    }
    Ok(())
}

fn size(weight: &Weight) -> u64 {
    weight.layout.n_bytes().unwrap_or(0) as u64
}

/// Divides the weights, in order, into as few files as their sizes allow.
fn cut(weights: &[Weight], shard_bytes: u64) -> Vec<&[Weight]> {
    let (mut shards, mut start, mut bytes) = (Vec::new(), 0, 0);
    for (index, weight) in weights.iter().enumerate() {
        if index > start && bytes + size(weight) > shard_bytes {
            shards.push(&weights[start..index]);
            (start, bytes) = (index, 0);
        }
        bytes += size(weight);
    }
    shards.push(&weights[start..]);
    shards
}
