//! Products of hidden states and frozen weights, by whichever of libtorch's two libraries is faster.

use std::ffi::c_char;
use std::sync::OnceLock;

use tch::{Device, Kind, TchError, Tensor};
use torch_sys::C_tensor;

use crate::{portable, take_text};

// SAFETY: these are the functions of linear.cpp, with the same signatures.
unsafe extern "C" {
    fn sepal_linear_there() -> bool;
    fn sepal_linear(
        x: *const C_tensor,
        weight: *const C_tensor,
        bias: *const C_tensor,
        sum: *const C_tensor,
        out: *mut *mut C_tensor,
    ) -> *mut c_char;
}

/// Whether products with as many rows come again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rows {
    /// In the next block.
    Steady,
    /// Only by chance.
    Varying,
}

impl Rows {
    /// Multiplications from which on a kernel pays that is made for this number of rows, in half a millisecond to two.
    fn worth(self) -> i64 {
        match self {
            Rows::Steady => 1 << 20,
            Rows::Varying => 1 << 31,
        }
    }
}

/// `x [n, in]` times `weight [in, out]`, plus `bias [out]` and plus `sum [n, out]` where they are given. libtorch's
/// autograd does not see it.
///
/// fp32 on a processor with AVX-512 goes to oneDNN, all else to libtorch's own product: see docs/performance.md. The
/// last bits depend on that, and on `n`.
///
/// # Errors
/// [`TchError`] if shapes do not agree.
pub fn linear(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    sum: Option<&Tensor>,
    rows: Rows,
) -> Result<Tensor, TchError> {
    if !pays(x, weight, rows) {
        return portable::linear(x, weight, bias, sum);
    }
    let pointer = |tensor: Option<&Tensor>| tensor.map_or(std::ptr::null(), |tensor| tensor.as_ptr());
    let mut out = std::ptr::null_mut();
    // SAFETY: live tensors, or null where the function allows it; it checks their shapes and reports by its text.
    let error = unsafe { sepal_linear(x.as_ptr(), weight.as_ptr(), pointer(bias), pointer(sum), &raw mut out) };
    if !error.is_null() {
        return Err(TchError::Torch(take_text(error)));
    }
    // SAFETY: the function made this tensor for us with `new`.
    Ok(unsafe { Tensor::from_ptr(out) })
}

/// Whether oneDNN is there and faster. For one row libtorch has a kernel of its own.
fn pays(x: &Tensor, weight: &Tensor, rows: Rows) -> bool {
    static IS_THERE: OnceLock<bool> = OnceLock::new();
    let (Ok((n, inner)), Ok((_, out))) = (x.size2(), weight.size2()) else { return false };
    let is_plain = |tensor: &Tensor| tensor.device() == Device::Cpu && tensor.kind() == Kind::Float;
    n > 1
        && n.saturating_mul(inner).saturating_mul(out) >= rows.worth()
        && is_plain(x)
        && is_plain(weight)
        // SAFETY: it takes nothing and asks libtorch what it has.
        && *IS_THERE.get_or_init(|| has_avx512() && unsafe { sepal_linear_there() })
}

#[cfg(target_arch = "x86_64")]
fn has_avx512() -> bool {
    std::arch::is_x86_feature_detected!("avx512bw") && std::arch::is_x86_feature_detected!("avx512vl")
}

#[cfg(not(target_arch = "x86_64"))]
fn has_avx512() -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random<const N: usize>(shape: [i64; N]) -> Tensor {
        Tensor::randn(shape, (Kind::Float, Device::Cpu))
    }

    fn assert_close(found: &Tensor, expected: &Tensor) {
        let off = f64::try_from((found - expected).abs().max() / expected.abs().max()).expect("a number");
        assert!(off < 1e-5, "off by {off}");
    }

    /// Sizes on both sides of where oneDNN pays, weights as they lie and turned, inputs that lie apart.
    #[test]
    fn products_equal_those_in_double() {
        for (n, inner, out) in [(1, 600, 2000), (3, 5, 7), (33, 300, 200), (17, 1024, 64), (0, 4, 4)] {
            let (bias, sum) = (random([out]), random([n, out]));
            let apart = random([n, inner + 3]).narrow(1, 2, inner);
            for (x, weight) in [(random([n, inner]), random([inner, out])), (apart, random([out, inner]).tr())] {
                let plain = x.to_kind(Kind::Double).mm(&weight.to_kind(Kind::Double));
                for (bias, sum) in [(None, None), (Some(&bias), None), (None, Some(&sum)), (Some(&bias), Some(&sum))] {
                    let expected =
                        [bias, sum].into_iter().flatten().fold(plain.shallow_clone(), |all, term| all + term);
                    for rows in [Rows::Steady, Rows::Varying] {
                        let found = linear(&x, &weight, bias, sum, rows).expect("a product");
                        assert_eq!(found.size(), [n, out]);
                        if n > 0 {
                            assert_close(&found.to_kind(Kind::Double), &expected);
                        }
                    }
                }
            }
        }
    }

    /// Settings that both caches read when they are first used.
    #[test]
    fn few_kernels_are_kept() {
        for name in ["ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"] {
            let kept: usize = std::env::var(name).expect("set before main").parse().expect("a number");
            assert!(kept < 1024, "{name} is {kept}");
        }
    }

    #[test]
    fn wrong_shapes_are_refused() {
        for (n, inner) in [(2, 3), (64, 300)] {
            let (x, weight) = (random([n, inner]), random([inner + 1, 300]));
            assert!(linear(&x, &weight, None, None, Rows::Steady).is_err());
            let weight = random([inner, 300]);
            assert!(linear(&x, &weight, Some(&random([299])), None, Rows::Steady).is_err());
            assert!(linear(&x, &weight, None, Some(&random([n + 1, 300])), Rows::Steady).is_err());
        }
    }
}
