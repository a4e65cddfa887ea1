//! A trained classifier over HTTP: what is asked, how much of it, in which batches, and how the answers look.
//!
//! It does not know how anything is computed: whoever has a [`Classify`] calls [`Desk::serve`] on the thread that shall
//! compute, and a thread of the [`Gateway`] speaks with clients.
//!
//! Invariants: rows of one request are answered in their order, whatever the batches that they go in; requests take
//! turns row by row, so that none waits for all of a larger one; a request that fails in computing fails no other;
//! the page needs nothing from anywhere else.
//!
//! ```
//! use sepal_gateway::{About, Answer, Classify, ClassifyError, Gateway, Kind, Options};
//!
//! struct Length;
//!
//! impl Classify for Length {
//!     fn classify(&mut self, texts: &[&str], _: Option<&[&str]>) -> Result<Vec<Answer>, ClassifyError> {
//!         Ok(texts.iter().map(|text| Answer::Value(text.len() as f32)).collect())
//!     }
//! }
//!
//! let (gateway, desk) = Gateway::start(Options { listen: ([127, 0, 0, 1], 0).into(), ..Options::default() })?;
//! # let stop = gateway.stopper();
//! # std::thread::spawn(move || stop.stop());
//! println!("listening on http://{}/", gateway.addr());
//! desk.serve(About::new("length", Kind::Value, &["bytes"]), &mut Length, || ())?; // until `Stopper::stop`
//! gateway.finish()?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod about;
mod answer;
mod counts;
mod desk;
mod gateway;
mod openapi;
mod options;
mod page;
mod problem;
mod queue;
mod request;
mod routes;
mod shared;
mod token;

pub use about::{About, Answer, Kind};
pub use desk::{Classify, ClassifyError, Desk, DeskError};
pub use gateway::{Gateway, GatewayError, Stopper};
pub use options::Options;
pub use token::{Token, TokenError};
