use tch::{Device, Kind, Tensor};

/// Returns true if libtorch records operations of this thread, that is outside of [`tch::no_grad`].
pub fn grad_is_enabled() -> bool {
    // libtorch has no query in tch: a view of a leaf requires a gradient in either mode.
    let leaf = Tensor::zeros([1], (Kind::Float, Device::Cpu)).set_requires_grad(true);
    leaf.neg().requires_grad()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grad_is_enabled_follows_no_grad() {
        assert!(grad_is_enabled());
        tch::no_grad(|| {
            assert!(!grad_is_enabled());
            tch::no_grad(|| assert!(!grad_is_enabled()));
            assert!(!grad_is_enabled());
        });
        assert!(grad_is_enabled());
    }
}
