//! Capabilities that a server offers to its clients.

use std::sync::Arc;

use capnp::capability::Rc as CapRc;
use sepal_blocks::Passes;
use sepal_core::{HostTensor, Span, Want, in_one_line};
use sepal_swarm::{Receipt, Rights};
use sepal_wire::codec::{self, DecodeError, Grads, WireBatch};
use sepal_wire::sepal_capnp::block_server::{
    DeliverParams, DeliverResults, DescribeParams, DescribeResults, OpenParams, OpenResults,
};
use sepal_wire::sepal_capnp::session::{TuneParams, TuneResults};
use sepal_wire::sepal_capnp::tuned::{ForwardParams, ForwardResults};
use sepal_wire::{Failure, FailureCode, MailboxKey, Parts, Relay, Timing, sepal_capnp as wire};

use crate::compute::{BackwardJob, ForwardJob, Job, JobOutput, StatelessJob, TapeExtent, Tunables, invalid};
use crate::ledger::Reservation;
use crate::lock::lock;
use crate::receipts::{SignedCall, SignedTunables, write_receipt};
use crate::refusals::Reason;
use crate::state::{CallGuard, ClientConnection};
use crate::stats::Method;
use crate::tapes::TapeId;

/// Writes the gradients of a backward pass, or its failure, to results of either schema type.
macro_rules! write_backward_results {
    ($results:ident, $result:expr, $parts:expr) => {
        match $result {
            Ok((BackwardResult { grads, receipt }, timing)) => {
                timing.write($results.get().init_timing());
                codec::write_grads($results.get().init_grads(), &grads, $parts);
                if let Some(receipt) = receipt {
                    write_receipt(&receipt, $results.get().init_receipt());
                }
            }
            Err(failure) => failure.write($results.get().init_failure()),
        }
    };
}

/// Bootstrap capability.
pub(crate) struct BlockServerImpl(pub(crate) ClientConnection);

impl BlockServerImpl {
    fn open_session(&self, params: &OpenParams) -> Result<SessionImpl, Failure> {
        self.0.check_rights(Rights::Client)?;
        self.0.state.check_open()?;
        let (span, client) = decode(|| {
            let params = params.get()?;
            Ok((codec::read_span(params.get_span()?)?, [params.get_oldest_protocol(), params.get_protocol()]))
        })?;
        let server = [sepal_wire::OLDEST_CLIENT, sepal_wire::PROTOCOL];
        if sepal_wire::common_protocol(client, server).is_none() {
            let ([oldest, newest], [client_oldest, client_newest]) = (server, client);
            let stated = match client_newest {
                0 => "up to 5".to_owned(),
                _ => format!("{client_oldest} to {client_newest}"),
            };
            return Err(invalid(format!(
                "the client speaks protocols {stated}, this server {oldest} to {newest}; update the older of the two"
            )));
        }
        let served = self.0.state.info.span;
        if !served.covers(span) {
            let message = format!("blocks {span} were requested, but this server holds {served}");
            return Err(Failure::new(FailureCode::NotServed, message));
        }
        let reserved = self.0.reserve_entry()?;
        Ok(SessionImpl { connection: self.0.clone(), span, _reserved: reserved })
    }

    fn deliver_tensor(&self, params: &DeliverParams) -> Result<(), Failure> {
        self.0.check_rights(Rights::Server)?;
        let (key, tensor) = decode(|| {
            let params = params.get()?;
            Ok((MailboxKey::read(params.get_key()?)?, codec::read_tensor(params.get_tensor()?, &self.0.parts)?))
        })
        .map_err(|failure| self.0.quota.refuse(Reason::Malformed, failure))?;
        self.0.state.mailbox.deliver(&self.0.quota, key, tensor)
    }
}

impl wire::block_server::Server for BlockServerImpl {
    async fn describe(self: CapRc<Self>, _: DescribeParams, mut results: DescribeResults) -> capnp::Result<()> {
        self.0.state.stats.info().write(results.get().init_info());
        Ok(())
    }

    async fn open(self: CapRc<Self>, params: OpenParams, mut results: OpenResults) -> capnp::Result<()> {
        match self.open_session(&params) {
            Ok(session) => results.get().set_session(capnp_rpc::new_client(session)),
            Err(failure) => failure.write(results.get().init_failure()),
        }
        Ok(())
    }

