//! Softmax over keys that are computed in parts.

use tch::{Kind, TchError, Tensor};

use crate::attention::sdpa::AttentionPart;

/// Joins attention on two sets of keys: the result is that of one softmax over all of them. Outputs are `[.., dim]` for
/// log-sums `[..]`, or matrices `[n, query heads * dim]` for log-sums `[n, query heads]`.
pub(crate) fn merge(part: AttentionPart, other: &AttentionPart) -> Result<AttentionPart, TchError> {
    let AttentionPart { outputs, log_sums } = part;
    let (kind, shape) = (outputs.kind(), outputs.size());
    let by_query = [&log_sums.size()[..], &[-1]].concat();
    let in_fp32 = |outputs: &Tensor| outputs.f_to_kind(Kind::Float)?.f_view(by_query.as_slice());
    // exp(other) / (exp(log_sums) + exp(other))
    let weights = other.log_sums.f_sub(&log_sums)?.f_sigmoid()?.f_unsqueeze(-1)?;
    let outputs = in_fp32(&outputs)?.f_lerp_tensor_(&in_fp32(&other.outputs)?, &weights)?;
    let outputs = outputs.f_view(shape.as_slice())?.f_to_kind(kind)?;
    Ok(AttentionPart { outputs, log_sums: log_sums.f_logaddexp(&other.log_sums)? })
}

/// Adds a key without a value for each query head, whose score is the logit `sinks [query heads]`, to outputs
/// `[n, q_size]` with log-sums `[n, query heads]`. The backward pass of the other keys needs no change.
pub(crate) fn add_sinks(part: AttentionPart, sinks: &Tensor) -> Result<AttentionPart, TchError> {
    let AttentionPart { outputs, log_sums } = part;
    let weights = log_sums.f_sub(sinks)?.f_sigmoid()?.f_unsqueeze(-1)?; // [n, query heads, 1]
    let by_head = outputs.f_view([log_sums.size()[0], log_sums.size()[1], -1])?;
    let outputs = by_head.f_mul(&weights)?.f_to_kind(outputs.kind())?.f_view_as(&outputs)?;
    Ok(AttentionPart { outputs, log_sums: log_sums.f_logaddexp(sinks)? })
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;

    fn part(scores: &Tensor, values: &Tensor) -> AttentionPart {
        let log_sums = scores.logsumexp([-1], true);
        AttentionPart { outputs: (scores - &log_sums).exp().matmul(values), log_sums: log_sums.squeeze_dim(-1) }
    }

    fn assert_close(found: &Tensor, expected: &Tensor) {
        let off = f64::try_from((found - expected).abs().max()).expect("a number");
        assert!(off < 3e-5, "off by {off}");
    }

    /// Far apart log-sums included: one part then has no weight.
    #[test]
    fn merge_equals_one_softmax() {
        for shift in [0.0, 3.0, -60.0, 60.0] {
            let scores = Tensor::randn([5, 7], (Kind::Float, Device::Cpu));
            let _ = scores.narrow(1, 0, 3).g_add_scalar_(shift);
            let values = Tensor::randn([7, 2], (Kind::Float, Device::Cpu));
            let of_keys = |start, len| part(&scores.narrow(1, start, len), &values.narrow(0, start, len));
            let merged = merge(of_keys(0, 3), &of_keys(3, 4)).expect("attention");
            let expected = part(&scores, &values);
            assert_close(&merged.outputs, &expected.outputs);
            assert_close(&merged.log_sums, &expected.log_sums);
        }
    }

    #[test]
    fn sinks_equal_keys_with_values_of_zero() {
        let scores = Tensor::randn([4, 6], (Kind::Float, Device::Cpu));
        let values = Tensor::randn([6, 3], (Kind::Float, Device::Cpu));
        let sinks = Tensor::from_slice(&[0.5_f32]);
        let expected = part(
            &Tensor::cat(&[scores.shallow_clone(), sinks.expand([4, 1], false)], 1),
            &Tensor::cat(&[values.shallow_clone(), Tensor::zeros([1, 3], (Kind::Float, Device::Cpu))], 0),
        );
        let AttentionPart { outputs, log_sums } = part(&scores, &values);
        let found = AttentionPart { outputs, log_sums: log_sums.unsqueeze(-1) };
        let found = add_sinks(found, &sinks).expect("attention");
        assert_close(&found.outputs, &expected.outputs);
        assert_close(&found.log_sums.squeeze_dim(-1), &expected.log_sums);
    }
}
