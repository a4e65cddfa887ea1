//! Execution of micro-batches: through the client (star), or handed from server to server (relay).

mod finite;
mod prefix_cache;
mod relay;
mod star;
mod strategy;

use std::rc::Rc;
use std::sync::Arc;

use sepal_core::{HostTensor, Want};
use sepal_route::{Hop, Pass};
use sepal_wire::codec::{GradWant, WireBatch};

use self::relay::{Relay, RelayTrace};
use self::star::{Star, StarTrace};
use self::strategy::{ForwardPass, Strategy};
use crate::command::{MicroBatchGrads, WantedGrads};
use crate::error::{GRADIENTS, HIDDEN_STATES, RemoteError};
use crate::servers::Servers;
use crate::step::Step;
use crate::verify::RelayAnswer;

/// Record of a micro-batch's forward pass for its backward pass.
pub(crate) struct Trace {
    step: Arc<Step>,
    want: Want,
    path: Path,
}

enum Path {
    Star(StarTrace),
    Relay(RelayTrace),
}

/// Runs a micro-batch forward through all remote blocks, on `route` while its servers work.
pub(crate) async fn forward(
    servers: &Rc<Servers>,
    step: Arc<Step>,
    batch: WireBatch,
    want: Want,
    keep_tape: bool,
    route: Vec<Hop>,
) -> Result<(HostTensor, Trace), RemoteError> {
    let relay = Relay::new(servers);
    let pass = ForwardPass { step: &step, batch: &batch, want, keep_tape };
    if relay.is_possible(&route) {
        match relay.forward(pass, route.clone()).await {
            Ok((output, mut trace)) if output.is_finite() => {
                let answer = RelayAnswer { route: &trace.route(), step: &step, batch: &batch, want, keep_tape };
                trace.check = servers.check_relay_forward(answer, &output);
                return Ok((output, Trace { step, want, path: Path::Relay(trace) }));
            }
            // A second forward pass is not worth its cost where overflow is expected.
            Ok((_, trace)) if servers.options().expects_overflow && !servers.is_replaceable(&route) => {
                return Err(relay.non_finite(&trace, HIDDEN_STATES)?);
            }
            // The star path finds the server that produced the non-finite numbers.
            Ok(_) => {}
            Err(failure) => relay.handle_failure(&route, failure, Pass::Forward).await?,
        }
    }
    let (output, trace) = Star::new(servers).forward(pass, route).await?;
    Ok((output, Trace { step, want, path: Path::Star(trace) }))
}

/// Runs a micro-batch backward. Work that a failed server has lost is repeated from the inputs that the client kept.
pub(crate) async fn backward(
    servers: &Rc<Servers>,
    Trace { step, want: output, path }: Trace,
    grad_output: HostTensor,
    want: WantedGrads,
) -> Result<MicroBatchGrads, RemoteError> {
    let star = Star::new(servers);
    let mut trace = match path {
        Path::Star(trace) => trace,
        Path::Relay(mut trace) => {
            let relay = Relay::new(servers);
            match relay.backward(&step, &mut trace, grad_output.clone(), want).await {
                Ok(grads) if grads.are_finite() => {
                    let (route, pending) = (&trace.route(), trace.check.take());
                    let answer = RelayAnswer { route, step: &step, batch: &trace.batch, want: output, keep_tape: true };
                    let input = want.input_of(trace.batch.prefix_len);
                    let want = GradWant { input, tunables: want.tunables, dtype: servers.options().dtype() };
                    servers.check_relay_backward(answer, (&grad_output, want), &grads, pending);
                    return Ok(grads);
                }
                // A second backward pass is not worth its cost where overflow is expected.
                Ok(_) if servers.options().expects_overflow && !servers.is_replaceable(&trace.route()) => {
                    return Err(relay.non_finite(&trace, GRADIENTS)?);
                }
                Ok(_) => {}
                Err(failure) => {
                    let route = trace.backward_route(&step, want, servers.options().first_block);
                    relay.handle_failure(&route, failure, Pass::Backward).await?;
                }
            }
            star.recompute(&step, trace.span()?, &trace.batch, output).await?
        }
    };
    star.backward(&step, &mut trace, grad_output, want).await
}

/// Runs a micro-batch through the client on the servers of `route`, forward and, from a gradient of its output, backward. The
/// results are not used: each call of it can be checked.
pub(crate) async fn repeat_on_star(
    servers: &Rc<Servers>,
    step: &Step,
    batch: &WireBatch,
    want: Want,
    backward: Option<(HostTensor, WantedGrads)>,
    route: Vec<Hop>,
) -> Result<(), RemoteError> {
    let star = Star::new(servers);
    let pass = ForwardPass { step, batch, want, keep_tape: backward.is_some() };
    let (_, mut trace) = star.forward(pass, route).await?;
    if let Some((grad_output, want)) = backward {
        star.backward(step, &mut trace, grad_output, want).await?;
    }
    Ok(())
}
