//! The crate's measures against scikit-learn's and SciPy's, and what holds of them for any input.

mod goldens;
mod properties;
