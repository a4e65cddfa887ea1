//! Parts of libtorch that only C++ reaches: outside computations as graph nodes, shared memory, fused kernels, oneDNN.
//!
//! - [`attach`] makes an output that was computed elsewhere (on another machine, for example) a differentiable function of
//!   its inputs. The backward pass calls a Rust closure with the gradient of the output, which returns the gradients of the
//!   inputs. Double backward is not supported.
//! - [`fused`] computes element-wise steps of transformer blocks in one pass over memory.
//! - [`linear`] multiplies hidden states and frozen weights, by oneDNN if that is faster.
//! - [`packed`] widens matrices in 16, 8 or fewer bits, [`quantize`] packs them.
//! - [`parallel`] divides work among libtorch's threads.
//! - [`memory`] shares a tensor's memory with [`bytes::Bytes`], in both directions, and keeps the heap small; [`dlpack`]
//!   shares tensors with other libraries.
//!
//! The crate has no knowledge of models, networks or the use of shared memory. Of the other crates, only `python` has `unsafe`
//! code. Of the workspace it uses `core`, for the names of encodings, and it serves `nn`, `blocks`, `remote` and `python`.
//!
//! Invariants: a closure is called at most once and dropped with the graph, called or not. Its error or panic becomes an
//! error of [`tch::Tensor::f_backward`].
//!
//! ```
//! use tch::{Kind, Tensor};
//!
//! // y = x², computed outside of the graph
//! let x = Tensor::from_slice(&[1.0_f32, 2.0, 3.0]).set_requires_grad(true);
//! let y = tch::no_grad(|| &x * &x);
//! let saved = x.detach();
//! let y = sepal_autograd::attach(&[&x], y, move |grad| Ok(vec![Some(grad * &saved * 2.0)]))?;
//!
//! y.sum(Kind::Float).backward();
//! assert_eq!(Vec::<f32>::try_from(x.grad())?, [2.0, 4.0, 6.0]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

/// Declares C++ functions over tensors and numbers, `name(tensors; numbers)`, each as a function that returns the error
/// text as [`TchError`]. The functions check the shapes.
macro_rules! kernels {
    ($($name:ident($($tensor:ident),*; $($number:ident: $type:ty),*);)*) => {$(
        fn $name($($tensor: &tch::Tensor,)* $($number: $type),*) -> Result<(), tch::TchError> {
            // SAFETY: the C++ function of this name, with the same signature.
            unsafe extern "C" {
                fn $name(
                    $($tensor: *const torch_sys::C_tensor,)*
                    $($number: $type),*
                ) -> *mut std::ffi::c_char;
            }
            // SAFETY: live tensors; the function checks their shapes and reports errors as text.
            $crate::check(unsafe { $name($($tensor.as_ptr(),)* $($number),*) })
        }
    )*};
}

pub mod dlpack;
pub mod fused;
pub mod linear;
pub mod memory;
pub mod packed;
pub mod parallel;
mod portable;
pub mod quantize;

use std::ffi::{CStr, c_char, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};

use tch::{TchError, Tensor};
use torch_sys::C_tensor;

/// Error of a backward closure.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Gradients of the inputs, in their order; `None` for an input without one.
pub type Gradients = Vec<Option<Tensor>>;

type Closure = Box<dyn FnOnce(&Tensor) -> Result<Gradients, BoxError> + Send>;

/// Failure to attach an output to the graph.
#[derive(Debug, thiserror::Error)]
#[error("attach an outside computation to the graph: {message}")]
pub struct AttachError {
    message: String,
}

