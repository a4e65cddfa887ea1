//! Store of named trainable parameters, with their initialisation, and saving and loading.
//!
//! Limits: this crate knows neither models nor servers nor optimizers, and does not choose what trains. In the crate
//! graph it stands above `core` and `autograd` (libtorch), and `optim`, `plugin`, `peft` and `pipeline` use it.
//!
//! Invariants: a parameter is an fp32 leaf on the CPU that requires grad and shares its numbers only with the clones
//! that [`Parameters::add`] and [`Parameters::subset`] return; names are unique and keep their order; files are written atomically, and equal
//! content gives equal bytes.
//!
//! ```
//! use std::collections::BTreeMap;
//!
//! use sepal_nn::{Parameters, init};
//!
//! let mut parameters = Parameters::new();
//! let mut rng = init::rng(42, "score.weight");
//! let weight = parameters.add("score.weight", &init::normal(&[2, 8], 0.02, &mut rng)?)?; // [n_labels, hidden]
//! weight.square().f_sum(tch::Kind::Float)?.f_backward()?;
//! assert_eq!(parameters.count(), 16);
//!
//! let folder = tempfile::tempdir()?;
//! let path = folder.path().join("adapter.safetensors");
//! parameters.save(&path, &BTreeMap::new())?;
//! let before = parameters.digest()?;
//! parameters.load(&path)?;
//! assert_eq!(parameters.digest()?, before);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod file;
mod grad;
pub mod host;
pub mod init;
mod nearest_words;
mod params;
mod row_source;
mod tunable;

pub use grad::grad_is_enabled;
pub use host::{HostError, from_host, share_from_host, share_to_host, to_host};
pub use nearest_words::nearest_words;
pub use params::{AddError, LoadError, Parameters, SaveError};
pub use row_source::{RowSource, RowsError};
pub use tunable::Tunable;
