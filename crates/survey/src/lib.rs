//! Surveys of servers: their descriptions, load and round trips.
//!
//! A survey opens a connection, asks a server of any model to describe itself, and closes the connection. [`bootstrap`] and
//! [`describe`] are the first two calls of every client.
//!
//! This crate trains nothing, sends no tensors and knows neither routes nor libtorch. Place in the crate graph: on `swarm` and
//! `wire`; `remote`, `pipeline` and `front` use it.
//!
//! Invariants: an unreachable server is an answer, not an error of the survey; the answers are in the order of the endpoints.
//!
//! ```
//! use std::time::Duration;
//!
//! use sepal_survey::survey;
//! use sepal_swarm::Endpoint;
//!
//! let nobody = Endpoint::Addr("127.0.0.1:1".parse()?);
//! let servers = survey(&[nobody], Duration::from_secs(5))?;
//! assert!(servers[0].answer.is_err());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod rpc;

use std::io;
use std::time::Duration;

use futures::future::join_all;
use sepal_swarm::Endpoint;
use sepal_wire::ServerInfo;
use tokio::task::LocalSet;
use tokio::time::Instant;

pub use rpc::{SurveyError, bootstrap, describe};

/// Answer of one server to a [`survey`].
#[derive(Debug, Clone)]
pub struct SurveyedServer {
    /// Endpoint of the server.
    pub endpoint: Endpoint,
    /// Description of the server and the duration of an empty call, or the reason why there is no answer.
    pub answer: Result<(ServerInfo, Duration), String>,
}

/// Asks servers of any model, all at once, for their description and load. The answers are in the order of `endpoints`;
/// an answer that takes longer than `timeout` is an error.
///
/// # Errors
/// Error of the system if no runtime can be created. An unreachable server is not an error of the survey.
pub fn survey(endpoints: &[Endpoint], timeout: Duration) -> io::Result<Vec<SurveyedServer>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let answers = endpoints.iter().map(|endpoint| async {
        let answer = tokio::time::timeout(timeout, describe_timed(endpoint)).await;
        let answer = answer.unwrap_or(Err(SurveyError::Timeout(timeout))).map_err(|error| error.to_string());
        SurveyedServer { endpoint: endpoint.clone(), answer }
    });
    Ok(LocalSet::new().block_on(&runtime, join_all(answers)))
}

async fn describe_timed(endpoint: &Endpoint) -> Result<(ServerInfo, Duration), SurveyError> {
    let (root, _, driver) = bootstrap(endpoint.connect().await.map_err(SurveyError::Connect)?);
    // The first call includes the bootstrap; only the second is timed.
    describe(&root).await?;
    let started = Instant::now();
    let info = describe(&root).await?;
    let round_trip = started.elapsed();
    driver.abort();
    Ok((info, round_trip))
}
