//! HTTP gateway to a trained classifier: requests, limits, batches and answers.
//!
//! The crate does not know how predictions are computed. The owner of a [`Classify`] calls [`Worker::serve`] on the thread that
//! computes, and a thread of the [`Gateway`] serves clients. In the crate graph it depends on no other crate of Sepal, and only
//! `cli` uses it.
//!
//! Invariants: the rows of a request are answered in order, independent of the batches. Requests take turns row by row, so that
//! a small request does not wait for all of a large one. A request that fails makes no other request fail. The page loads no
//! other resources.
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
//! let (gateway, worker) = Gateway::start(Options { listen: ([127, 0, 0, 1], 0).into(), ..Options::default() })?;
//! # let stop = gateway.stopper();
//! # std::thread::spawn(move || stop.stop());
//! println!("listening on http://{}/", gateway.addr());
//! worker.serve(ClassifierInfo::new("length", AnswerKind::Value, &["bytes"]), &mut Length, || ())?; // until `Stopper::stop`
//! gateway.finish()?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod classifier;
mod gateway;
mod metrics;
mod openapi;
mod options;
mod page;
mod problem;
mod queue;
mod request;
mod response;
mod routes;
mod shared;
mod token;
mod worker;

pub use classifier::{Answer, AnswerKind, ClassifierInfo};
pub use gateway::{Gateway, GatewayError, Stopper};
pub use options::Options;
pub use token::{Token, TokenError};
pub use worker::{Classify, ClassifyError, Worker, WorkerError};
