//! HTTP gateway to trained classifiers, its models: requests, limits, batches and answers.
//!
//! The crate does not know how predictions are computed. The owner of a [`Classify`] adds a model and calls [`Worker::serve`] on
//! the thread that computes for it, and a thread of the [`Gateway`] serves clients. Each model has its own queue, worker and
//! limits, and may be added, replaced or unloaded while the gateway runs ([`Models`]). Only `cli` uses the crate.
//!
//! Invariants: the rows of a request are answered in order, independent of the batches. Requests of a model take turns row by
//! row, so that a small request does not wait for all of a large one. A request that fails makes no other request fail. A
//! request that has chosen a model is answered by it, also while the model is unloaded or replaced. The page loads no other
//! resources.
//!
//! ```
//! use sepal_gateway::{ClassifierInfo, Answer, Classify, ClassifyError, Gateway, AnswerKind, Options};
//!
//! struct Length;
//!
//! impl Classify for Length {
//!     fn classify(&mut self, texts: &[&str], _: Option<&[&str]>) -> Result<Vec<Answer>, ClassifyError> {
//!         Ok(texts.iter().map(|text| Answer::Value(text.len() as f32)).collect())
//!     }
//! }
//!
//! let (gateway, models) = Gateway::start(Options { listen: ([127, 0, 0, 1], 0).into(), ..Options::default() })?;
//! # let stop = gateway.stopper();
//! # std::thread::spawn(move || stop.stop());
//! let worker = models.add("length".parse()?)?;
//! println!("listening on http://{}/", gateway.addr());
//! worker.serve(ClassifierInfo::new("length", AnswerKind::Value, &["bytes"]), &mut Length, || ())?; // until `Stopper::stop`
//! gateway.finish()?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod abstain;
mod admin;
mod classifier;
mod gateway;
mod metrics;
mod model;
mod models;
mod name;
mod openapi;
mod openapi_models;
mod options;
mod page;
mod predict;
mod problem;
mod queue;
mod request;
mod response;
mod returning;
mod routes;
mod shared;
mod shares;
mod token;
mod worker;

pub use classifier::{Answer, AnswerKind, ClassifierInfo, InvalidRow, RowProblem};
pub use gateway::{Gateway, GatewayError, Stopper};
pub use models::{AddError, LoadRequest, Models};
pub use name::{ModelName, NameError};
pub use options::Options;
pub use token::{Token, TokenError};
pub use worker::{Classify, ClassifyError, Worker, WorkerError};
