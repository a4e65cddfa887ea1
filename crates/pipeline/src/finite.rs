//! Logits that are NaN or infinite, and the part of the model that they come from.

use std::fmt;

use sepal_remote::RemoteError;
use tch::{Kind, TchError, Tensor};

use crate::error::RunError;
use crate::model::Model;

/// The first part of the model whose numbers are NaN or infinite.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum NonFiniteOrigin {
    /// Something that was trained.
    Parameters {
        /// Its name in the adapter.
        name: String,
    },
    /// The model's embeddings, or the precision that they are rounded to.
    Embeddings,
    /// Blocks.
    Blocks {
        /// The blocks and their servers.
        places: String,
    },
    /// A server, or what it was sent; the error's source says which.
    Servers,
    /// The model's final norm.
    Norm,
    /// The task head.
    Head,
}

impl fmt::Display for NonFiniteOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const FILES: &str = "check the model's files, or fetch them again";
        match self {
            Self::Parameters { name } => write!(
                f,
                "so are numbers of `{name}`, which was trained: this adapter cannot be used; train again with a lower \
                 `optimizer.with.lr`"
            ),
            Self::Embeddings => write!(f, "so are the model's embeddings: {FILES}"),
            Self::Blocks { places } => write!(
                f,
                "so are the hidden states behind {places}: {FILES}, and with `train.precision: f16` try bf16 or f32"
            ),
            Self::Servers => write!(
                f,
                "so are hidden states on the way through the servers: use other servers or check their model's files, and \
                 with f16 in `train.precision` or on the wire try bf16 or f32"
            ),
            Self::Norm => write!(f, "so are the hidden states behind the model's final norm: {FILES}"),
            Self::Head => f.write_str("the task head computed them from finite hidden states"),
        }
    }
}

/// Intermediate results of a forward pass.
pub(crate) struct Trace<'a> {
    /// `[n_tokens, hidden]`
    pub(crate) tokens: &'a Tensor,
    /// Behind the last block: `[rows, hidden]`.
    pub(crate) pooled: &'a Tensor,
    /// Behind the final norm: `[rows, hidden]`.
    pub(crate) normed: &'a Tensor,
    /// `[rows, n_labels]`
    pub(crate) logits: &'a Tensor,
}

impl Model {
    /// Errors if a logit is NaN or infinite, with the rows by their places in the batch.
    pub(crate) fn check_finite(&self, trace: &Trace<'_>) -> Result<(), RunError> {
        let rows = non_finite_rows(trace.logits).map_err(RunError::Torch)?;
        if rows.is_empty() {
            return Ok(());
        }
        let origin = self.origin(trace).map_err(RunError::Torch)?;
        Err(RunError::NonFiniteLogits { split: "given", rows, origin, source: None })
    }

    fn origin(&self, trace: &Trace<'_>) -> Result<NonFiniteOrigin, TchError> {
        if let Some(origin) = self.origin_before_blocks(trace.tokens)? {
            return Ok(origin);
        }
        Ok(match (is_finite(trace.pooled)?, is_finite(trace.normed)?) {
            (false, _) => NonFiniteOrigin::Blocks { places: self.blocks.places() },
            (true, false) => NonFiniteOrigin::Norm,
            (true, true) => NonFiniteOrigin::Head,
        })
    }

    fn origin_before_blocks(&self, tokens: &Tensor) -> Result<Option<NonFiniteOrigin>, TchError> {
        // Prompts may have begun as embeddings.
        if !is_finite(tokens)? {
            return Ok(Some(NonFiniteOrigin::Embeddings));
        }
        for (name, tensor) in self.params.iter() {
            if !is_finite(tensor)? {
                return Ok(Some(NonFiniteOrigin::Parameters { name: name.to_owned() }));
            }
        }
        Ok(None)
    }

    /// The error of a prediction of `rows` rows whose blocks failed. Servers are looked at by the client, which gives up a batch
    /// for a single number.
    pub(crate) fn blocks_failed(&self, error: RunError, tokens: &Tensor, rows: usize) -> RunError {
        match error {
            RunError::Remote(source @ (RemoteError::NonFinite { .. } | RemoteError::NonFiniteInput { .. })) => {
                let before = self.origin_before_blocks(tokens).ok().flatten();
                let origin = before.unwrap_or(NonFiniteOrigin::Servers);
                RunError::NonFiniteLogits {
                    split: "given",
                    rows: (0..rows).collect(),
                    origin,
                    source: Some(Box::new(source)),
                }
            }
            other => other,
        }
    }
}

fn is_finite(tensor: &Tensor) -> Result<bool, TchError> {
    Ok(i64::try_from(tensor.f_isfinite()?.f_all()?.f_to_kind(Kind::Int64)?)? != 0)
}

/// The rows of `[rows, ..]` with a number that is NaN or infinite.
fn non_finite_rows(tensor: &Tensor) -> Result<Vec<usize>, TchError> {
    if is_finite(tensor)? {
        return Ok(Vec::new());
    }
    let rows = tensor.size().first().copied().unwrap_or(0);
    let are_finite = tensor.f_isfinite()?.f_view([rows, -1])?.f_all_dim(1, false)?.f_to_kind(Kind::Int64)?; // [rows]
    let are_finite = Vec::<i64>::try_from(are_finite)?;
    Ok((0..are_finite.len()).filter(|&row| are_finite[row] == 0).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_with_any_nan_or_infinity_are_found() {
        let inf = f32::INFINITY;
        let check = |numbers: &[f32], expected: &[usize]| {
            let found = non_finite_rows(&Tensor::from_slice(numbers).view([-1, 2])).expect("looked at");
            assert_eq!(found, expected, "{numbers:?}");
        };
        check(&[0.0, 1.0, 2.0, f32::MAX], &[]);
        check(&[0.0, f32::NAN, 2.0, 3.0, inf, 1.0, 0.0, -inf], &[0, 2, 3]);
        check(&[f32::NAN, f32::NAN], &[0]);
    }
}
