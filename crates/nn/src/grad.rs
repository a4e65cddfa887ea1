use tch::{Device, Kind, Tensor};

/// Whether libtorch tracks operations of this thread: not so inside [`tch::no_grad`].
pub fn grad_is_enabled() -> bool {
    // There is no other way to ask: a view of a leaf requires a gradient either way.
    let leaf = Tensor::zeros([1], (Kind::Float, Device::Cpu)).set_requires_grad(true);
    leaf.neg().requires_grad()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_follows_no_grad() {
        assert!(grad_is_enabled());
        tch::no_grad(|| {
            assert!(!grad_is_enabled());
            tch::no_grad(|| assert!(!grad_is_enabled()));
            assert!(!grad_is_enabled());
        });
        assert!(grad_is_enabled());
    }
}
