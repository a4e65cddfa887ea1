//! Simple inversions of hidden states to tokens, as a curious server could make them.

use sepal_nn::{RowSource, RowsError};
use tch::{Kind, TchError, Tensor};

/// Rows of the embeddings that are compared at once.
const CHUNK: i64 = 8192;
/// Weight of the ridge penalty, relative to the mean variance of the inputs.
const RIDGE: f64 = 1e-2;

/// Returns, for each of the `states` `[n, hidden]`, the token with the nearest embedding, by the angle between them.
pub(super) fn nearest_tokens(states: &Tensor, embeddings: &dyn RowSource) -> Result<Vec<i64>, RowsError> {
    let n_tokens = embeddings.shape().first().copied().unwrap_or(0);
    let states = unit_rows(states)?;
    let mut best: Option<[Tensor; 2]> = None;
    for start in (0..n_tokens).step_by(CHUNK as usize) {
        let ids: Vec<i64> = (start..n_tokens.min(start + CHUNK)).collect();
        let rows = unit_rows(&embeddings.rows(&ids)?)?; // [chunk, hidden]
        let (score, index) = states.f_matmul(&rows.f_tr()?)?.f_max_dim(1, false)?; // [n]
        let token = index.f_add_scalar(start)?;
        best = Some(match best {
            None => [score, token],
            Some([best_score, best_token]) => {
                let is_better = score.f_gt_tensor(&best_score)?;
                [score.f_where_self(&is_better, &best_score)?, token.f_where_self(&is_better, &best_token)?]
            }
        });
    }
    Ok(best.map(|[_, token]| Vec::<i64>::try_from(token)).transpose()?.unwrap_or_default())
}

/// Linear map from hidden states to embeddings, by ridge regression.
#[derive(Debug)]
pub(super) struct LinearMap {
    /// Mean and standard deviation of the states, `[hidden]` each.
    input: [Tensor; 2],
    /// Mean of the embeddings, `[hidden]`.
    output_mean: Tensor,
    /// `[hidden, hidden]`
    weights: Tensor,
}

impl LinearMap {
    /// Fits the map on `states` and the embeddings of their tokens, `[n, hidden]` each, in fp64.
    pub(super) fn fit(states: &Tensor, embeddings: &Tensor) -> Result<Self, TchError> {
        let (states, embeddings) = (states.f_to_kind(Kind::Double)?, embeddings.f_to_kind(Kind::Double)?);
        let (mean, output_mean) = (column_means(&states)?, column_means(&embeddings)?);
        let deviation = states.f_std_dim([0].as_slice(), false, false)?.f_clamp_min(1e-12)?;
        let inputs = states.f_sub(&mean)?.f_div(&deviation)?;
        let n = inputs.size().first().copied().unwrap_or(0) as f64;
        let penalty = Tensor::f_eye(inputs.size()[1], (Kind::Double, inputs.device()))?.f_mul_scalar(RIDGE * n)?;
        let gram = inputs.f_tr()?.f_matmul(&inputs)?.f_add(&penalty)?;
        let cross = inputs.f_tr()?.f_matmul(&embeddings.f_sub(&output_mean)?)?;
        let weights = Tensor::f_linalg_solve(&gram, &cross, true)?;
        Ok(Self { input: [mean, deviation], output_mean, weights })
    }

    /// Returns the estimated embeddings of `states`, `[n, hidden]` in fp32.
    pub(super) fn apply(&self, states: &Tensor) -> Result<Tensor, TchError> {
        let [mean, deviation] = &self.input;
        let inputs = states.f_to_kind(Kind::Double)?.f_sub(mean)?.f_div(deviation)?;
        inputs.f_matmul(&self.weights)?.f_add(&self.output_mean)?.f_to_kind(Kind::Float)
    }
}

fn column_means(matrix: &Tensor) -> Result<Tensor, TchError> {
    matrix.f_mean_dim([0].as_slice(), false, Kind::Double)
}

fn unit_rows(matrix: &Tensor) -> Result<Tensor, TchError> {
    matrix
        .f_div(&matrix.f_square()?.f_sum_dim_intlist([1].as_slice(), true, Kind::Float)?.f_sqrt()?.f_clamp_min(1e-12)?)
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;

    fn embeddings() -> Tensor {
        tch::manual_seed(3);
        // More rows than a chunk.
        Tensor::randn([CHUNK + 10, 16], (Kind::Float, Device::Cpu))
    }

    #[test]
    fn scaled_embeddings_are_their_own_nearest_tokens() {
        let (embeddings, ids) = (embeddings(), [0, 5, CHUNK - 1, CHUNK, CHUNK + 9]);
        let states = embeddings.index_select(0, &Tensor::from_slice(&ids)) * 7.0;
        assert_eq!(nearest_tokens(&states, &embeddings).expect("tokens"), ids);
    }

    #[test]
    fn linear_map_recovers_rotated_embeddings_that_the_nearest_embedding_does_not() {
        let embeddings = embeddings();
        let rotation = Tensor::randn([16, 16], (Kind::Float, Device::Cpu));
        let ids: Vec<i64> = (0..400).collect();
        let rows = embeddings.rows(&ids).expect("rows");
        let states = rows.matmul(&rotation) + 3.0;
        let hits = |states: &Tensor| {
            let found = nearest_tokens(states, &embeddings).expect("tokens");
            found.iter().zip(200..).filter(|(token, id)| **token == *id).count()
        };
        let unseen = states.narrow(0, 200, 200);
        assert!(hits(&unseen) < 20);
        let map = LinearMap::fit(&states.narrow(0, 0, 200), &rows.narrow(0, 0, 200)).expect("a map");
        assert!(hits(&map.apply(&unseen).expect("embeddings")) > 190);
    }
}
