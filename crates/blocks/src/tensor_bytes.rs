use tch::Tensor;

/// Memory of the numbers of a tensor, in bytes.
pub(crate) fn tensor_bytes(tensor: &Tensor) -> usize {
    tensor.numel() * tensor.kind().elt_size_in_bytes()
}
