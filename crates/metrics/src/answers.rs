//! Measures of a language model on given answers, token by token.
//!
//! All of them are computed with the right tokens before each position. If every token of an answer is the most probable
//! one, greedy decoding gives exactly this answer.

use crate::{MetricError, check_lengths};

/// Perplexity: e to the mean of the negative log-probability of all tokens. `log_probabilities` are natural logarithms,
/// `[rows][tokens]`.
///
/// # Errors
/// [`MetricError::Empty`] without tokens, [`MetricError::NotFinite`] for a log-probability that is NaN or infinite.
pub fn perplexity(log_probabilities: &[Vec<f64>]) -> Result<f64, MetricError> {
    if let Some(row) = log_probabilities.iter().position(|row| !row.iter().all(|number| number.is_finite())) {
        return Err(MetricError::NotFinite { row });
    }
    let n_tokens: usize = log_probabilities.iter().map(Vec::len).sum();
    if n_tokens == 0 {
        return Err(MetricError::Empty);
    }
    let total: f64 = log_probabilities.iter().flatten().sum();
    Ok((-total / n_tokens as f64).exp())
}

/// Share of tokens that are the most probable ones. Both are numbers of tokens, `[rows]`.
///
/// # Errors
/// [`MetricError`] if the lengths differ, or there are no tokens.
pub fn token_accuracy(right: &[usize], lengths: &[usize]) -> Result<f64, MetricError> {
    check_lengths(right.len(), lengths.len())?;
    match lengths.iter().sum::<usize>() {
        0 => Err(MetricError::Empty),
        n_tokens => Ok(right.iter().sum::<usize>() as f64 / n_tokens as f64),
    }
}

/// Share of rows all of whose tokens are the most probable ones. Both are numbers of tokens, `[rows]`.
///
/// # Errors
/// [`MetricError`] if the lengths differ, or there are no rows.
pub fn exact_match(right: &[usize], lengths: &[usize]) -> Result<f64, MetricError> {
    check_lengths(right.len(), lengths.len())?;
    let exact = right.iter().zip(lengths).filter(|(right, length)| right == length).count();
    Ok(exact as f64 / lengths.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn perplexity_weights_tokens_equally() {
        let (half, quarter) = (0.5_f64.ln(), 0.25_f64.ln());
        let found = perplexity(&[vec![half, quarter, quarter], vec![half]]).expect("tokens");
        assert!((found - 2.0_f64.powf(1.5)).abs() < 1e-12, "{found}");
        assert_eq!(perplexity(&[vec![], vec![]]), Err(MetricError::Empty));
        assert_eq!(perplexity(&[vec![half], vec![f64::NEG_INFINITY]]), Err(MetricError::NotFinite { row: 1 }));
    }

    #[test]
    fn accuracy_counts_tokens_and_exact_match_rows() {
        assert_eq!(token_accuracy(&[1, 2], &[2, 2]), Ok(0.75));
        assert_eq!(exact_match(&[1, 2], &[2, 2]), Ok(0.5));
        assert_eq!(token_accuracy(&[0], &[0]), Err(MetricError::Empty));
        assert_eq!(exact_match(&[], &[]), Err(MetricError::Empty));
        assert_eq!(exact_match(&[1], &[1, 1]), Err(MetricError::Lengths { predicted: 1, actual: 2 }));
    }
}
