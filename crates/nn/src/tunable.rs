use tch::Tensor;

/// Trainable tensor that is injected into consecutive blocks.
#[derive(Debug)]
pub struct Tunable {
    /// Name, see [`TunableName`](sepal_core::TunableName).
    pub name: String,
    /// Index of the first block in the model.
    pub first_block: usize,
    /// `[blocks, ..]`, stacked by block.
    pub tensor: Tensor,
}

impl Tunable {
    /// Returns a tunable of all blocks from the model's first.
    pub fn new(name: impl Into<String>, tensor: Tensor) -> Self {
        Self { name: name.into(), first_block: 0, tensor }
    }

    /// Returns a tunable with the same memory and graph.
    #[must_use]
    pub fn shallow_clone(&self) -> Self {
        Self { name: self.name.clone(), first_block: self.first_block, tensor: self.tensor.shallow_clone() }
    }
}
