//! Which server serves which blocks.

use std::time::Duration;

use sepal_config::spec::{Spec, SwarmSpec};
use sepal_core::Span;
use sepal_remote::survey;
use sepal_route::{Router, Server};
use sepal_server::ModelIdentity;
use serde::Serialize;

use super::block_bytes;
use crate::connect::SwarmHandle;
use crate::error::AssembleError;
use crate::frozen_model::FrozenModel;

/// How long a server may take to say what it is.
const PATIENCE: Duration = Duration::from_secs(3);

/// Some blocks, and where they run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct HopPlan {
    /// The blocks.
    pub blocks: Span,
    /// The server, by its place in [`Plan::servers`](super::Plan::servers); none if it is this process without one.
    pub server: Option<usize>,
    /// Estimated: bytes of the weights of these blocks.
    pub estimated_bytes: u64,
}

/// A server that serves the model.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ServerPlan {
    /// Where it is.
    pub place: String,
    /// What it holds.
    pub blocks: Span,
    /// What an empty call took, in milliseconds.
    pub round_trip_ms: f64,
    /// What it says it takes, in microseconds for each token and block of a forward; nothing before it has computed.
    pub us_per_token_block: Option<f64>,
    /// Calls that wait there.
    pub queue: u32,
}

/// The route of a batch of so many positions, planned with what the servers say of themselves, and all of them.
pub(super) fn plan_route(
    spec: &Spec,
    frozen: &FrozenModel,
    handle: &SwarmHandle,
    positions: usize,
) -> Result<(Vec<HopPlan>, Vec<ServerPlan>), AssembleError> {
    let checkpoint = &frozen.checkpoint;
    let (n_blocks, local) = (checkpoint.config().n_blocks, spec.model.local_blocks);
    let is_here = matches!(spec.swarm, SwarmSpec::None(_));
    let here = Span::new(0, if is_here { n_blocks } else { local }).ok();
    let hop = |blocks: Span, server| HopPlan { blocks, server, estimated_bytes: block_bytes(spec, checkpoint, blocks) };
    let mut route: Vec<HopPlan> = here.map(|span| hop(span, None)).into_iter().collect();
    let Some(there) = Span::new(local, n_blocks).ok().filter(|_| !is_here) else { return Ok((route, Vec::new())) };

    let digest = ModelIdentity::from_checkpoint(checkpoint).with_weight_format(spec.model.weights).digest;
    let servers = servers(spec, handle, &digest)?;
    let mut router = Router::new();
    for server in &servers {
        let stated_rate = server.us_per_token_block.map(|us| us / 1e6);
        let round_trip = Duration::from_secs_f64(server.round_trip_ms / 1e3);
        router.add(Server { round_trip, stated_rate, ..Server::new(server.blocks) });
    }
    // Servers that have gone since are none that the plan can use; the probe will say so.
    if let Ok(plan) = router.plan(there, &[positions]) {
        let hops = plan.routes.into_iter().flatten();
        route.extend(hops.map(|found| hop(found.span, Some(found.server.0))));
    }
    Ok((route, servers))
}

/// Those that answer and serve the model.
fn servers(spec: &Spec, handle: &SwarmHandle, digest: &str) -> Result<Vec<ServerPlan>, AssembleError> {
    let endpoints = handle.endpoints(spec)?;
    let asked = survey(&endpoints, PATIENCE).map_err(|source| AssembleError::Discovery(source.into()))?;
    let mut servers = Vec::new();
    for asked in asked {
        let Ok((info, round_trip)) = asked.answer else { continue };
        if info.model_digest != digest || info.draining {
            continue;
        }
        let place = match &spec.swarm {
            SwarmSpec::Embedded(_) => "in this process".to_owned(),
            _ => asked.endpoint.to_string(),
        };
        servers.push(ServerPlan {
            place,
            blocks: info.span,
            round_trip_ms: round_trip.as_secs_f64() * 1e3,
            us_per_token_block: (info.load.rate > 0.0).then_some(info.load.rate * 1e6),
            queue: info.load.queue,
        });
    }
    Ok(servers)
}
