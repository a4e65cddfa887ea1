use std::cell::Cell;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use capnp::capability::Rc as CapRc;
use sepal_core::{HostTensor, ModelConfig, Span, in_one_line};
use sepal_wire::codec::{self, DecodeError, Grads, WireBatch, WireRows};
use sepal_wire::{Failure, FailureCode, ParcelKey, Parts, Relay, ServerInfo, Timing, sepal_capnp as wire};

use crate::board::{Board, Method};
use crate::compute::{Backward, Done, Forward, Job, TapeOf, Tunables, invalid};
use crate::engine::Engine;
use crate::queue::ClientId;
use crate::relay::{Links, Parcels};
use crate::tapes::{TapeId, TapeStore};

/// What all clients of a server share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) engine: Engine,
    pub(crate) tapes: Arc<Mutex<TapeStore>>,
    pub(crate) board: Arc<Board>,
    /// From other servers.
    pub(crate) parcels: Rc<Parcels>,
    /// To other servers.
    pub(crate) links: Links,
    /// As it is described, but for the load.
    pub(crate) info: ServerInfo,
    /// The shape of its model.
    pub(crate) config: ModelConfig,
    /// Calls whose answer has yet to be written.
    pub(crate) calls: Cell<usize>,
    /// Connections so far.
    pub(crate) clients: Cell<u64>,
}

/// A call, from its coming until its answer is handed over.
struct Answering {
    shared: Rc<Shared>,
    method: Method,
    came: Instant,
}

impl Answering {
    fn new(shared: &Rc<Shared>, method: Method) -> Self {
        shared.calls.set(shared.calls.get() + 1);
        Self { shared: Rc::clone(shared), method, came: Instant::now() }
    }

    /// It has an answer. A call that has none was given up by its caller.
    fn answered<T>(&self, outcome: &Result<T, Failure>) {
        self.shared.board.called(self.method, self.came.elapsed().as_secs_f64(), outcome.as_ref().err());
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.shared.calls.set(self.shared.calls.get() - 1);
    }
}

impl Shared {
    /// A name for a new connection.
    pub(crate) fn next_client(&self) -> ClientId {
        self.clients.set(self.clients.get() + 1);
        ClientId(self.clients.get())
    }

    /// The input of a call: what came with it, or what another server sends.
    async fn input(&self, given: Option<HostTensor>, relay: &Relay) -> Result<HostTensor, Failure> {
        match (relay.from, given) {
            (Some(key), _) => self.parcels.receive(key).await,
            (None, Some(given)) => Ok(given),
            (None, None) => Err(invalid("a call without its input")),
        }
    }

    /// Brings a result to the next server, if there is one, else gives it back for the caller.
    async fn hand_on(&self, result: Option<HostTensor>, relay: &Relay) -> Result<Option<HostTensor>, Failure> {
        match (&relay.next, result) {
            (Some(next), Some(result)) => self.links.hand_on(next, &result).await.map(|()| None),
            (Some(_), None) => Err(invalid("nothing to hand on: the gradient of the input was not asked for")),
            (None, result) => Ok(result),
        }
    }

    /// Whether a call is under way or a client has yet to run a tape backward.
    pub(crate) fn is_in_use(&self) -> bool {
        self.calls.get() > 0 || self.engine.queue() > 0 || lock(&self.tapes).load().0 > 0
    }

    fn check_open(&self) -> Result<(), Failure> {
        match self.board.draining.load(Ordering::Relaxed) {
            true => Err(Failure::new(FailureCode::ShuttingDown, "the server is stopping")),
            false => Ok(()),
        }
    }

    fn check_rows(&self, WireRows { prefix_len, rows, .. }: &WireRows) -> Result<(), Failure> {
        let (limits, tokens) = (self.info.limits, prefix_len + rows.n_tokens());
        if rows.len() > limits.max_rows as usize {
            return Err(invalid(format!("{} rows, but this server takes {}", rows.len(), limits.max_rows)));
        }
        if tokens > limits.max_tokens as usize {
            return Err(invalid(format!("{tokens} tokens, but this server takes {}", limits.max_tokens)));
        }
        Ok(())
    }

