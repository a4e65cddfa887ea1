//! Products of hidden states and frozen weights, computed by the faster of libtorch's two libraries.

use std::ffi::c_char;
use std::sync::OnceLock;

use tch::{Device, Kind, TchError, Tensor};
use torch_sys::C_tensor;

use crate::{check, portable};

// SAFETY: these are the functions of linear.cpp, with the same signatures.
unsafe extern "C" {
    fn sepal_linear_is_available() -> bool;
    fn sepal_linear(
        x: *const C_tensor,
        weight: *const C_tensor,
        bias: *const C_tensor,
        sum: *const C_tensor,
        out: *mut *mut C_tensor,
    ) -> *mut c_char;
}

/// Recurrence of the number of rows, which decides if a kernel for that number pays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowCount {
    /// The same number for block after block.
    Repeated,
    /// Another number for each product.
    Varying,
}

impl RowCount {
    /// Number of multiplications from which on oneDNN is faster. It saves a sixth to a third of the time, at 100
    /// multiplications per nanosecond, but needs about a millisecond to build a kernel for a new number of rows.
    fn threshold(self) -> i64 {
        match self {
            RowCount::Repeated => 1 << 25,
            RowCount::Varying => 1 << 31,
        }
    }
}

/// Returns `x [n, in]` times `weight [in, out]`, plus `bias [out]` and `sum [n, out]` if given. libtorch's autograd does
/// not record it.
///
/// oneDNN computes large fp32 products on processors with AVX-512, libtorch's own product (MKL) all others, as measured
/// on AMD's Zen 4 (docs/performance.md). The last bits depend on this choice, and on `n`.
///
/// # Errors
/// [`TchError`] if shapes disagree.
pub fn linear(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    sum: Option<&Tensor>,
    row_count: RowCount,
) -> Result<Tensor, TchError> {
    let (n, inner) = x.size2()?;
    let (expected, width) = weight.size2()?;
    check_shape("x", &x.size(), &[n, expected])?;
    bias.map_or(Ok(()), |bias| check_shape("bias", &bias.size(), &[width]))?;
    sum.map_or(Ok(()), |sum| check_shape("sum", &sum.size(), &[n, width]))?;
    let tensors = [Some(x), Some(weight), bias, sum];
    if !is_faster(n * inner * width, tensors.into_iter().flatten(), weight, row_count) {
        return tch::no_grad(|| portable::linear(x, weight, bias, sum));
    }
    let pointer = |tensor: Option<&Tensor>| tensor.map_or(std::ptr::null(), |tensor| tensor.as_ptr());
    let mut out = std::ptr::null_mut();
    // SAFETY: live tensors, or null where the function allows it; it reports errors as text.
    check(tch::no_grad(|| unsafe {
        sepal_linear(x.as_ptr(), weight.as_ptr(), pointer(bias), pointer(sum), &raw mut out)
    }))?;
    // SAFETY: the function created this tensor with `new`, and Rust owns it.
    Ok(unsafe { Tensor::from_ptr(out) })
}

fn check_shape(name: &str, found: &[i64], expected: &[i64]) -> Result<(), TchError> {
    match found == expected {
        true => Ok(()),
        false => Err(TchError::Shape(format!("{name} of a linear layer is {found:?}, expected {expected:?}"))),
    }
}

/// True if oneDNN is available, supports the tensors, and is faster for this number of multiplications.
fn is_faster<'a>(
    n_products: i64,
    mut tensors: impl Iterator<Item = &'a Tensor>,
    weight: &Tensor,
    row_count: RowCount,
) -> bool {
    n_products >= row_count.threshold() && tensors.all(is_cpu_f32) && is_dense(weight) && is_available()
}

fn is_cpu_f32(tensor: &Tensor) -> bool {
    tensor.device() == Device::Cpu && tensor.kind() == Kind::Float
}

/// True if a matrix or its transpose is contiguous; oneDNN has slow loops for others.
fn is_dense(matrix: &Tensor) -> bool {
    matrix.is_contiguous() || matrix.tr().is_contiguous()
}

