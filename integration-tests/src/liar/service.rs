//! Capabilities of a lying proxy. Each holds the real server's capability of the same kind.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use capnp::capability::Rc as CapRc;
use sepal_core::{HostTensor, HostTunable, Span};
use sepal_wire::codec::{self, DecodeError, Grads};
use sepal_wire::sepal_capnp::block_server::{
    DeliverParams, DeliverResults, DescribeParams, DescribeResults, OpenParams, OpenResults,
};
use sepal_wire::sepal_capnp::session::{TuneParams, TuneResults};
use sepal_wire::sepal_capnp::tuned::{ForwardParams, ForwardResults};
use sepal_wire::{Failure, Parts, Relay, ServerInfo, Timing, sepal_capnp as wire};

use super::lies::{ESCAPES, Lie};
use super::{Liar, description, tensors};

/// Connection of one client, with a connection to the real server.
pub(super) struct Connection {
    liar: Arc<Liar>,
    server: wire::block_server::Client,
    server_parts: Parts,
    parts: Parts,
    /// Answers of this step and of the one before.
    outputs: RefCell<History<HostTensor>>,
    grads: RefCell<History<Grads>>,
}

/// Answers of two steps.
struct History<T> {
    previous: Vec<T>,
    current: Vec<T>,
}

impl<T> Default for History<T> {
    fn default() -> Self {
        Self { previous: Vec::new(), current: Vec::new() }
    }
}

impl<T: Clone> History<T> {
    fn begin_step(&mut self) {
        if !self.current.is_empty() {
            self.previous = std::mem::take(&mut self.current);
        }
    }

    /// Adds an answer. Returns the one of the step before that had its place.
    fn replace(&mut self, answer: &T) -> Option<T> {
        self.current.push(answer.clone());
        let index = (self.current.len() - 1).min(self.previous.len().checked_sub(1)?);
        self.previous.get(index).cloned()
    }
}

impl Connection {
    pub(super) fn new(liar: Arc<Liar>, server: wire::block_server::Client, server_parts: Parts, parts: Parts) -> Self {
        Self { liar, server, server_parts, parts, outputs: RefCell::default(), grads: RefCell::default() }
    }

    fn lie(&self) -> Lie {
        self.liar.lie
    }

    /// Returns the failure that the liar reports in place of a result, if its lie is one. Never returns for a liar that
    /// never answers.
    async fn instead_of_result(&self, is_lie: bool) -> Result<Option<Failure>, capnp::Error> {
        if !is_lie {
            return Ok(None);
        }
        match self.lie() {
            Lie::NoAnswers => {
                self.liar.count_lie();
                std::future::pending().await
            }
            Lie::Exceptions => {
                self.liar.count_lie();
                Err(capnp::Error::failed(ESCAPES.to_owned()))
            }
            lie => Ok(lie.failure().inspect(|_| self.liar.count_lie())),
        }
    }

    fn alter_output(&self, output: HostTensor, shortened: Option<HostTensor>, is_lie: bool) -> HostTensor {
        let lie = self.lie();
        let stale = self.outputs.borrow_mut().replace(&output);
        if !is_lie || !lie.alters_outputs() {
            return output;
        }
        let altered = match lie {
            Lie::OutputsStale => stale.map(|stale| tensors::resized(&stale, &output)),
            Lie::OutputsOfFewerBlocks => shortened,
            _ => Some(tensors::alter_output(&output, lie, &self.liar.huge)),
        };
        if altered.is_some() {
            self.liar.count_lie();
        }
        altered.unwrap_or(output)
    }

    fn alter_grads(&self, mut grads: Grads, is_lie: bool) -> Grads {
        let lie = self.lie();
        let stale = self.grads.borrow_mut().replace(&grads);
        if !is_lie || !lie.alters_grads() {
            return grads;
        }
        if lie == Lie::GradsStale {
            let Some(stale) = stale else { return grads };
            grads = resized_grads(&stale, grads);
        } else {
            tensors::alter_grads(&mut grads, lie, &self.liar.huge);
        }
        self.liar.count_lie();
        grads
    }

    /// Durations as the liar states them.
    fn timing(&self, reader: capnp::Result<wire::timing::Reader<'_>>) -> Result<Timing, capnp::Error> {
        let mut timing = Timing::read(reader?);
        if self.lie() == Lie::SpeedAbsurd {
            let absurd = Duration::from_micros(u64::MAX);
            timing = Timing { queued: absurd, computed: absurd };
        }
        Ok(timing)
    }
}