    fn check_batch(&self, batch: &WireBatch) -> Result<(), Failure> {
        let (found, hidden) = (batch.hidden.shape()[1], self.info.hidden);
        if found != hidden {
            return Err(invalid(format!("hidden states of size {found}, expected {hidden}")));
        }
        Ok(())
    }
}

/// The other side of a connection.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    pub(crate) client: ClientId,
    /// With which its tensors are read and written.
    pub(crate) parts: Parts,
}

/// The bootstrap object.
pub(crate) struct Root {
    pub(crate) shared: Rc<Shared>,
    pub(crate) caller: Caller,
}

impl wire::block_server::Server for Root {
    async fn describe(
        self: CapRc<Self>,
        _: wire::block_server::DescribeParams,
        mut results: wire::block_server::DescribeResults,
    ) -> Result<(), capnp::Error> {
        self.shared.board.info().write(results.get().init_info());
        Ok(())
    }

    async fn open(
        self: CapRc<Self>,
        params: wire::block_server::OpenParams,
        mut results: wire::block_server::OpenResults,
    ) -> Result<(), capnp::Error> {
        let opened = || {
            self.shared.check_open()?;
            let span = codec::read_span(params.get().and_then(|p| p.get_span()).map_err(decode)?).map_err(decode)?;
            if self.shared.info.span.covers(span) {
                Ok(SessionImpl { shared: Rc::clone(&self.shared), caller: self.caller.clone(), span })
            } else {
                let held = self.shared.info.span;
                Err(Failure::new(FailureCode::NotServed, format!("blocks {span} were asked for, {held} are here")))
            }
        };
        match opened() {
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
        let delivered = || {
            let params = params.get().map_err(decode)?;
            let key = ParcelKey::read(params.get_key().map_err(decode)?).map_err(decode)?;
            let tensor =
                codec::read_tensor(params.get_tensor().map_err(decode)?, &self.caller.parts).map_err(decode)?;
            self.shared.parcels.deliver(key, tensor)
        };
        if let Err(failure) = delivered() {
            failure.write(results.get().init_failure());
        }
        Ok(())
    }
}

/// A part of the span, for one client.
struct SessionImpl {
    shared: Rc<Shared>,
    caller: Caller,
    span: Span,
}

impl wire::session::Server for SessionImpl {
    async fn tune(
        self: CapRc<Self>,
        params: wire::session::TuneParams,
        mut results: wire::session::TuneResults,
    ) -> Result<(), capnp::Error> {
        let tuned = || {
            self.shared.check_open()?;
            let params = params.get().map_err(decode)?;
            let tunables =
                codec::read_named(params.get_tunables().map_err(decode)?, &self.caller.parts).map_err(decode)?;
            let tunables = Arc::new(Tunables::check(tunables, self.span, &self.shared.config)?);
            let alone = params.get_alone();
            let (shared, caller, span) = (Rc::clone(&self.shared), self.caller.clone(), self.span);
            Ok::<_, Failure>(TunedImpl { shared, caller, span, tunables, alone })
        };
        match tuned() {
            Ok(tuned) => results.get().set_tuned(capnp_rpc::new_client(tuned)),
            Err(failure) => failure.write(results.get().init_failure()),
        }
        Ok(())
    }
}

/// A session with the tunables of one step.
struct TunedImpl {
    shared: Rc<Shared>,
    caller: Caller,
    span: Span,
    tunables: Arc<Tunables>,
    /// Never computed with calls of others.
    alone: bool,
}

/// What a forward answers with.
struct Forwarded {
    /// If it was not handed on.
    output: Option<HostTensor>,
    tape: Option<TapeImpl>,
    not_finite: Option<usize>,
}

impl TunedImpl {
    /// Computes, and hands the output on if that is asked for.
    async fn run_forward(&self, params: wire::tuned::ForwardParams) -> Result<(Forwarded, Timing), Failure> {
        self.shared.check_open()?;
        let (rows, hidden, want, keep, dtype, relay) = {
            let params = params.get().map_err(decode)?;
            let relay = Relay::read(params.get_relay().map_err(decode)?).map_err(decode)?;
            let batch = params.get_batch().map_err(decode)?;
            let rows = codec::read_rows(batch).map_err(decode)?;
            let hidden = match relay.from {
                None => {
                    Some(codec::read_tensor(batch.get_hidden().map_err(decode)?, &self.caller.parts).map_err(decode)?)
                }
                Some(_) => None,
            };
            let want = codec::want_from_wire(params.get_want().map_err(decode)?);
            let dtype = codec::dtype_from_wire(params.get_dtype().map_err(decode)?);
            (rows, hidden, want, params.get_keep_tape(), dtype, relay)
        };
        // The batch is the only one that holds its bytes while it waits in the queue.
        drop(params);
        self.shared.check_rows(&rows)?;
        let hidden = self.shared.input(hidden, &relay).await?;
        let batch = rows.with(hidden).map_err(decode)?;
        self.shared.check_batch(&batch)?;
        if batch.prefix_kept && keep {
            return Err(invalid("a tape of a batch without its prefix"));
        }
        let of = TapeOf { span: self.span, want, positions: batch.positions() };
        let tunables = Arc::clone(&self.tunables);
        let job = Job::Forward(Forward { span: self.span, tunables, batch, want, keep, dtype });
        let (done, timing) = self.shared.engine.run(self.caller.client, job, self.alone).await?;
        let Done::Forward { output, kept, not_finite } = done else {
            return Err(invalid("a forward without an output"));
        };
        self.shared.board.computed(Method::Forward, of.positions, self.span.len(), timing);
        let tape = kept.map(|kept| {
            let id = lock(&self.shared.tapes).insert(kept);
            TapeImpl { shared: Rc::clone(&self.shared), caller: self.caller.clone(), alone: self.alone, id, of }
        });
        let output = self.shared.hand_on(Some(output), &relay).await?;
        Ok((Forwarded { output, tape, not_finite }, timing))
    }

