//! Noise on hidden states that leave this machine.

use rand_distr::{Distribution, StandardNormal};
use tch::{Kind, TchError, Tensor};

/// Returns hidden states, `[n_tokens, hidden]`, with Gaussian noise: its standard deviation is `noise` times the root mean
/// square of each state. The generator is seeded by the operating system, because noise that can be repeated can be removed.
/// The result has no gradient; that of the states is unchanged by the noise.
///
/// # Errors
/// [`TchError`] if the tensor has another shape.
pub fn with_noise(states: &Tensor, noise: f64) -> Result<Tensor, TchError> {
    let states = states.detach();
    let values: Vec<f32> = StandardNormal.sample_iter(&mut rand::rng()).take(states.numel()).collect();
    let scale = states.f_square()?.f_mean_dim([-1].as_slice(), true, Kind::Float)?.f_sqrt()?.f_mul_scalar(noise)?; // [n_tokens, 1]
    let normal = Tensor::f_from_slice(&values)?.f_view_as(&states)?.f_to_device(states.device())?;
    states.f_add(&normal.f_mul(&scale)?)
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;

    #[test]
    fn noise_is_relative_to_each_state_and_new_for_each_call() {
        let states = Tensor::from_slice(&[1.0f32, 10.0]).view([2, 1]).expand([2, 10_000], false);
        let noisy = with_noise(&states, 0.5).expect("states");
        let deviation = (&noisy - &states).std_dim([1].as_slice(), true, false);
        let expected = Tensor::from_slice(&[0.5f32, 5.0]);
        let error = ((deviation / expected) - 1.0).abs().max().double_value(&[]);
        assert!(error < 0.05, "{error}");
        assert_ne!(noisy, with_noise(&states, 0.5).expect("states"));
        let zeros = Tensor::zeros([3, 4], (Kind::Float, Device::Cpu));
        assert_eq!(with_noise(&zeros, 0.5).expect("states"), zeros);
    }
}