/// True if oneDNN is available, and the processor has the instructions with which it is faster.
fn is_available() -> bool {
    static IS_AVAILABLE: OnceLock<bool> = OnceLock::new();
    // SAFETY: the function takes no arguments and only queries libtorch.
    *IS_AVAILABLE.get_or_init(|| has_avx512() && unsafe { sepal_linear_is_available() })
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

    /// Sizes on both sides of the threshold; weights contiguous, transposed and with gaps; other tensors contiguous or not.
    #[test]
    fn linear_equals_products_in_double() {
        for (n, inner, out) in [(1, 600, 2000), (3, 5, 7), (101, 500, 700), (700, 1024, 64), (0, 4, 4)] {
            let (bias, sum) = (random([out, 2]).select(1, 0), random([n, out + 3]).narrow(1, 2, out));
            let strided = random([n, inner + 3]).narrow(1, 2, inner);
            let gaps = random([inner, out + 3]).narrow(1, 2, out);
            for (x, weight) in [
                (random([n, inner]), random([inner, out])),
                (strided, random([out, inner]).tr()),
                (random([n, inner]), gaps),
            ] {
                let product = x.to_kind(Kind::Double).mm(&weight.to_kind(Kind::Double));
                for (bias, sum) in [(None, None), (Some(&bias), None), (None, Some(&sum)), (Some(&bias), Some(&sum))] {
                    let expected =
                        [bias, sum].into_iter().flatten().fold(product.shallow_clone(), |sum, term| sum + term);
                    let found = linear(&x, &weight, bias, sum, RowCount::Repeated).expect("a product");
                    assert_eq!(found.size(), [n, out]);
                    if n > 0 {
                        assert_close(&found.to_kind(Kind::Double), &expected);
                    }
                }
            }
        }
    }

    #[test]
    fn is_faster_for_large_dense_f32_products() {
        let faster =
            |tensor: &Tensor, n_products, row_count| is_faster(n_products, [tensor].into_iter(), tensor, row_count);
        let weight = random([64, 32]);
        for dense in [&weight, &weight.tr()] {
            assert_eq!(faster(dense, 1 << 25, RowCount::Repeated), has_avx512(), "libtorch's oneDNN is not found");
            assert!(!faster(dense, (1 << 25) - 1, RowCount::Repeated) && !faster(dense, 1 << 25, RowCount::Varying));
        }
        assert!(!faster(&weight.narrow(1, 0, 30), 1 << 25, RowCount::Repeated));
        assert!(!faster(&weight.to_kind(Kind::Double), 1 << 25, RowCount::Repeated));
    }

    /// Both caches read these variables at the first product.
    #[test]
    fn cache_capacities_are_set_before_main() {
        for name in ["ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"] {
            assert_eq!(std::env::var(name).is_ok(), cfg!(target_arch = "x86_64"), "{name}");
        }
    }

    #[test]
    fn linear_is_not_recorded_by_autograd() {
        for n in [2, 1024] {
            let (x, weight) = (random([n, 512]).set_requires_grad(true), random([512, 512]));
            assert!(!linear(&x, &weight, None, None, RowCount::Repeated).expect("a product").requires_grad());
        }
    }

    #[test]
    fn linear_with_wrong_shapes_fails() {
        for n in [2, 1024] {
            let (x, weight) = (random([n, 512]), random([512, 512]));
            let error = |weight: &Tensor, bias: Option<&Tensor>, sum: Option<&Tensor>| {
                linear(&x, weight, bias, sum, RowCount::Repeated).expect_err("refused").to_string()
            };
            assert!(error(&random([511, 512]), None, None).contains("512], expected"));
            assert!(error(&weight, Some(&random([1])), None).contains("bias of a linear layer is [1], expected [512]"));
            assert!(error(&weight, None, Some(&random([1, 512]))).contains("sum of a linear layer is [1, 512]"));
        }
    }
}