    async fn run_backward(&self, params: wire::tuned::BackwardParams) -> Result<(Grads, Timing), Failure> {
        self.shared.check_open()?;
        let (batch, want, grad_output, grad) = {
            let params = params.get().map_err(decode)?;
            let batch = params.get_batch().map_err(decode)?;
            self.shared.check_rows(&codec::read_rows(batch).map_err(decode)?)?;
            let batch = codec::read_batch(batch, &self.caller.parts).map_err(decode)?;
            let want = codec::want_from_wire(params.get_want().map_err(decode)?);
            let grad_output =
                codec::read_tensor(params.get_grad_output().map_err(decode)?, &self.caller.parts).map_err(decode)?;
            let grad = codec::read_grad_want(params.get_grad().map_err(decode)?).map_err(decode)?;
            (batch, want, grad_output, grad)
        };
        drop(params);
        self.shared.check_batch(&batch)?;
        let (span, tunables, tokens) = (self.span, Arc::clone(&self.tunables), batch.positions());
        if batch.prefix_kept {
            return Err(invalid("a backward of a batch without its prefix"));
        }
        let dtype = grad.dtype;
        let forward = Forward { span, tunables, batch, want, keep: true, dtype };
        let job = Job::Stateless(forward, grad_output, grad);
        let (Done::Grads(grads), timing) = self.shared.engine.run(self.caller.client, job, self.alone).await? else {
            return Err(invalid("a backward without gradients"));
        };
        self.shared.board.computed(Method::Stateless, tokens, span.len(), timing);
        Ok((grads, timing))
    }
}

impl wire::tuned::Server for TunedImpl {
    async fn forward(
        self: CapRc<Self>,
        params: wire::tuned::ForwardParams,
        mut results: wire::tuned::ForwardResults,
    ) -> Result<(), capnp::Error> {
        let answering = Answering::new(&self.shared, Method::Forward);
        let outcome = self.run_forward(params).await;
        answering.answered(&outcome);
        match outcome {
            Ok((Forwarded { output, tape, not_finite }, timing)) => {
                timing.write(results.get().init_timing());
                results.get().set_not_finite(codec::block_to_wire(not_finite));
                if let Some(output) = output {
                    codec::write_tensor(results.get().init_output(), &output, &self.caller.parts);
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
        let answering = Answering::new(&self.shared, Method::Stateless);
        let outcome = self.run_backward(params).await;
        answering.answered(&outcome);
        match outcome {
            Ok((grads, timing)) => {
                timing.write(results.get().init_timing());
                codec::write_grads(results.get().init_grads(), &grads, &self.caller.parts);
            }
            Err(failure) => failure.write(results.get().init_failure()),
        }
        Ok(())
    }
}

/// A kept graph; dropped with the client's last reference, or its connection.
struct TapeImpl {
    shared: Rc<Shared>,
    caller: Caller,
    alone: bool,
    id: TapeId,
    of: TapeOf,
}

impl TapeImpl {
    async fn run_backward(&self, params: wire::tape::BackwardParams) -> Result<(Grads, Timing), Failure> {
        let (given, grad, relay) = {
            let params = params.get().map_err(decode)?;
            let relay = Relay::read(params.get_relay().map_err(decode)?).map_err(decode)?;
            let grad = codec::read_grad_want(params.get_grad().map_err(decode)?).map_err(decode)?;
            let given = match relay.from {
                None => Some(
                    codec::read_tensor(params.get_grad_output().map_err(decode)?, &self.caller.parts)
                        .map_err(decode)?,
                ),
                Some(_) => None,
            };
            (given, grad, relay)
        };
        drop(params);
        let grad_output = self.shared.input(given, &relay).await?;
        let (tapes, id, of) = (Arc::clone(&self.shared.tapes), self.id, self.of);
        let job = Job::Backward(Backward { tapes, id, of, grad_output, want: grad });
        let (Done::Grads(mut grads), timing) = self.shared.engine.run(self.caller.client, job, self.alone).await?
        else {
            return Err(invalid("a backward without gradients"));
        };
        self.shared.board.computed(Method::Backward, of.positions, of.span.len(), timing);
        grads.input = self.shared.hand_on(grads.input, &relay).await?;
        Ok((grads, timing))
    }
}

impl Drop for TapeImpl {
    fn drop(&mut self) {
        let kept = lock(&self.shared.tapes).take(self.id);
        // Outside the lock: freeing a graph takes a while.
        drop(kept);
    }
}

impl wire::tape::Server for TapeImpl {
    async fn backward(
        self: CapRc<Self>,
        params: wire::tape::BackwardParams,
        mut results: wire::tape::BackwardResults,
    ) -> Result<(), capnp::Error> {
        let answering = Answering::new(&self.shared, Method::Backward);
        let outcome = self.run_backward(params).await;
        answering.answered(&outcome);
        match outcome {
            Ok((grads, timing)) => {
                timing.write(results.get().init_timing());
                codec::write_grads(results.get().init_grads(), &grads, &self.caller.parts);
            }
            Err(failure) => failure.write(results.get().init_failure()),
        }
        Ok(())
    }
}

fn decode(error: impl Into<DecodeError>) -> Failure {
    let error = error.into();
    let code = if error.is_damage() { FailureCode::Unreadable } else { FailureCode::InvalidRequest };
    Failure::new(code, in_one_line(&error))
}

/// A panic elsewhere leaves the store usable: every change to it is whole.
pub(crate) fn lock(tapes: &Mutex<TapeStore>) -> MutexGuard<'_, TapeStore> {
    tapes.lock().unwrap_or_else(PoisonError::into_inner)
}
