//! Rotary positions: `rope_scaling` and `rope_theta`, or both in `rope_parameters` (transformers 5).

use sepal_core::{Rope, RopeScaling};
use serde_json::{Map, Value};

use crate::error::OpenError;
use crate::family::{FamilySpec, OriginalLength};
use crate::keys::Keys;

const ORIGINAL: &str = "original_max_position_embeddings";
const SHARE: &str = "partial_rotary_factor";

/// The parts of a model that its rotary positions depend on.
pub(crate) struct Rotary<'a> {
    pub(crate) spec: &'a FamilySpec,
    pub(crate) head_dim: usize,
    /// `max_position_embeddings`, if the file has it.
    pub(crate) max_positions: Option<usize>,
}

impl Rotary<'_> {
    /// Longest sequence; the default of the class if the file does not state it.
    fn max_positions(&self) -> usize {
        self.max_positions.unwrap_or(self.spec.defaults.max_positions)
    }
}

/// Reads the positions of all blocks, and the longest sequence on which they do not depend on its length.
///
/// `rope_scaling` hides all of `rope_parameters`, and keys within either hide those beside it.
pub(super) fn read(keys: Keys<'_>, rotary: &Rotary<'_>) -> Result<(Rope, Option<usize>), OpenError> {
    let nothing = Map::new();
    let (scope, map) = stated(keys)?.unwrap_or(("rope_parameters.", &nothing));
    read_map(keys, rotary, scope, map)
}

/// As [`read`], with the keys of `map` as the scaling; `scope` is its key and a dot.
pub(crate) fn read_map(
    keys: Keys<'_>,
    rotary: &Rotary<'_>,
    scope: &str,
    map: &Map<String, Value>,
) -> Result<(Rope, Option<usize>), OpenError> {
    let scaling = keys.inside(scope, map);
    if let Some((kind, _)) = map.iter().find(|(_, value)| value.is_object()) {
        return Err(scaling.unsupported(kind, "the same positions for all blocks"));
    }
    let theta = match scaling.optional_positive("rope_theta")? {
        Some(theta) => theta,
        None => keys.optional_positive(rotary.spec.rotary.theta)?.unwrap_or(rotary.spec.defaults.theta),
    };
    read_scaled(scaling, keys, rotary, theta)
}

/// An object of the configuration: its key with a dot, and its keys.
type Scope<'a> = (&'static str, &'a Map<String, Value>);

/// The scaling of all blocks, if the file has one.
pub(crate) fn stated(keys: Keys<'_>) -> Result<Option<Scope<'_>>, OpenError> {
    let object = |key: &str| Ok(keys.object(key)?.filter(|map| !map.is_empty()));
    Ok(match (object("rope_scaling")?, object("rope_parameters")?) {
        (Some(map), _) => Some(("rope_scaling.", map)),
        (None, Some(map)) => Some(("rope_parameters.", map)),
        (None, None) => None,
    })
}

/// As [`read`], for positions of base `theta` with the given scaling.
pub(crate) fn read_scaled(
    scaling: Keys<'_>,
    keys: Keys<'_>,
    rotary: &Rotary<'_>,
    theta: f64,
) -> Result<(Rope, Option<usize>), OpenError> {
    let dim = rotary_dim(scaling, keys, rotary)?;
    let (scaling, limit) = rope_scaling(scaling, keys, rotary, dim)?;
    Ok((Rope { theta, dim, scaling }, limit))
}

/// Number of rotated dimensions of a head.
fn rotary_dim(scaling: Keys<'_>, keys: Keys<'_>, rotary: &Rotary<'_>) -> Result<usize, OpenError> {
    let head_dim = rotary.head_dim;
    let Some((key, default)) = rotary.spec.rotary.share else {
        for keys in [scaling, keys] {
            if keys.optional_positive(SHARE)?.is_some_and(|share| share != 1.0) {
                return Err(keys.unsupported(SHARE, "1"));
            }
        }
        return Ok(head_dim);
    };
    let (keys, key, share) = match scaling.optional_positive(SHARE)? {
        Some(share) => (scaling, SHARE, share),
        None => (keys, key, keys.optional_positive(key)?.unwrap_or(default)),
    };
    match (head_dim as f64 * share) as usize {
        dim if share <= 1.0 && dim > 0 && dim.is_multiple_of(2) => Ok(dim),
        _ => Err(keys.wrong(key, format!("at most 1, and an even part of a head of {head_dim}"))),
    }
}

/// The scaling and the longest sequence.
fn rope_scaling(
    scaling: Keys<'_>,
    keys: Keys<'_>,
    rotary: &Rotary<'_>,
    dim: usize,
) -> Result<(RopeScaling, Option<usize>), OpenError> {
    let key = if scaling.has("rope_type") { "rope_type" } else { "type" };
    let name = scaling.optional_text(key)?.unwrap_or("default");
    let original = || original(scaling, keys, rotary);
    let found = match (rotary.spec.rotary.is_longrope_only, name) {
        (_, "default") => RopeScaling::Default,
        (true, "longrope" | "su" | "yarn") | (_, "longrope") => {
            let original = original()?;
            if original < 2 {
                return Err(keys.wrong(ORIGINAL, "at least 2"));
            }
            return Ok((longrope(scaling, rotary, dim, original)?, Some(original)));
        }
        (true, _) => return Err(scaling.unsupported(key, "default and longrope")),
        // Up to the maximum the wavelengths are unscaled; beyond it they depend on the sequence's length.
        (_, "dynamic") => return Ok((RopeScaling::Default, Some(rotary.max_positions()))),
        (_, "linear") => RopeScaling::Linear { factor: scaling.positive("factor")? },
        (_, "llama3") => llama3(scaling, original()?)?,
        (_, "yarn") => yarn(scaling, rotary, original()?)?,
        _ => return Err(scaling.unsupported(key, "default, linear, dynamic, llama3, yarn and longrope")),
    };
    Ok((found, rotary.max_positions))
}

/// The length that the positions were trained for.
fn original(scaling: Keys<'_>, keys: Keys<'_>, rotary: &Rotary<'_>) -> Result<usize, OpenError> {
    let beside = match rotary.spec.rotary.original {
        OriginalLength::Within => None,
        OriginalLength::Beside(default) => Some(keys.optional_count(ORIGINAL)?.unwrap_or(default)),
        OriginalLength::BesideOrWithin => keys.optional_count(ORIGINAL)?,
    };
    Ok(beside.or(scaling.optional_count(ORIGINAL)?).unwrap_or_else(|| rotary.max_positions()))
}

fn llama3(scaling: Keys<'_>, original_max_positions: usize) -> Result<RopeScaling, OpenError> {
    let low_freq_factor = scaling.positive("low_freq_factor")?;
    let high_freq_factor = scaling.positive("high_freq_factor")?;
    if high_freq_factor <= low_freq_factor {
        return Err(scaling.wrong("high_freq_factor", format!("more than low_freq_factor, {low_freq_factor}")));
    }
    let factor = scaling.positive("factor")?;
    Ok(RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions })
}

