//! Capabilities that a server offers to its clients.

use std::sync::Arc;

use capnp::capability::Rc as CapRc;
use sepal_core::{DType, HostTensor, NamedHostTensor, Span, Want, in_one_line};
use sepal_wire::codec::{self, DecodeError, GradWant, Grads, WireBatch, WireRows};
use sepal_wire::{Failure, FailureCode, MailboxKey, Parts, Relay, Timing, sepal_capnp as wire};

use crate::compute::{BackwardJob, ForwardJob, Job, JobOutput, StatelessJob, TapeExtent, Tunables, invalid};
use crate::state::{CallGuard, ClientConnection};
use crate::stats::Method;
use crate::tapes::{TapeId, lock};

/// Writes the gradients of a backward pass, or its failure, to results of either schema type.
macro_rules! write_backward_results {
    ($results:ident, $result:expr, $parts:expr) => {
        match $result {
            Ok((grads, timing)) => {
                timing.write($results.get().init_timing());
                codec::write_grads($results.get().init_grads(), &grads, $parts);
            }
            Err(failure) => failure.write($results.get().init_failure()),
        }
    };
}

/// Bootstrap capability.
pub(crate) struct BlockServerImpl(pub(crate) ClientConnection);

impl BlockServerImpl {
    fn open_session(&self, params: &wire::block_server::OpenParams) -> Result<SessionImpl, Failure> {
        self.0.state.check_open()?;
        let span = params.get().and_then(|params| params.get_span()).map_err(decode_failed)?;
        let span = codec::read_span(span).map_err(decode_failed)?;
        let served = self.0.state.info.span;
        if !served.covers(span) {
            let message = format!("blocks {span} were requested, but this server holds {served}");
            return Err(Failure::new(FailureCode::NotServed, message));
        }
        Ok(SessionImpl { connection: self.0.clone(), span })
    }

    fn deliver_tensor(&self, params: &wire::block_server::DeliverParams) -> Result<(), Failure> {
        let (key, tensor) = read_delivery(params, &self.0.parts).map_err(decode_failed)?;
        self.0.state.mailbox.deliver(key, tensor)
    }
}

impl wire::block_server::Server for BlockServerImpl {
    async fn describe(
        self: CapRc<Self>,
        _: wire::block_server::DescribeParams,
        mut results: wire::block_server::DescribeResults,
    ) -> Result<(), capnp::Error> {
        self.0.state.stats.info().write(results.get().init_info());
        Ok(())
    }

    async fn open(
        self: CapRc<Self>,
        params: wire::block_server::OpenParams,
        mut results: wire::block_server::OpenResults,
    ) -> Result<(), capnp::Error> {
        match self.open_session(&params) {
            Ok(session) => results.get().set_session(capnp_rpc::new_client(session)),
            Err(failure) => failure.write(results.get().init_failure()),
        }
        Ok(())
    }

    async fn deliver(
        self: CapRc<Self>,
        params: wire::block_server::DeliverParams,
        mut results: wire::block_server::DeliverResults,
    ) -> Result<(), capnp::Error> {
        if let Err(failure) = self.deliver_tensor(&params) {
            failure.write(results.get().init_failure());
        }
        Ok(())
    }
}

/// Session on a part of the server's span.
struct SessionImpl {
    connection: ClientConnection,
    span: Span,
}

impl SessionImpl {
    fn start_step(&self, params: &wire::session::TuneParams) -> Result<TunedImpl, Failure> {
        let (connection, span) = (self.connection.clone(), self.span);
        connection.state.check_open()?;
        let (tunables, exclusive) = read_tunables(params, &connection.parts).map_err(decode_failed)?;
        let tunables = Arc::new(Tunables::check(tunables, span, &connection.state.config)?);
        Ok(TunedImpl { connection, span, tunables, exclusive })
    }
}

impl wire::session::Server for SessionImpl {
    async fn tune(
        self: CapRc<Self>,
        params: wire::session::TuneParams,
        mut results: wire::session::TuneResults,
    ) -> Result<(), capnp::Error> {
        match self.start_step(&params) {
            Ok(tuned) => results.get().set_tuned(capnp_rpc::new_client(tuned)),
            Err(failure) => failure.write(results.get().init_failure()),
        }
        Ok(())
    }
}

/// Session with the tunables of one step.
struct TunedImpl {
    connection: ClientConnection,
    span: Span,
    tunables: Arc<Tunables>,
    /// True if calls never share a batch with other clients.
    exclusive: bool,
}

struct ForwardResult {
    /// None if the hidden states were forwarded.
    hidden: Option<HostTensor>,
    tape: Option<TapeImpl>,
    not_finite: Option<usize>,
}