/// Makes `output` a function of `inputs`, with `backward` as its derivative.
///
/// `backward` takes the gradient of `output`, of the same shape, and returns one gradient for each input, of that input's
/// shape. Its values for inputs that need no gradient are ignored. The closure is dropped at once under `no_grad`, or if
/// no input needs a gradient.
///
/// # Errors
/// [`AttachError`] if libtorch fails. `f_backward` returns the errors of `backward`.
pub fn attach(
    inputs: &[&Tensor],
    output: Tensor,
    backward: impl FnOnce(&Tensor) -> Result<Gradients, BoxError> + Send + 'static,
) -> Result<Tensor, AttachError> {
    let closure: Closure = Box::new(backward);
    let state = Box::into_raw(Box::new(Some(closure))).cast();
    let pointers: Vec<*const C_tensor> = inputs.iter().map(|input| input.as_ptr()).collect();
    let (n, mut error) = (pointers.len(), std::ptr::null_mut());
    // SAFETY: the pointers are of live tensors, which the shim only copies. The shim takes over `state` and returns it once,
    // through `drop_closure`.
    let attached = unsafe {
        sepal_autograd_attach(pointers.as_ptr(), n, output.as_ptr(), state, call_closure, drop_closure, &raw mut error)
    };
    if attached.is_null() {
        return Err(AttachError { message: take_text(error) });
    }
    // SAFETY: the shim created this tensor with `new`, and Rust owns it.
    Ok(unsafe { Tensor::from_ptr(attached) })
}

type BackwardFn = extern "C" fn(*mut c_void, *const C_tensor, *mut *mut C_tensor, usize) -> *mut c_char;

// SAFETY: the functions of shim.cpp, with the same signatures.
unsafe extern "C" {
    fn sepal_autograd_attach(
        inputs: *const *const C_tensor,
        n_inputs: usize,
        output: *const C_tensor,
        state: *mut c_void,
        call: BackwardFn,
        drop: extern "C" fn(*mut c_void),
        error: *mut *mut c_char,
    ) -> *mut C_tensor;
    fn sepal_autograd_error(text: *const c_char, length: usize) -> *mut c_char;
    fn sepal_autograd_free(text: *mut c_char);
}

extern "C" fn call_closure(
    state: *mut c_void,
    grad_output: *const C_tensor,
    grads: *mut *mut C_tensor,
    n: usize,
) -> *mut c_char {
    let run = || -> Result<(), BoxError> {
        // SAFETY: `attach` created `state`, and the graph calls a node from one thread at a time.
        let closure =
            unsafe { &mut *state.cast::<Option<Closure>>() }.take().ok_or("the graph was run backward twice")?;
        // SAFETY: the gradient is a live tensor; the clone holds a reference of its own.
        let grad_output = unsafe { Tensor::clone_from_ptr(grad_output.cast_mut()) };
        let input_grads = closure(&grad_output)?;
        if input_grads.len() != n {
            return Err(format!("the backward pass gave {} gradients for {n} inputs", input_grads.len()).into());
        }
        for (i, grad) in input_grads.into_iter().enumerate() {
            if let Some(grad) = grad {
                let mut grad = std::mem::ManuallyDrop::new(grad);
                // SAFETY: `grads` has `n` entries, which the shim deletes.
                unsafe { *grads.add(i) = grad.as_mut_ptr() };
            }
        }
        Ok(())
    };
    let message = match catch_unwind(AssertUnwindSafe(run)) {
        Ok(Ok(())) => return std::ptr::null_mut(),
        Ok(Err(error)) => error.to_string(),
        Err(_) => "the backward pass of an outside computation panicked".to_owned(),
    };
    // SAFETY: the text is valid for its length; the shim copies it.
    unsafe { sepal_autograd_error(message.as_ptr().cast(), message.len()) }
}

extern "C" fn drop_closure(state: *mut c_void) {
    // SAFETY: created by `Box::into_raw` in `attach`; the shim calls this once.
    let closure = unsafe { Box::from_raw(state.cast::<Option<Closure>>()) };
    // A panic must not unwind into C++; one in a destructor is lost either way.
    let _ = catch_unwind(AssertUnwindSafe(move || drop(closure)));
}

/// Turns the error text of a shim into an error; null is success.
fn check(error: *mut c_char) -> Result<(), TchError> {
    if error.is_null() { Ok(()) } else { Err(TchError::Torch(take_text(error))) }
}