/// Returns stale gradients in the shapes of others.
fn resized_grads(stale: &Grads, mut grads: Grads) -> Grads {
    if let (Some(stale), Some(input)) = (&stale.input, &mut grads.input) {
        *input = tensors::resized(stale, input);
    }
    for (stale, HostTunable { tensor, .. }) in stale.tunables.iter().zip(&mut grads.tunables) {
        *tensor = tensors::resized(&stale.tensor, tensor);
    }
    grads
}

/// Counts a call. Yields true if its result is a lie, and ends the call if the lie is a failure in place of a result.
macro_rules! begin_call {
    ($connection:ident, $results:ident) => {{
        let is_lie = $connection.liar.begin_call();
        if let Some(failure) = $connection.instead_of_result(is_lie).await? {
            failure.write($results.get().init_failure());
            return Ok(());
        }
        is_lie
    }};
}

/// Writes the failure of the real server, if its answer has one, and ends the call.
macro_rules! pass_failure {
    ($answer:ident, $results:ident) => {
        if $answer.has_failure() {
            Failure::read($answer.get_failure()?).map_err(decoded)?.write($results.get().init_failure());
            return Ok(());
        }
    };
}

/// Writes the altered gradients of the real server's answer.
macro_rules! write_backward_results {
    ($connection:ident, $answer:ident, $results:ident, $is_lie:expr) => {
        pass_failure!($answer, $results);
        $connection.timing($answer.get_timing())?.write($results.get().init_timing());
        if $is_lie && $connection.lie() == Lie::EmptyAnswers {
            $connection.liar.count_lie();
            return Ok(());
        }
        let grads = codec::read_grads($answer.get_grads()?, &$connection.server_parts).map_err(decoded)?;
        let grads = $connection.alter_grads(grads, $is_lie);
        codec::write_grads($results.get().init_grads(), &grads, &$connection.parts);
    };
}

/// Bootstrap capability.
pub(super) struct RootLiar(pub(super) Rc<Connection>);

impl wire::block_server::Server for RootLiar {
    async fn describe(self: CapRc<Self>, _: DescribeParams, mut results: DescribeResults) -> capnp::Result<()> {
        let connection = &self.0;
        let answer = connection.server.describe_request().send().promise.await?;
        let mut info = ServerInfo::read(answer.get()?.get_info()?).map_err(decoded)?;
        description::lure(&mut info);
        if connection.liar.is_lying() && description::alter(&mut info, connection.lie()) {
            connection.liar.count_lie();
        }
        info.write(results.get().init_info());
        Ok(())
    }

    async fn open(self: CapRc<Self>, params: OpenParams, mut results: OpenResults) -> capnp::Result<()> {
        let params = params.get()?;
        let span = codec::read_span(params.get_span()?).map_err(decoded)?;
        let protocols = [params.get_oldest_protocol(), params.get_protocol()];
        let session = open(&self.0, span, protocols).await?;
        let session = match session {
            Ok(session) => session,
            Err(failure) => {
                failure.write(results.get().init_failure());
                return Ok(());
            }
        };
        // A session without the last block, for outputs of fewer blocks.
        let shortened = match Span::new(span.start(), span.end().saturating_sub(1)) {
            Ok(shorter) if self.0.lie() == Lie::OutputsOfFewerBlocks => open(&self.0, shorter, protocols).await?.ok(),
            _ => None,
        };
        let span = Span::new(span.start(), span.end().saturating_sub(1)).unwrap_or(span);
        let session = SessionLiar { connection: Rc::clone(&self.0), session, shortened, shorter: span };
        results.get().set_session(capnp_rpc::new_client(session));
        Ok(())
    }

    async fn deliver(self: CapRc<Self>, params: DeliverParams, mut results: DeliverResults) -> capnp::Result<()> {
        let connection = &self.0;
        let mut request = connection.server.deliver_request();
        let params = params.get()?;
        request.get().set_key(params.get_key()?);
        let tensor = codec::read_tensor(params.get_tensor()?, &connection.parts).map_err(decoded)?;
        codec::write_tensor(request.get().init_tensor(), &tensor, &connection.server_parts);
        let answer = request.send().promise.await?;
        let answer = answer.get()?;
        pass_failure!(answer, results);
        Ok(())
    }
}