    async fn deliver(self: CapRc<Self>, params: DeliverParams, mut results: DeliverResults) -> capnp::Result<()> {
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
    _reserved: Reservation,
}

impl SessionImpl {
    fn start_step(&self, params: &TuneParams) -> Result<TunedImpl, Failure> {
        let (connection, span) = (self.connection.clone(), self.span);
        connection.state.check_open()?;
        let reserved = connection.reserve_entry()?;
        let (tunables, exclusive) = decode(|| {
            let params = params.get()?;
            Ok((codec::read_tunables(params.get_tunables()?, &connection.parts)?, params.get_alone()))
        })
        .map_err(|failure| connection.quota.refuse(Reason::Malformed, failure))?;
        let signed = connection.state.signer.is_some().then(|| SignedTunables::new(&tunables));
        let tunables = Arc::new(connection.check_tunables(tunables, span)?);
        Ok(TunedImpl { connection, span, tunables, signed, exclusive, _reserved: reserved })
    }
}

impl wire::session::Server for SessionImpl {
    async fn tune(self: CapRc<Self>, params: TuneParams, mut results: TuneResults) -> capnp::Result<()> {
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
    /// `None` if the server signs nothing.
    signed: Option<SignedTunables>,
    /// True if calls never share a batch with other clients.
    exclusive: bool,
    _reserved: Reservation,
}

struct ForwardResult {
    /// None if the hidden states were forwarded.
    hidden: Option<HostTensor>,
    tape: Option<TapeImpl>,
    not_finite: Option<usize>,
    receipt: Option<Receipt>,
}

struct BackwardResult {
    grads: Grads,
    receipt: Option<Receipt>,
}

impl TunedImpl {
    /// Begins a call with a receipt, if the client wants one and the server has a key.
    fn signed_call(&self, is_wanted: bool, want: Want, batch: &WireBatch) -> Option<SignedCall> {
        let signed = self.signed.as_ref().filter(|_| is_wanted);
        signed.map(|signed| signed.call(self.span, want, batch))
    }

    async fn run_forward(&self, params: ForwardParams) -> Result<(ForwardResult, Timing), Failure> {
        let ClientConnection { state, parts, .. } = &self.connection;
        state.check_open()?;
        let _slot = self.connection.call_slot()?;
        let (relay, rows, hidden) = decode(|| {
            let params = params.get()?;
            let (relay, batch) = (Relay::read(params.get_relay()?)?, params.get_batch()?);
            let rows = codec::read_rows(batch)?;
            let hidden = read_input(&relay, batch.get_hidden(), parts)?;
            Ok((relay, rows, hidden))
        })?;
        let (want, dtype, keep_tape, sign) = decode(|| {
            let params = params.get()?;
            let (want, dtype) =
                (codec::want_from_wire(params.get_want()?), codec::dtype_from_wire(params.get_dtype()?));
            Ok((want, dtype, params.get_keep_tape(), params.get_sign()))
        })?;
        // Released here, so that a call in the queue holds the data of its batch only once.
        drop(params);
        let passes = if keep_tape { Passes::Tape } else { Passes::Forward };
        let mut admitted = self.connection.admit(self.span, &rows, hidden.as_ref(), passes)?;
        let peak_bytes = if keep_tape { self.connection.backward_bytes(self.span, &rows)? } else { 0 };
        let hidden = self.connection.input(hidden, &relay, &mut admitted).await?;
        let batch = decode(|| rows.with_hidden(hidden))?;
        state.check_batch(&batch)?;
        if batch.prefix_cached && keep_tape {
            return Err(invalid("a tape of a batch without its prefix"));
        }
        let extent = TapeExtent { span: self.span, want, positions: batch.positions(), peak_bytes };
        let signed = self.signed_call(sign, want, &batch);
        let tunables = Arc::clone(&self.tunables);
        let job = Job::Forward(ForwardJob { span: self.span, tunables, batch, want, keep_tape, dtype });
        let (output, timing) = self.connection.run(job, self.exclusive, admitted).await?;
        let JobOutput::Forward { hidden, tape, not_finite } = output else {
            return Err(invalid("a forward pass without an output"));
        };
        state.stats.record_computation(Method::Forward, extent.positions, self.span.len(), timing);
        let store = |tape| {
            let reserved = self.connection.reserve_entry()?;
            let id = lock(&state.tapes).insert(tape);
            let connection = self.connection.clone();
            let exclusive = self.exclusive;
            Ok::<_, Failure>(TapeImpl { connection, exclusive, id, extent, signed, _reserved: reserved })
        };
        let tape = tape.map(store).transpose()?;
        let receipt = state.signer.as_ref().zip(signed).map(|(signer, call)| signer.forward(&call, dtype, &hidden));
        let hidden = self.connection.forward_to(Some(hidden), &relay).await?;
        Ok((ForwardResult { hidden, tape, not_finite, receipt }, timing))
    }