impl TunedImpl {
    async fn run_forward(&self, params: wire::tuned::ForwardParams) -> Result<(ForwardResult, Timing), Failure> {
        let ClientConnection { state, parts, .. } = &self.connection;
        state.check_open()?;
        let request = ForwardRequest::read(&params, parts).map_err(decode_failed)?;
        // Released here, so that a call in the queue holds the data of its batch only once.
        drop(params);
        let ForwardRequest { rows, hidden, want, keep_tape, dtype, relay } = request;
        state.check_rows(&rows)?;
        let hidden = state.input(hidden, &relay).await?;
        let batch = rows.with_hidden(hidden).map_err(decode_failed)?;
        state.check_batch(&batch)?;
        if batch.prefix_cached && keep_tape {
            return Err(invalid("a tape of a batch without its prefix"));
        }
        let extent = TapeExtent { span: self.span, want, positions: batch.positions() };
        let tunables = Arc::clone(&self.tunables);
        let job = Job::Forward(ForwardJob { span: self.span, tunables, batch, want, keep_tape, dtype });
        let (output, timing) = self.connection.run(job, self.exclusive).await?;
        let JobOutput::Forward { hidden, tape, not_finite } = output else {
            return Err(invalid("a forward pass without an output"));
        };
        state.stats.record_computation(Method::Forward, extent.positions, self.span.len(), timing);
        let tape = tape.map(|tape| {
            let id = lock(&state.tapes).insert(tape);
            TapeImpl { connection: self.connection.clone(), exclusive: self.exclusive, id, extent }
        });
        let hidden = state.forward_to(Some(hidden), &relay).await?;
        Ok((ForwardResult { hidden, tape, not_finite }, timing))
    }

    async fn run_backward(&self, params: wire::tuned::BackwardParams) -> Result<(Grads, Timing), Failure> {
        let ClientConnection { state, parts, .. } = &self.connection;
        state.check_open()?;
        state.check_rows(&read_backward_rows(&params).map_err(decode_failed)?)?;
        let request = StatelessRequest::read(&params, parts).map_err(decode_failed)?;
        drop(params);
        let StatelessRequest { batch, want, grad_output, grad_want } = request;
        state.check_batch(&batch)?;
        if batch.prefix_cached {
            return Err(invalid("a backward pass of a batch without its prefix"));
        }
        let (span, tunables, positions) = (self.span, Arc::clone(&self.tunables), batch.positions());
        let forward = ForwardJob { span, tunables, batch, want, keep_tape: true, dtype: grad_want.dtype };
        let job = Job::Stateless(StatelessJob { forward, grad_output, grad_want });
        let (output, timing) = self.connection.run(job, self.exclusive).await?;
        let grads = output.into_grads()?;
        state.stats.record_computation(Method::Stateless, positions, span.len(), timing);
        Ok((grads, timing))
    }
}

impl wire::tuned::Server for TunedImpl {
    async fn forward(
        self: CapRc<Self>,
        params: wire::tuned::ForwardParams,
        mut results: wire::tuned::ForwardResults,
    ) -> Result<(), capnp::Error> {
        let call = CallGuard::new(&self.connection.state, Method::Forward);
        let result = self.run_forward(params).await;
        call.record(&result);
        match result {
            Ok((ForwardResult { hidden, tape, not_finite }, timing)) => {
                timing.write(results.get().init_timing());
                results.get().set_not_finite(codec::block_to_wire(not_finite));
                if let Some(hidden) = hidden {
                    codec::write_tensor(results.get().init_output(), &hidden, &self.connection.parts);
                }
                if let Some(tape) = tape {
                    results.get().set_tape(capnp_rpc::new_client(tape));
                }
            }
            Err(failure) => failure.write(results.get().init_failure()),
        }
        Ok(())
    }

    async fn backward(
        self: CapRc<Self>,
        params: wire::tuned::BackwardParams,
        mut results: wire::tuned::BackwardResults,
    ) -> Result<(), capnp::Error> {
        let call = CallGuard::new(&self.connection.state, Method::Stateless);
        let result = self.run_backward(params).await;
        call.record(&result);
        write_backward_results!(results, result, &self.connection.parts);
        Ok(())
    }
}

/// Tape of one forward pass; dropped with the client's last reference or its connection.
struct TapeImpl {
    connection: ClientConnection,
    exclusive: bool,
    id: TapeId,
    extent: TapeExtent,
}

