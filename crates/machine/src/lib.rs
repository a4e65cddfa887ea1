//! This machine: its memory, its GPUs, its libtorch, the variables that libraries read at the start of a program, and files that
//! survive a loss of power.
//!
//! This crate reads files of the system, and regular files for others, and runs `nvidia-smi`. It loads no library, and knows no
//! model, no program and no file format of this project.
//!
//! Place in the crate graph: on the ground floor; all crates that write files stand on it.
//!
//! Invariants: nothing here computes or changes a setting; a part that the system does not report is `None`; a file of
//! [`durable`] is complete or absent.
//!
//! ```
//! use sepal_machine::HostMemory;
//!
//! if let Some(memory) = HostMemory::read() {
//!     assert!(memory.free <= memory.total);
//! }
//! ```

mod bounded;
pub mod durable;
pub mod environment;
mod gpu;
mod host_memory;
mod libtorch;
pub mod regular;

pub use bounded::output_within;
pub use gpu::{gpu_free_bytes, nvidia_smi};
pub use host_memory::HostMemory;
pub use libtorch::{CUDA_LIBRARY, Libtorch, Linked};