fn yarn(scaling: Keys<'_>, rotary: &Rotary<'_>, original_max_positions: usize) -> Result<RopeScaling, OpenError> {
    // A factor of null stands for the ratio of the longest sequence to the original one.
    let factor = match scaling.optional_positive("factor")? {
        Some(factor) => factor,
        None if scaling.has("factor") => rotary.max_positions() as f64 / original_max_positions as f64,
        None => return Err(scaling.missing("factor")),
    };
    Ok(RopeScaling::Yarn {
        factor,
        beta_fast: nonzero(scaling, "beta_fast")?.unwrap_or(32.0),
        beta_slow: nonzero(scaling, "beta_slow")?.unwrap_or(1.0),
        original_max_positions,
        attention_factor: yarn_factor(scaling, factor)?,
        // `null` stands for false.
        is_untruncated: !scaling.flag_unless_null("truncate", true)?,
    })
}

/// Refuses a ramp of YaRN that is not truncated to whole dimensions.
pub(crate) fn refuse_untruncated(scaling: Keys<'_>) -> Result<(), OpenError> {
    match scaling.flag_unless_null("truncate", true)? {
        true => Ok(()),
        false => Err(scaling.unsupported("truncate", "true")),
    }
}

/// The short factors, which apply to sequences up to `original`.
fn longrope(scaling: Keys<'_>, rotary: &Rotary<'_>, dim: usize, original: usize) -> Result<RopeScaling, OpenError> {
    let numbers = |list: &Vec<Value>| list.iter().map(Value::as_f64).collect::<Option<Vec<f64>>>();
    let factors = scaling.get("short_factor").and_then(Value::as_array).and_then(numbers);
    let expected = || scaling.wrong("short_factor", format!("{} numbers", dim / 2));
    let factors = factors.filter(|factors| factors.len() == dim / 2).ok_or_else(expected)?;
    let stretch = match scaling.optional_positive("factor")? {
        Some(factor) => factor,
        None => rotary.max_positions() as f64 / original as f64,
    };
    let derived = if stretch > 1.0 { (1.0 + stretch.ln() / (original as f64).ln()).sqrt() } else { 1.0 };
    let attention_factor = scaling.optional_positive("attention_factor")?.unwrap_or(derived);
    Ok(RopeScaling::Longrope { factors, attention_factor })
}

/// YaRN's factor of the scores, if it differs from that of the paper.
fn yarn_factor(scaling: Keys<'_>, factor: f64) -> Result<Option<f64>, OpenError> {
    let stated = scaling.optional_positive("attention_factor")?;
    let (mscale, all_dim) = (nonzero(scaling, "mscale")?, nonzero(scaling, "mscale_all_dim")?);
    let scale = |mscale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 };
    Ok(stated.or_else(|| Some(scale(mscale?) / scale(all_dim?))))
}

/// A positive number; `None` for 0.
fn nonzero(keys: Keys<'_>, key: &str) -> Result<Option<f64>, OpenError> {
    match keys.get(key).and_then(Value::as_f64) {
        Some(0.0) => Ok(None),
        _ => keys.optional_positive(key),
    }
}