    async fn run_backward(&self, params: wire::tuned::BackwardParams) -> Result<(BackwardResult, Timing), Failure> {
        let ClientConnection { state, parts, .. } = &self.connection;
        state.check_open()?;
        let _slot = self.connection.call_slot()?;
        let rows = decode(|| codec::read_rows(params.get()?.get_batch()?))?;
        let mut admitted = self.connection.admit(self.span, &rows, None, Passes::Backward)?;
        let (batch, want, grad_output, grad_want, sign) = decode(|| {
            let params = params.get()?;
            let batch = codec::read_batch(params.get_batch()?, parts)?;
            let want = codec::want_from_wire(params.get_want()?);
            let grad_output = codec::read_tensor(params.get_grad_output()?, parts)?;
            Ok((batch, want, grad_output, codec::read_grad_want(params.get_grad()?)?, params.get_sign()))
        })?;
        drop(params);
        admitted.add_input(&batch.hidden)?;
        admitted.add_input(&grad_output)?;
        state.check_batch(&batch)?;
        if batch.prefix_cached {
            return Err(invalid("a backward pass of a batch without its prefix"));
        }
        let (span, tunables, positions) = (self.span, Arc::clone(&self.tunables), batch.positions());
        let signed = self.signed_call(sign, want, &batch).map(|call| (call, grad_output.clone()));
        let forward = ForwardJob { span, tunables, batch, want, keep_tape: true, dtype: grad_want.dtype };
        let job = Job::Stateless(StatelessJob { forward, grad_output, grad_want });
        let (output, timing) = self.connection.run(job, self.exclusive, admitted).await?;
        let grads = output.into_grads()?;
        state.stats.record_computation(Method::Stateless, positions, span.len(), timing);
        let receipt = self.connection.backward_receipt(signed, grad_want, &grads);
        Ok((BackwardResult { grads, receipt }, timing))
    }
}

impl wire::tuned::Server for TunedImpl {
    async fn forward(self: CapRc<Self>, params: ForwardParams, mut results: ForwardResults) -> capnp::Result<()> {
        let call = CallGuard::new(&self.connection.state, Method::Forward);
        let result = self.run_forward(params).await;
        call.record(&result);
        match result {
            Ok((ForwardResult { hidden, tape, not_finite, receipt }, timing)) => {
                timing.write(results.get().init_timing());
                results.get().set_not_finite(codec::block_to_wire(not_finite));
                if let Some(hidden) = hidden {
                    codec::write_tensor(results.get().init_output(), &hidden, &self.connection.parts);
                }
                if let Some(receipt) = receipt {
                    write_receipt(&receipt, results.get().init_receipt());
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
    /// Forward call, if it had a receipt.
    signed: Option<SignedCall>,
    _reserved: Reservation,
}

impl TapeImpl {
    async fn run_backward(&self, params: wire::tape::BackwardParams) -> Result<(BackwardResult, Timing), Failure> {
        let ClientConnection { state, parts, .. } = &self.connection;
        let _slot = self.connection.call_slot()?;
        let (relay, grad_want, grad_output, sign) = decode(|| {
            let params = params.get()?;
            let relay = Relay::read(params.get_relay()?)?;
            let grad_want = codec::read_grad_want(params.get_grad()?)?;
            let grad_output = read_input(&relay, params.get_grad_output(), parts)?;
            Ok((relay, grad_want, grad_output, params.get_sign()))
        })?;
        drop(params);
        let mut admitted = self.connection.admit_backward(&self.extent, grad_output.as_ref())?;
        let grad_output = self.connection.input(grad_output, &relay, &mut admitted).await?;
        let signed = self.signed.filter(|_| sign).map(|call| (call, grad_output.clone()));
        let (tapes, id, extent) = (Arc::clone(&state.tapes), self.id, self.extent);
        let job = Job::Backward(BackwardJob { tapes, id, extent, grad_output, grad_want });
        let (output, timing) = self.connection.run(job, self.exclusive, admitted).await?;
        let mut grads = output.into_grads()?;
        state.stats.record_computation(Method::Backward, extent.positions, extent.span.len(), timing);
        let receipt = self.connection.backward_receipt(signed, grad_want, &grads);
        grads.input = self.connection.forward_to(grads.input, &relay).await?;
        Ok((BackwardResult { grads, receipt }, timing))
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

/// Reads a tensor of a call, unless another server sends it.
fn read_input(
    relay: &Relay,
    tensor: capnp::Result<wire::tensor::Reader<'_>>,
    parts: &Parts,
) -> Result<Option<HostTensor>, DecodeError> {
    match relay.from {
        None => codec::read_tensor(tensor?, parts).map(Some),
        Some(_) => Ok(None),
    }
}

fn decode<T>(read: impl FnOnce() -> Result<T, DecodeError>) -> Result<T, Failure> {
    read().map_err(|error| {
        let code = if error.is_damage() { FailureCode::Unreadable } else { FailureCode::InvalidRequest };
        Failure::new(code, in_one_line(&error))
    })
}
