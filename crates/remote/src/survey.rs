//! What servers say of themselves, whatever model they serve.

use std::io;
use std::time::Duration;

use futures::future::join_all;
use sepal_swarm::Endpoint;
use sepal_wire::ServerInfo;
use tokio::task::LocalSet;
use tokio::time::Instant;

use crate::error::CallError;
use crate::peer::{bootstrap, within};

/// One server's answer.
#[derive(Debug, Clone)]
pub struct SurveyedServer {
    /// Who was asked.
    pub endpoint: Endpoint,
    /// What it said and how long an empty call took, or why there is no answer.
    pub answer: Result<(ServerInfo, Duration), String>,
}

/// Asks servers, all at once, what they are and how busy; in the order given. One that does not answer within
/// `patience` is said to have not.
///
/// # Errors
/// What the system says if no runtime can be had. Servers that cannot be reached are no error.
pub fn survey(endpoints: &[Endpoint], patience: Duration) -> io::Result<Vec<SurveyedServer>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let asked = endpoints.iter().map(|endpoint| async {
        let answer = within(patience, ask(endpoint)).await.map_err(|error| error.to_string());
        SurveyedServer { endpoint: endpoint.clone(), answer }
    });
    Ok(LocalSet::new().block_on(&runtime, join_all(asked)))
}

async fn ask(endpoint: &Endpoint) -> Result<(ServerInfo, Duration), CallError> {
    let (root, _, driver) = bootstrap(endpoint.connect().await.map_err(CallError::Connect)?);
    // The first call waits for the bootstrap, too.
    root.describe_request().send().promise.await?;
    let begun = Instant::now();
    let answer = root.describe_request().send().promise.await?;
    let round_trip = begun.elapsed();
    let info = ServerInfo::read(answer.get()?.get_info()?)?;
    driver.abort();
    Ok((info, round_trip))
}