/// Opens a session at the real server.
async fn open(
    connection: &Connection,
    span: Span,
    [oldest, newest]: [u32; 2],
) -> capnp::Result<Result<wire::session::Client, Failure>> {
    let mut request = connection.server.open_request();
    codec::write_span(request.get().init_span(), span);
    request.get().set_protocol(newest);
    request.get().set_oldest_protocol(oldest);
    let answer = request.send().promise.await?;
    let answer = answer.get()?;
    if answer.has_failure() {
        return Ok(Err(Failure::read(answer.get_failure()?).map_err(decoded)?));
    }
    Ok(Ok(answer.get_session()?))
}

struct SessionLiar {
    connection: Rc<Connection>,
    session: wire::session::Client,
    /// Session without the last block, and its blocks.
    shortened: Option<wire::session::Client>,
    shorter: Span,
}

impl wire::session::Server for SessionLiar {
    async fn tune(self: CapRc<Self>, params: TuneParams, mut results: TuneResults) -> capnp::Result<()> {
        let connection = &self.connection;
        let params = params.get()?;
        let exclusive = params.get_alone();
        let tunables = codec::read_tunables(params.get_tunables()?, &connection.parts).map_err(decoded)?;
        let answer = tune(connection, &self.session, &tunables, exclusive).await?;
        let answer = answer.get()?;
        pass_failure!(answer, results);
        let tuned = answer.get_tuned()?;
        let mut shortened = None;
        if let Some(session) = &self.shortened {
            let parts = tunables.iter().map(|tunable| tunable.within(self.shorter));
            let parts =
                parts.collect::<Result<Vec<_>, _>>().map_err(|error| capnp::Error::failed(error.to_string()))?;
            let parts: Vec<HostTunable> = parts.into_iter().flatten().collect();
            let answer = tune(connection, session, &parts, exclusive).await?;
            shortened = Some(answer.get()?.get_tuned()?);
        }
        connection.outputs.borrow_mut().begin_step();
        connection.grads.borrow_mut().begin_step();
        let tuned = TunedLiar { connection: Rc::clone(connection), tuned, shortened };
        results.get().set_tuned(capnp_rpc::new_client(tuned));
        Ok(())
    }
}

/// Uploads tunables to the real server.
async fn tune(
    connection: &Connection,
    session: &wire::session::Client,
    tunables: &[HostTunable],
    exclusive: bool,
) -> capnp::Result<capnp::capability::Response<wire::session::tune_results::Owned>> {
    let mut request = session.tune_request();
    let length = u32::try_from(tunables.len()).unwrap_or(u32::MAX);
    codec::write_tunables(request.get().init_tunables(length), tunables, &connection.server_parts);
    request.get().set_alone(exclusive);
    request.send().promise.await
}

struct TunedLiar {
    connection: Rc<Connection>,
    tuned: wire::tuned::Client,
    shortened: Option<wire::tuned::Client>,
}

/// Answer of the real server to a forward pass.
type ForwardAnswer = capnp::capability::Response<wire::tuned::forward_results::Owned>;

impl TunedLiar {
    /// Makes the forward pass at the real server, with the blocks of `tuned`.
    async fn forward_at(
        &self,
        tuned: &wire::tuned::Client,
        params: &ForwardParams,
        keep_tape: bool,
    ) -> capnp::Result<ForwardAnswer> {
        let Connection { parts, server_parts, .. } = &*self.connection;
        let mut request = tuned.forward_request();
        {
            let params = params.get()?;
            let relay = Relay::read(params.get_relay()?).map_err(decoded)?;
            let batch = params.get_batch()?;
            let mut sent = request.get();
            if relay.from.is_some() {
                // The real server receives the hidden states through this proxy, under the same key.
                let mut rows = sent.reborrow().init_batch();
                rows.set_prefix_len(batch.get_prefix_len());
                rows.set_prefix_kept(batch.get_prefix_kept());
                rows.set_offsets(batch.get_offsets()?)?;
            } else {
                let batch = codec::read_batch(batch, parts).map_err(decoded)?;
                codec::write_batch(sent.reborrow().init_batch(), &batch, server_parts);
            }
            sent.set_want(params.get_want()?);
            sent.set_keep_tape(keep_tape);
            sent.set_dtype(params.get_dtype()?);
            relay.write(sent.init_relay());
        }
        request.send().promise.await
    }

