//! Factor of the low-rank additions.

use serde_json::{Value, json};

use crate::adapter::LoraShape;
use crate::used_plugin::UsedPlugin;

/// Options of a run from which the factor of its low-rank additions follows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct LoraScaling {
    pub(crate) rank: usize,
    pub(crate) alpha: f64,
    /// True for the factor of rank-stabilized LoRA (arXiv 2312.03732).
    pub(crate) rslora: bool,
}

/// Error of options that do not tell the factor of low-rank additions.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message names the fields")]
#[non_exhaustive]
pub enum LoraOptionsError {
    /// No tuning mode has the option.
    #[error(
        "scale the low-rank additions: the options of the run's tuning mode have no `alpha`, or the run has no pipeline"
    )]
    Missing,
    /// Several tuning modes have the option.
    #[error("scale the low-rank additions: several tuning modes have the option `alpha`: {}", modes.join(", "))]
    Several { modes: Vec<String> },
    /// The option is no positive number.
    #[error("scale the low-rank additions: `alpha` is {found}, expected a positive number")]
    Alpha { found: Value },
    /// The options belong to another adapter.
    #[error("scale the low-rank additions: the options say rank {option}, and the adapter has rank {found}")]
    Rank { option: u64, found: usize },
}

impl LoraScaling {
    /// Reads the options of a run's tuning modes.
    pub(crate) fn of_run(modes: &[UsedPlugin], shape: LoraShape) -> Result<Self, LoraOptionsError> {
        let mut with_alpha = modes.iter().filter(|mode| mode.option("alpha").is_some());
        let mode = with_alpha.next().ok_or(LoraOptionsError::Missing)?;
        let others: Vec<String> = with_alpha.map(|mode| mode.name.clone()).collect();
        if !others.is_empty() {
            let modes = [vec![mode.name.clone()], others].concat();
            return Err(LoraOptionsError::Several { modes });
        }
        if let Some(option) = mode.option("r").and_then(Value::as_u64).filter(|rank| *rank != shape.rank as u64) {
            return Err(LoraOptionsError::Rank { option, found: shape.rank });
        }
        let found = mode.option("alpha").cloned().unwrap_or_default();
        let alpha = found.as_f64().filter(|alpha| alpha.is_finite() && *alpha > 0.0);
        let alpha = alpha.ok_or(LoraOptionsError::Alpha { found })?;
        let rslora = mode.option("rslora").and_then(Value::as_bool).unwrap_or(false);
        Ok(Self { rank: shape.rank, alpha, rslora })
    }

    /// Returns `alpha / rank`, or `alpha / sqrt(rank)` if it is rank-stabilized.
    pub(crate) fn factor(&self) -> f64 {
        let rank = self.rank as f64;
        self.alpha / if self.rslora { rank.sqrt() } else { rank }
    }

    /// Returns `alpha` as JSON, a whole number without a fraction.
    pub(crate) fn alpha_json(&self) -> Value {
        match self.alpha {
            alpha if alpha.fract() == 0.0 && alpha < 1e15 => json!(alpha as u64),
            alpha => json!(alpha),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(name: &str, options: Value) -> UsedPlugin {
        UsedPlugin { name: name.to_owned(), with: options.as_object().expect("an object").clone() }
    }

    fn factor(modes: &[UsedPlugin]) -> Result<f64, String> {
        let scaling = LoraScaling::of_run(modes, LoraShape { rank: 4, n_blocks: 2 });
        scaling.map(|scaling| scaling.factor()).map_err(|error| error.to_string())
    }

    #[test]
    fn factor_follows_from_the_options() {
        assert_eq!(factor(&[mode("lora", json!({ "r": 4, "alpha": 6 }))]), Ok(1.5));
        assert_eq!(factor(&[mode("lora", json!({ "r": 4, "alpha": 6.0, "rslora": true }))]), Ok(3.0));
        assert_eq!(factor(&[mode("ptune", json!({})), mode("lora", json!({ "alpha": 2 }))]), Ok(0.5));
    }

    #[test]
    fn unclear_options_are_refused() {
        let refused = |modes: &[UsedPlugin], expected: &str| {
            let error = factor(modes).expect_err(expected);
            assert!(error.contains(expected), "{error}");
        };
        refused(&[], "have no `alpha`");
        refused(&[mode("lora", json!({ "r": 8, "alpha": 6 }))], "rank 8, and the adapter has rank 4");
        refused(&[mode("lora", json!({ "alpha": 0 }))], "`alpha` is 0, expected a positive number");
        refused(&[mode("a", json!({ "alpha": 1 })), mode("b", json!({ "alpha": 1 }))], "a, b");
    }

    #[test]
    fn whole_alpha_has_no_fraction() {
        let text = |alpha: f64| LoraScaling { rank: 1, alpha, rslora: false }.alpha_json().to_string();
        assert_eq!((text(16.0), text(0.5)), ("16".to_owned(), "0.5".to_owned()));
    }
}
