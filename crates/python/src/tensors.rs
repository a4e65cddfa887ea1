//! Tensors of Python as tensors of libtorch, over the same memory, through DLPack capsules.

use std::ffi::CStr;
use std::ptr::NonNull;

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyCapsule;
use sepal_autograd::dlpack::DlPack;
use tch::Tensor;

use crate::failure::exception;

/// Names of a capsule before and after its structure has found an owner, by the protocol of DLPack.
const NAME: &CStr = c"dltensor";
const USED_NAME: &CStr = c"used_dltensor";

/// Returns the tensor of a capsule, which is used up.
pub(crate) fn from_capsule(capsule: &Bound<'_, PyCapsule>) -> PyResult<Tensor> {
    let py = capsule.py();
    let structure = capsule.pointer_checked(Some(NAME))?;
    // SAFETY: a capsule with a valid pointer, and a name that is never freed.
    if unsafe { ffi::PyCapsule_SetName(capsule.as_ptr(), USED_NAME.as_ptr()) } != 0 {
        return Err(PyErr::fetch(py));
    }
    // SAFETY: a capsule of this name holds a `DLManagedTensor`. Its new name says that it is no longer the owner.
    let owner = unsafe { DlPack::from_raw(structure) };
    owner.into_tensor().map_err(|error| exception(py, &format!("failed to take a tensor: {error}")))
}

/// Returns a capsule with the memory of a tensor.
pub(crate) fn to_capsule<'py>(py: Python<'py>, tensor: &Tensor) -> PyResult<Bound<'py, PyCapsule>> {
    let owner =
        DlPack::from_tensor(tensor).map_err(|error| exception(py, &format!("failed to return a tensor: {error}")))?;
    let structure = owner.into_raw();
    // SAFETY: the structure is valid, and the capsule owns it: `free` frees it unless another owner has taken it.
    let capsule = unsafe { PyCapsule::new_with_pointer_and_destructor(py, structure, NAME, Some(free)) };
    if capsule.is_err() {
        // SAFETY: no capsule was made, so the structure has no owner.
        drop(unsafe { DlPack::from_raw(structure) });
    }
    capsule
}

/// Frees the structure of a capsule that was not used.
unsafe extern "C" fn free(capsule: *mut ffi::PyObject) {
    // SAFETY: the interpreter calls this with a live capsule.
    let is_unused = unsafe { ffi::PyCapsule_IsValid(capsule, NAME.as_ptr()) } == 1;
    if is_unused {
        // SAFETY: a valid capsule of this name, so the pointer is that of `to_capsule`.
        let structure = unsafe { ffi::PyCapsule_GetPointer(capsule, NAME.as_ptr()) };
        if let Some(structure) = NonNull::new(structure) {
            // SAFETY: the capsule is the only owner and ends here.
            drop(unsafe { DlPack::from_raw(structure) });
        }
    }
}
