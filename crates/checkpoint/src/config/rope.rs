//! Rotary positions: `rope_scaling` and `rope_theta`, or both in `rope_parameters` (transformers 5).

use sepal_core::{Rope, RopeScaling};
use serde_json::{Map, Value};

use crate::error::OpenError;
use crate::keys::Keys;

/// The positions of heads of `head_dim` numbers, of which the share `share` turns if the file does not say, and the
/// longest sequence on which they do not depend on its length.
pub(super) fn read(
    keys: Keys<'_>,
    head_dim: usize,
    max_positions: Option<usize>,
    share: f64,
) -> Result<(Rope, Option<usize>), OpenError> {
    let nested = |key: &str| Ok(keys.object(key)?.filter(|map| !map.is_empty()));
    let nothing = Map::new();
    let scaling = match (nested("rope_scaling")?, nested("rope_parameters")?) {
        (Some(map), _) => keys.inside("rope_scaling.", map),
        (None, Some(map)) => keys.inside("rope_parameters.", map),
        (None, None) => keys.inside("rope_parameters.", &nothing),
    };
    read_from(scaling, keys, head_dim, max_positions, share)
}

/// As [`read`], with the scaling in `scaling`, and what it does not say in `keys`.
pub(super) fn read_from(
    scaling: Keys<'_>,
    keys: Keys<'_>,
    head_dim: usize,
    max_positions: Option<usize>,
    share: f64,
) -> Result<(Rope, Option<usize>), OpenError> {
    let either = |key: &str| {
        scaling.optional_positive(key)?.map_or_else(|| keys.optional_positive(key), |number| Ok(Some(number)))
    };
    let share = either("partial_rotary_factor")?.unwrap_or(share);
    let dim = (head_dim as f64 * share) as usize;
    if share > 1.0 || !dim.is_multiple_of(2) || dim == 0 {
        let expected = format!("at most 1, and an even part of a head of {head_dim}");
        return Err(keys.wrong("partial_rotary_factor", expected));
    }
    let theta = either("rope_theta")?.unwrap_or(10_000.0);
    let (scaling, limit) = rope_scaling(scaling, keys, dim, max_positions)?;
    Ok((Rope { theta, dim, scaling }, limit))
}

/// The scaling, and the longest sequence.
fn rope_scaling(
    scaling: Keys<'_>,
    file: Keys<'_>,
    dim: usize,
    max_positions: Option<usize>,
) -> Result<(RopeScaling, Option<usize>), OpenError> {
    let keys = scaling;
    let key = if keys.has("rope_type") { "rope_type" } else { "type" };
    let stated = || match keys.optional_count("original_max_position_embeddings")? {
        None => file.optional_count("original_max_position_embeddings"),
        stated => Ok(stated),
    };
    let original = || {
        let original = keys.optional_count("original_max_position_embeddings")?.or(max_positions);
        original.ok_or_else(|| keys.missing("original_max_position_embeddings"))
    };
    let scaling = match keys.optional_text(key)?.unwrap_or("default") {
        // Up to the maximum, these are the wavelengths as they are; beyond it they depend on the sequence's length.
        "dynamic" if max_positions.is_some() => RopeScaling::Default,
        "default" => RopeScaling::Default,
        "linear" => RopeScaling::Linear { factor: keys.positive("factor")? },
        "llama3" => {
            let low_freq_factor = keys.positive("low_freq_factor")?;
            let high_freq_factor = keys.positive("high_freq_factor")?;
            if high_freq_factor <= low_freq_factor {
                return Err(keys.wrong("high_freq_factor", format!("more than low_freq_factor, {low_freq_factor}")));
            }
            let (factor, original_max_positions) = (keys.positive("factor")?, original()?);
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions }
        }
        "yarn" if keys.get("truncate").is_some_and(|truncate| truncate != true) => {
            return Err(keys.unsupported("truncate", "true"));
        }
        "yarn" => {
            let factor = keys.positive("factor")?;
            RopeScaling::Yarn {
                factor,
                beta_fast: keys.optional_positive("beta_fast")?.unwrap_or(32.0),
                beta_slow: keys.optional_positive("beta_slow")?.unwrap_or(1.0),
                original_max_positions: original()?,
                attention_factor: yarn_factor(keys, factor)?,
            }
        }
        "longrope" | "su" => {
            let original = stated()?.ok_or_else(|| file.missing("original_max_position_embeddings"))?;
            if original < 2 {
                return Err(file.wrong("original_max_position_embeddings", "at least 2"));
            }
            return Ok((longrope(keys, dim, original, max_positions)?, Some(original)));
        }
        _ => return Err(keys.unsupported(key, "default, linear, dynamic, llama3, yarn and longrope")),
    };
    Ok((scaling, max_positions))
}

/// The short factors, which are for sequences up to `original`.
fn longrope(
    keys: Keys<'_>,
    dim: usize,
    original: usize,
    max_positions: Option<usize>,
) -> Result<RopeScaling, OpenError> {
    let numbers = |list: &Vec<Value>| list.iter().map(Value::as_f64).collect::<Option<Vec<f64>>>();
    let factors = keys.get("short_factor").and_then(Value::as_array).and_then(numbers);
    let expected = || keys.wrong("short_factor", format!("{} numbers", dim / 2));
    let factors = factors.filter(|factors| factors.len() == dim / 2).ok_or_else(expected)?;
    let stretch = match keys.optional_positive("factor")? {
        Some(factor) => factor,
        None => max_positions.unwrap_or(original) as f64 / original as f64,
    };
    let derived = if stretch > 1.0 { (1.0 + stretch.ln() / (original as f64).ln()).sqrt() } else { 1.0 };
    let attention_factor = keys.optional_positive("attention_factor")?.unwrap_or(derived);
    Ok(RopeScaling::Longrope { factors, attention_factor })
}

/// YaRN's factor of the scores, where it is not that of the paper.
fn yarn_factor(keys: Keys<'_>, factor: f64) -> Result<Option<f64>, OpenError> {
    let stated = keys.optional_positive("attention_factor")?;
    let (mscale, all_dim) = (keys.optional_positive("mscale")?, keys.optional_positive("mscale_all_dim")?);
    let scale = |mscale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 };
    Ok(stated.or_else(|| Some(scale(mscale?) / scale(all_dim?))))
}