    /// Returns the output of all blocks but the last one.
    async fn shortened_output(&self, params: &ForwardParams) -> capnp::Result<Option<HostTensor>> {
        let Some(shortened) = &self.shortened else { return Ok(None) };
        let answer = self.forward_at(shortened, params, false).await?;
        let answer = answer.get()?;
        if answer.has_failure() || !answer.has_output() {
            return Ok(None);
        }
        codec::read_tensor(answer.get_output()?, &self.connection.server_parts).map(Some).map_err(decoded)
    }
}

impl wire::tuned::Server for TunedLiar {
    async fn forward(self: CapRc<Self>, params: ForwardParams, mut results: ForwardResults) -> capnp::Result<()> {
        let connection = &self.connection;
        let is_lie = begin_call!(connection, results);
        let keep_tape = params.get()?.get_keep_tape();
        let answer = self.forward_at(&self.tuned, &params, keep_tape).await?;
        let answer = answer.get()?;
        pass_failure!(answer, results);
        let shortened = if is_lie { self.shortened_output(&params).await? } else { None };
        connection.timing(answer.get_timing())?.write(results.get().init_timing());
        results.get().set_not_finite(answer.get_not_finite());
        if is_lie && connection.lie() == Lie::EmptyAnswers {
            connection.liar.count_lie();
            return Ok(());
        }
        if answer.has_output() {
            let output = codec::read_tensor(answer.get_output()?, &connection.server_parts).map_err(decoded)?;
            let output = connection.alter_output(output, shortened, is_lie);
            codec::write_tensor(results.get().init_output(), &output, &connection.parts);
        }
        if answer.has_tape() {
            let tape = TapeLiar { connection: Rc::clone(connection), tape: answer.get_tape()? };
            results.get().set_tape(capnp_rpc::new_client(tape));
        }
        Ok(())
    }

    async fn backward(
        self: CapRc<Self>,
        params: wire::tuned::BackwardParams,
        mut results: wire::tuned::BackwardResults,
    ) -> Result<(), capnp::Error> {
        let connection = &self.connection;
        let is_lie = begin_call!(connection, results);
        let mut request = self.tuned.backward_request();
        {
            let params = params.get()?;
            let batch = codec::read_batch(params.get_batch()?, &connection.parts).map_err(decoded)?;
            let grad_output = codec::read_tensor(params.get_grad_output()?, &connection.parts).map_err(decoded)?;
            let grad_want = codec::read_grad_want(params.get_grad()?).map_err(decoded)?;
            let mut sent = request.get();
            codec::write_batch(sent.reborrow().init_batch(), &batch, &connection.server_parts);
            sent.set_want(params.get_want()?);
            codec::write_tensor(sent.reborrow().init_grad_output(), &grad_output, &connection.server_parts);
            codec::write_grad_want(sent.init_grad(), grad_want);
        }
        let answer = request.send().promise.await?;
        let answer = answer.get()?;
        write_backward_results!(connection, answer, results, is_lie);
        Ok(())
    }
}

struct TapeLiar {
    connection: Rc<Connection>,
    tape: wire::tape::Client,
}

impl wire::tape::Server for TapeLiar {
    async fn backward(
        self: CapRc<Self>,
        params: wire::tape::BackwardParams,
        mut results: wire::tape::BackwardResults,
    ) -> Result<(), capnp::Error> {
        let connection = &self.connection;
        let is_lie = begin_call!(connection, results);
        let mut request = self.tape.backward_request();
        {
            let params = params.get()?;
            let relay = Relay::read(params.get_relay()?).map_err(decoded)?;
            let grad_want = codec::read_grad_want(params.get_grad()?).map_err(decoded)?;
            let mut sent = request.get();
            if relay.from.is_none() {
                let grad_output = codec::read_tensor(params.get_grad_output()?, &connection.parts).map_err(decoded)?;
                codec::write_tensor(sent.reborrow().init_grad_output(), &grad_output, &connection.server_parts);
            }
            codec::write_grad_want(sent.reborrow().init_grad(), grad_want);
            relay.write(sent.init_relay());
        }
        let answer = request.send().promise.await?;
        let answer = answer.get()?;
        write_backward_results!(connection, answer, results, is_lie);
        Ok(())
    }
}

fn decoded(error: DecodeError) -> capnp::Error {
    capnp::Error::failed(error.to_string())
}
