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
    /// Block after block.
    Steady,
    /// Only by chance.
    Varying,
}

impl Rows {
    /// Multiplications from which on oneDNN pays: it is a sixth to a third faster, at 100 in a nanosecond, and takes about
    /// a millisecond to make a kernel for a new number of rows.
    fn worth(self) -> i64 {
        match self {
            Rows::Steady => 1 << 25,
            Rows::Varying => 1 << 31,
        }
    }
}

/// `x [n, in]` times `weight [in, out]`, plus `bias [out]` and plus `sum [n, out]` where they are given. libtorch's
/// autograd does not see it.
///
/// Large products in fp32 go to oneDNN on processors with AVX-512, all others to libtorch's own, which is MKL's: measured
/// on AMD's Zen 4 (docs/performance.md). The last bits depend on that, and on `n`.
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
    let (n, inner) = x.size2()?;
    let (expected, width) = weight.size2()?;
    agree("x", &x.size(), &[n, expected])?;
    bias.map_or(Ok(()), |bias| agree("bias", &bias.size(), &[width]))?;
    sum.map_or(Ok(()), |sum| agree("sum", &sum.size(), &[n, width]))?;
    let all = [Some(x), Some(weight), bias, sum];
    if !pays(n * inner * width, all.into_iter().flatten(), weight, rows) {
        return tch::no_grad(|| portable::linear(x, weight, bias, sum));
    }
    let pointer = |tensor: Option<&Tensor>| tensor.map_or(std::ptr::null(), |tensor| tensor.as_ptr());
    let mut out = std::ptr::null_mut();
    // SAFETY: live tensors, or null where the function allows it; it reports by its text.
    let error = tch::no_grad(|| unsafe {
        sepal_linear(x.as_ptr(), weight.as_ptr(), pointer(bias), pointer(sum), &raw mut out)
    });
    if !error.is_null() {
        return Err(TchError::Torch(take_text(error)));
    }
    // SAFETY: the function made this tensor for us with `new`.
    Ok(unsafe { Tensor::from_ptr(out) })
}

fn agree(what: &str, found: &[i64], expected: &[i64]) -> Result<(), TchError> {
    match found == expected {
        true => Ok(()),
        false => Err(TchError::Shape(format!("{what} of a linear layer is {found:?}, expected {expected:?}"))),
    }
}

/// Whether oneDNN is there, can do it, and is faster.
fn pays<'a>(products: i64, mut all: impl Iterator<Item = &'a Tensor>, weight: &Tensor, rows: Rows) -> bool {
    products >= rows.worth() && all.all(is_plain) && is_dense(weight) && is_there()
}

fn is_plain(tensor: &Tensor) -> bool {
    tensor.device() == Device::Cpu && tensor.kind() == Kind::Float
}

/// Whether a matrix lies in one piece, as it is or turned; oneDNN has slow loops for others.
fn is_dense(matrix: &Tensor) -> bool {
    matrix.is_contiguous() || matrix.tr().is_contiguous()
}

/// Whether oneDNN is there, and the processor one on which it is faster.
fn is_there() -> bool {
    static IS_THERE: OnceLock<bool> = OnceLock::new();
    // SAFETY: it takes nothing and asks libtorch what it has.
    *IS_THERE.get_or_init(|| has_avx512() && unsafe { sepal_linear_there() })
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

    /// Sizes on both sides of where oneDNN pays, weights as they lie, turned and with gaps, the rest in one piece or not.
    #[test]
    fn products_equal_those_in_double() {
        for (n, inner, out) in [(1, 600, 2000), (3, 5, 7), (101, 500, 700), (700, 1024, 64), (0, 4, 4)] {
            let (bias, sum) = (random([out, 2]).select(1, 0), random([n, out + 3]).narrow(1, 2, out));
            let apart = random([n, inner + 3]).narrow(1, 2, inner);
            let gaps = random([inner, out + 3]).narrow(1, 2, out);
            for (x, weight) in [
                (random([n, inner]), random([inner, out])),
                (apart, random([out, inner]).tr()),
                (random([n, inner]), gaps),
            ] {
                let plain = x.to_kind(Kind::Double).mm(&weight.to_kind(Kind::Double));
                for (bias, sum) in [(None, None), (Some(&bias), None), (None, Some(&sum)), (Some(&bias), Some(&sum))] {
                    let expected =
                        [bias, sum].into_iter().flatten().fold(plain.shallow_clone(), |all, term| all + term);
                    let found = linear(&x, &weight, bias, sum, Rows::Steady).expect("a product");
                    assert_eq!(found.size(), [n, out]);
                    if n > 0 {
                        assert_close(&found.to_kind(Kind::Double), &expected);
                    }
                }
            }
        }
    }

    #[test]
    fn large_products_are_onednns() {
        let goes = |tensor: &Tensor, products, rows| pays(products, [tensor].into_iter(), tensor, rows);
        let weight = random([64, 32]);
        for dense in [&weight, &weight.tr()] {
            assert_eq!(goes(dense, 1 << 25, Rows::Steady), has_avx512(), "libtorch's oneDNN is not found");
            assert!(!goes(dense, (1 << 25) - 1, Rows::Steady) && !goes(dense, 1 << 25, Rows::Varying));
        }
        assert!(!goes(&weight.narrow(1, 0, 30), 1 << 25, Rows::Steady));
        assert!(!goes(&weight.to_kind(Kind::Double), 1 << 25, Rows::Steady));
    }

    /// What both caches read when a first product is made.
    #[test]
    fn settings_are_made_before_main() {
        for name in ["ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"] {
            assert_eq!(std::env::var(name).is_ok(), cfg!(target_arch = "x86_64"), "{name}");
        }
    }

    #[test]
    fn autograd_does_not_see_it() {
        for n in [2, 1024] {
            let (x, weight) = (random([n, 512]).set_requires_grad(true), random([512, 512]));
            assert!(!linear(&x, &weight, None, None, Rows::Steady).expect("a product").requires_grad());
        }
    }

    #[test]
    fn wrong_shapes_are_refused() {
        for n in [2, 1024] {
            let (x, weight) = (random([n, 512]), random([512, 512]));
            let wrong = |weight: &Tensor, bias: Option<&Tensor>, sum: Option<&Tensor>| {
                linear(&x, weight, bias, sum, Rows::Steady).expect_err("refused").to_string()
            };
            assert!(wrong(&random([511, 512]), None, None).contains("512], expected"));
            assert!(wrong(&weight, Some(&random([1])), None).contains("bias of a linear layer is [1], expected [512]"));
            assert!(wrong(&weight, None, Some(&random([1, 512]))).contains("sum of a linear layer is [1, 512]"));
        }
    }
}
