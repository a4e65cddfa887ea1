use sepal_nn::Parameters;
use tch::{Kind, TchError, Tensor};

/// Scales all gradients by `min(1, max_norm / (norm + 1e-6))` and returns `norm`, their common L2 norm before scaling,
/// as PyTorch's `clip_grad_norm_`.
///
/// Parameters without a gradient count as zero. A non-finite norm is returned as it is, and the gradients stay
/// untouched, so that the caller can report it.
///
/// # Errors
/// [`TchError`] if libtorch fails.
pub fn clip_grad_norm(params: &Parameters, max_norm: f64) -> Result<f64, TchError> {
    let mut grads = Vec::with_capacity(params.len());
    for (_, param) in params.iter() {
        grads.extend(Some(param.f_grad()?).filter(Tensor::defined));
    }
    let norm = tch::no_grad(|| norm(&grads))?;
    let scale = max_norm / (norm + 1e-6);
    if norm.is_finite() && scale < 1.0 {
        for grad in &mut grads {
            drop(tch::no_grad(|| grad.f_mul_scalar_(scale))?);
        }
    }
    Ok(norm)
}

fn norm(tensors: &[Tensor]) -> Result<f64, TchError> {
    let mut sum = 0.0;
    for tensor in tensors {
        sum += f64::try_from(tensor.f_to_kind(Kind::Double)?.f_square()?.f_sum(Kind::Double)?)?;
    }
    Ok(sum.sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_grads(grads: &[f32]) -> Parameters {
        let mut params = Parameters::new();
        for (idx, &grad) in grads.iter().enumerate() {
            let tensor =
                params.add(format!("p{idx}"), &Tensor::zeros([1], (Kind::Float, tch::Device::Cpu))).expect("new");
            (tensor * f64::from(grad)).backward();
        }
        drop(params.add("untouched", &Tensor::from(1.0_f32)).expect("new"));
        params
    }

    fn grads(params: &Parameters) -> Vec<f64> {
        params.iter().map(|(_, p)| p.grad()).filter(Tensor::defined).map(|g| g.double_value(&[0])).collect()
    }

    #[test]
    fn large_gradients_are_scaled() {
        let params = with_grads(&[3.0, 4.0]);
        assert_eq!(clip_grad_norm(&params, 1.0).expect("a norm"), 5.0);
        let clipped = grads(&params);
        assert!((clipped[0] - 3.0 / 5.000_001).abs() < 1e-7 && (clipped[1] - 4.0 / 5.000_001).abs() < 1e-7);
    }

    #[test]
    fn small_gradients_are_unchanged() {
        let params = with_grads(&[0.3, 0.4]);
        assert!((clip_grad_norm(&params, 1.0).expect("a norm") - 0.5).abs() < 1e-7);
        assert_eq!(grads(&params), [f64::from(0.3_f32), f64::from(0.4_f32)]);
    }

    #[test]
    fn non_finite_norm_is_returned() {
        let params = with_grads(&[f32::NAN, 4.0]);
        assert!(clip_grad_norm(&params, 1.0).expect("a norm").is_nan());
        assert_eq!(grads(&params)[1], 4.0);
        assert_eq!(clip_grad_norm(&with_grads(&[f32::INFINITY]), 1.0).expect("a norm"), f64::INFINITY);
        assert_eq!(clip_grad_norm(&with_grads(&[]), 1.0).expect("a norm"), 0.0);
    }
}
