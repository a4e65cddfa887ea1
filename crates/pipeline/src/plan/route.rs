//! Route of a batch through the servers.

use std::time::Duration;

use sepal_config::spec::{Spec, SwarmSpec};
use sepal_core::Span;
use sepal_prepare::plan::{HopPlan, ServerPlan, block_bytes};
use sepal_route::{Router, Server};
use sepal_survey::survey;

use crate::connect::SwarmHandle;
use crate::error::AssembleError;
use crate::frozen_model::FrozenModel;

const PATIENCE: Duration = Duration::from_secs(3);

/// Plans the route of a batch of `positions` by the reports of the servers. Returns it with all servers.
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

    let digest = spec.model.digest(checkpoint.digest());
    let servers = servers(spec, handle, &digest)?;
    let mut router = Router::new();
    for server in &servers {
        let stated_rate = server.us_per_token_block.map(|us| us / 1e6);
        let round_trip = Duration::from_secs_f64(server.round_trip_ms / 1e3);
        router.add(Server { round_trip, stated_rate, ..Server::new(server.blocks) });
    }
    // A plan may fail because servers have left; the probe then reports it.
    if let Ok(plan) = router.plan(there, &[positions]) {
        let hops = plan.routes.into_iter().flatten();
        route.extend(hops.map(|found| hop(found.span, Some(found.server.0))));
    }
    Ok((route, servers))
}

/// Servers that respond and serve the model.
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
