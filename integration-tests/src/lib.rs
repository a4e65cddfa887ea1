//! Tests that drive the real binary; see `tests/`.