impl TapeImpl {
    async fn run_backward(&self, params: wire::tape::BackwardParams) -> Result<(Grads, Timing), Failure> {
        let ClientConnection { state, parts, .. } = &self.connection;
        let request = BackwardRequest::read(&params, parts).map_err(decode_failed)?;
        drop(params);
        let BackwardRequest { grad_output, grad_want, relay } = request;
        let grad_output = state.input(grad_output, &relay).await?;
        let (tapes, id, extent) = (Arc::clone(&state.tapes), self.id, self.extent);
        let job = Job::Backward(BackwardJob { tapes, id, extent, grad_output, grad_want });
        let (output, timing) = self.connection.run(job, self.exclusive).await?;
        let mut grads = output.into_grads()?;
        state.stats.record_computation(Method::Backward, extent.positions, extent.span.len(), timing);
        grads.input = state.forward_to(grads.input, &relay).await?;
        Ok((grads, timing))
    }
}

impl Drop for TapeImpl {
    fn drop(&mut self) {
        let tape = lock(&self.connection.state.tapes).take(self.id);
        // Outside the lock, since freeing a tape is slow.
        drop(tape);
    }
}

impl wire::tape::Server for TapeImpl {
    async fn backward(
        self: CapRc<Self>,
        params: wire::tape::BackwardParams,
        mut results: wire::tape::BackwardResults,
    ) -> Result<(), capnp::Error> {
        let call = CallGuard::new(&self.connection.state, Method::Backward);
        let result = self.run_backward(params).await;
        call.record(&result);
        write_backward_results!(results, result, &self.connection.parts);
        Ok(())
    }
}

struct ForwardRequest {
    rows: WireRows,
    /// None if another server sends the hidden states.
    hidden: Option<HostTensor>,
    want: Want,
    keep_tape: bool,
    dtype: DType,
    relay: Relay,
}

impl ForwardRequest {
    fn read(params: &wire::tuned::ForwardParams, parts: &Parts) -> Result<Self, DecodeError> {
        let params = params.get()?;
        let relay = Relay::read(params.get_relay()?)?;
        let batch = params.get_batch()?;
        let rows = codec::read_rows(batch)?;
        let hidden = match relay.from {
            None => Some(codec::read_tensor(batch.get_hidden()?, parts)?),
            Some(_) => None,
        };
        let want = codec::want_from_wire(params.get_want()?);
        let dtype = codec::dtype_from_wire(params.get_dtype()?);
        Ok(Self { rows, hidden, want, keep_tape: params.get_keep_tape(), dtype, relay })
    }
}

struct StatelessRequest {
    batch: WireBatch,
    want: Want,
    grad_output: HostTensor,
    grad_want: GradWant,
}

impl StatelessRequest {
    fn read(params: &wire::tuned::BackwardParams, parts: &Parts) -> Result<Self, DecodeError> {
        let params = params.get()?;
        Ok(Self {
            batch: codec::read_batch(params.get_batch()?, parts)?,
            want: codec::want_from_wire(params.get_want()?),
            grad_output: codec::read_tensor(params.get_grad_output()?, parts)?,
            grad_want: codec::read_grad_want(params.get_grad()?)?,
        })
    }
}

struct BackwardRequest {
    /// None if another server sends the gradient.
    grad_output: Option<HostTensor>,
    grad_want: GradWant,
    relay: Relay,
}

impl BackwardRequest {
    fn read(params: &wire::tape::BackwardParams, parts: &Parts) -> Result<Self, DecodeError> {
        let params = params.get()?;
        let relay = Relay::read(params.get_relay()?)?;
        let grad_want = codec::read_grad_want(params.get_grad()?)?;
        let grad_output = match relay.from {
            None => Some(codec::read_tensor(params.get_grad_output()?, parts)?),
            Some(_) => None,
        };
        Ok(Self { grad_output, grad_want, relay })
    }
}

fn read_backward_rows(params: &wire::tuned::BackwardParams) -> Result<WireRows, DecodeError> {
    codec::read_rows(params.get()?.get_batch()?)
}

fn read_delivery(
    params: &wire::block_server::DeliverParams,
    parts: &Parts,
) -> Result<(MailboxKey, HostTensor), DecodeError> {
    let params = params.get()?;
    Ok((MailboxKey::read(params.get_key()?)?, codec::read_tensor(params.get_tensor()?, parts)?))
}

/// Reads the tunables of a step, and true if the step is exclusive.
fn read_tunables(
    params: &wire::session::TuneParams,
    parts: &Parts,
) -> Result<(Vec<NamedHostTensor>, bool), DecodeError> {
    let params = params.get()?;
    Ok((codec::read_named(params.get_tunables()?, parts)?, params.get_alone()))
}

fn decode_failed(error: impl Into<DecodeError>) -> Failure {
    let error = error.into();
    let code = if error.is_damage() { FailureCode::Unreadable } else { FailureCode::InvalidRequest };
    Failure::new(code, in_one_line(&error))
}
