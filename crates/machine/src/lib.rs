//! This machine: its memory, its GPUs, its libtorch, and the variables that libraries read at the start of a program.
//!
//! This crate reads files of the system and runs `nvidia-smi`. It loads no library, and knows no model and no program of this
//! project.
//!
//! Place in the crate graph: on the ground floor; `server`, `front` and `cli` stand on it.
//!
//! Invariants: nothing here computes or changes a setting; a part that the system does not report is `None`.
//!
//! ```
//! use sepal_machine::HostMemory;
//!
//! if let Some(memory) = HostMemory::read() {
//!     assert!(memory.free <= memory.total);
//! }
//! ```

pub mod environment;
mod gpu;
mod host_memory;
mod libtorch;

pub use gpu::{gpu_free_bytes, nvidia_smi};
pub use host_memory::HostMemory;
pub use libtorch::{CUDA_LIBRARY, Libtorch, Linked};