fn take_text(text: *mut c_char) -> String {
    if text.is_null() {
        return "unknown error".to_owned();
    }
    // SAFETY: a C string of the shim, freed once, here.
    unsafe {
        let copy = CStr::from_ptr(text).to_string_lossy().into_owned();
        sepal_autograd_free(text);
        copy
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tch::Kind;

    use super::*;

    fn leaf(values: &[f32]) -> Tensor {
        Tensor::from_slice(values).set_requires_grad(true)
    }

    fn numbers(tensor: &Tensor) -> Vec<f32> {
        Vec::try_from(tensor).expect("a vector of f32")
    }

    /// Computes a · b outside of the graph.
    fn product(a: &Tensor, b: &Tensor) -> Tensor {
        let (saved_a, saved_b) = (a.detach(), b.detach());
        let output = tch::no_grad(|| a * b);
        attach(&[a, b], output, move |grad| Ok(vec![Some(grad * &saved_b), Some(grad * &saved_a)])).expect("attached")
    }

    #[test]
    fn attach_agrees_with_the_graph() {
        let (a, b) = (leaf(&[1.0, -2.0]), leaf(&[3.0, 0.5]));
        // Used twice, and with ordinary operations on both sides.
        let y = product(&(&a * 2.0), &b).exp() + product(&a, &b);
        y.sum(Kind::Float).backward();
        let (ga, gb) = (numbers(&a.grad()), numbers(&b.grad()));
        let (c, d) = (leaf(&[1.0, -2.0]), leaf(&[3.0, 0.5]));
        let z = (&c * 2.0 * &d).exp() + &c * &d;
        z.sum(Kind::Float).backward();
        assert_eq!((ga, gb), (numbers(&c.grad()), numbers(&d.grad())));
    }

    #[test]
    fn attach_ignores_inputs_without_gradient() {
        let (a, b) = (leaf(&[1.0]), Tensor::from_slice(&[5.0_f32]));
        let y = attach(&[&a, &b], &b * 2.0, |grad| Ok(vec![Some(grad * 7.0), None])).expect("attached");
        y.backward();
        assert_eq!(numbers(&a.grad()), [7.0]);
        assert!(!b.grad().defined());
    }

    #[test]
    fn attach_errors_and_panics_fail_the_backward_pass() {
        let a = leaf(&[1.0]);
        let y = attach(&[&a], &a * 2.0, |_| Err("server gone".into())).expect("attached");
        let error = y.f_backward().expect_err("the closure failed");
        assert!(error.to_string().contains("server gone"), "{error}");
        let y = attach(&[&a], &a * 2.0, |_| panic!("a bug")).expect("attached");
        let error = y.f_backward().expect_err("the closure panicked");
        assert!(error.to_string().contains("panicked"), "{error}");
        let y = attach(&[&a], &a * 2.0, |_| Ok(vec![])).expect("attached");
        let error = y.f_backward().expect_err("too few gradients");
        assert!(error.to_string().contains("0 gradients for 1 inputs"), "{error}");
    }

    #[test]
    fn attach_drops_the_closure_with_the_graph() {
        struct Counted(Arc<AtomicUsize>);
        impl Drop for Counted {
            fn drop(&mut self) {
                self.0.fetch_add(1, Ordering::SeqCst);
            }
        }
        let dropped = Arc::new(AtomicUsize::new(0));
        let node = |input: &Tensor| {
            let counted = Counted(dropped.clone());
            attach(&[input], input.detach() * 2.0, move |grad| {
                let _captured = &counted;
                Ok(vec![Some(grad * 2.0)])
            })
            .expect("attached")
        };
        let a = leaf(&[1.0]);
        let y = node(&a);
        assert_eq!(dropped.load(Ordering::SeqCst), 0);
        drop(y);
        assert_eq!(dropped.load(Ordering::SeqCst), 1, "dropped without a backward");
        let y = node(&a);
        y.backward();
        drop(y);
        assert_eq!(dropped.load(Ordering::SeqCst), 2, "dropped after a backward");
        let y = tch::no_grad(|| node(&a));
        assert!(!y.requires_grad());
        assert_eq!(dropped.load(Ordering::SeqCst), 3, "dropped at once without gradients");
    }
}
