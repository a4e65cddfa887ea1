use sepal_core::DType;
use tch::{Kind, TchError, Tensor};

/// Rounds the values of `tensor` to `precision` and keeps them in fp32, because 16-bit products take 30 to 130 times as long
/// on processors without such arithmetic. Differentiable; gradients are rounded in the same way.
pub(crate) fn round(tensor: Tensor, precision: DType) -> Result<Tensor, TchError> {
    let kind = match precision {
        DType::Bf16 => Kind::BFloat16,
        DType::F16 => Kind::Half,
        _ => return Ok(tensor),
    };
    tensor.f_to_kind(kind)?.f_to_kind(Kind::Float)
}

/// Rounds like [`round`] and leaves gradients in fp32, where those of parameters are summed.
pub(crate) fn round_forward(tensor: &Tensor, precision: DType) -> Result<Tensor, TchError> {
    // The difference is exact, and so is the sum.
    let change = tch::no_grad(|| round(tensor.detach(), precision)?.f_sub(tensor))?;
    tensor.f_add(&change)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(tensor: &Tensor) -> Vec<f32> {
        Vec::try_from(tensor.contiguous()).expect("numbers")
    }

    fn check(precision: DType, expected: [f32; 5]) {
        let x = Tensor::from_slice(&[1.0_f32, 1.001, -3.3e-8, 65_519.0, 7.0e4]).set_requires_grad(true);
        let grad = Tensor::from_slice(&[1.001_f32; 5]);
        for rounds_gradient in [true, false] {
            let y = match rounds_gradient {
                true => round(x.shallow_clone(), precision),
                false => round_forward(&x, precision),
            };
            let y = y.expect("rounded");
            assert_eq!((values(&y), y.kind()), (expected.to_vec(), Kind::Float), "{precision:?}");
            let mut x = x.shallow_clone();
            x.zero_grad();
            (y * &grad).sum(Kind::Float).backward();
            let expected_grad = if rounds_gradient { expected[1] } else { 1.001 };
            assert_eq!(values(&x.grad()), [expected_grad; 5], "{precision:?}");
        }
    }

    #[test]
    fn rounding_keeps_fp32_and_rounds_gradients_on_request() {
        check(DType::F32, [1.0, 1.001, -3.3e-8, 65_519.0, 7.0e4]);
        check(DType::Bf16, [1.0, 1.0, -3.306_195e-8, 65_536.0, 70_144.0]);
        check(DType::F16, [1.0, 1.000_976_6, -5.960_464_5e-8, 65_504.0, f32::INFINITY]);
    }
}
