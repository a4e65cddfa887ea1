//! Comparisons with scikit-learn and SciPy, and properties for any input.

mod goldens;
mod properties;
