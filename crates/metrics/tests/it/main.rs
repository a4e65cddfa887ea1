//! Comparisons with scikit-learn and SciPy, and properties for any input.

mod calibration;
mod goldens;
mod properties;
