//! Logits that are NaN or infinite, and the part of the model that such values come from.

use std::fmt;

use tch::{Kind, TchError, Tensor};

/// First part of the model with NaN or infinite values.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum NonFiniteOrigin {
    /// Trained parameters.
    Parameters {
        /// Name of the parameter in the adapter.
        name: String,
    },
    /// Embeddings of the model, or their rounding.
    Embeddings,
    /// Blocks.
    Blocks {
        /// Description of the blocks.
        description: String,
    },
    /// A server or its inputs; the source of the error names it.
    Servers,
    /// Final norm of the model.
    Norm,
    /// Task head.
    Head,
}

impl fmt::Display for NonFiniteOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const FILES: &str = "check the model's files, or fetch them again";
        match self {
            Self::Parameters { name } => write!(
                f,
                "the trained parameter `{name}` has such values, so this adapter cannot be used; train again with a lower \
                 learning rate"
            ),
            Self::Embeddings => write!(f, "the model's embeddings have such values: {FILES}"),
            Self::Blocks { description } => write!(
                f,
                "the hidden states after {description} have such values: {FILES}; if the precision is f16, try bf16 or f32"
            ),
            Self::Servers => f.write_str(
                "hidden states sent to or received from servers have such values: use other servers or check the files of \
                 their model; if the precision or the wire format is f16, try bf16 or f32",
            ),
            Self::Norm => write!(f, "the hidden states after the model's final norm have such values: {FILES}"),
            Self::Head => f.write_str("the task head computed them from finite hidden states"),
        }
    }
}

pub(crate) fn is_finite(tensor: &Tensor) -> Result<bool, TchError> {
    Ok(i64::try_from(tensor.f_isfinite()?.f_all()?.f_to_kind(Kind::Int64)?)? != 0)
}

/// Rows of `[rows, ..]` with a NaN or infinite value.
pub(crate) fn non_finite_rows(tensor: &Tensor) -> Result<Vec<usize>, TchError> {
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
    fn non_finite_rows_are_found() {
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
