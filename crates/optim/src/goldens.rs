//! Reads what PyTorch made.

use std::collections::HashMap;

use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use tch::Tensor;

/// The fp32 tensors of a safetensors file by name.
pub(crate) fn goldens(bytes: &[u8]) -> HashMap<String, Tensor> {
    let file = SafeTensors::deserialize(bytes).expect("goldens");
    let tensor = |view: TensorView<'_>| {
        let numbers: Vec<f32> =
            view.data().chunks_exact(4).map(|four| f32::from_le_bytes(four.try_into().expect("four bytes"))).collect();
        let shape: Vec<i64> = view.shape().iter().map(|&dim| dim as i64).collect();
        Tensor::from_slice(&numbers).view(&shape[..])
    };
    file.tensors().into_iter().map(|(name, view)| (name, tensor(view))).collect()
}
