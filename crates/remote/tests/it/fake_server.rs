//! Servers that compute in plain numbers and may misbehave. A block doubles hidden states; the gradient of a tunable is the sum
//! of the gradient of the block's output, in all of its numbers.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use capnp::capability::Rc as CapRc;
use sepal_core::{DType, HostTensor, HostTunable, Span, Want};
use sepal_swarm::{Connect, Connecting, Endpoint, InProcess, Incoming, Listener, Stream};
use sepal_wire::codec::{self, GradWant, Grads, InputGrad, WireBatch};
use sepal_wire::{Failure, FailureCode, Limits, Load, Parts, ServerInfo, rpc, sepal_capnp as wire};
use tokio::sync::Notify;
use tokio::task::LocalSet;

pub(crate) const N_BLOCKS: usize = 3;
pub(crate) const HIDDEN: usize = 4;
pub(crate) const DIGEST: &str = "digest of the fake model";
const MAX_MESSAGE_BYTES: u64 = 1 << 30;
/// Far more than any answer of these tests.
const HUGE_BYTES: usize = 4 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Behaviour {
    Honest,
    /// Gradients of the input with 16 numbers for each position.
    WideGradients,
    /// Gradients of the input with one dimension more.
    DeepGradients,
    /// Gradients of the input alone.
    NoTunableGradients,
    /// Gradients of tunables with one row.
    FlatTunableGradients,
    WideHidden,
    HugeHidden,
    RefusesForward,
    /// Refuses its first call.
    RefusesOnce,
    RefusesBackward,
    Overloaded,
    Expired,
    NotServed,
    Leaving,
    NoTape,
    /// Hidden states times 1.5.
    ScaledHidden,
    /// Refuses calls without a tape, as those of checks are.
    RefusesChecks,
    ClosesInBackward,
    NonFiniteHidden,
    NonFiniteGradients,
    /// Names a block that the model does not have.
    WrongBlock,
    SmallLimits,
    NoLimits,
    OtherModel,
    /// Answers probes as a busy server and calls never.
    Silent,
}

impl Behaviour {
    /// Returns the failure of each call with these methods.
    fn failure(self, is_backward: bool) -> Option<Failure> {
        let (code, message) = match self {
            Self::RefusesForward if !is_backward => (FailureCode::InvalidRequest, "this request is wrong"),
            Self::RefusesBackward if is_backward => (FailureCode::InvalidRequest, "this request is wrong"),
            Self::Overloaded => (FailureCode::Overloaded, "later"),
            Self::Expired if is_backward => (FailureCode::TapeExpired, "gone"),
            Self::NotServed => (FailureCode::NotServed, "other blocks"),
            Self::Leaving => (FailureCode::ShuttingDown, "leaving"),
            _ => return None,
        };
        Some(Failure::new(code, message))
    }
}

/// Server in a thread of its own, which ends with the last copy of the endpoint.
pub(crate) struct FakeServer {
    pub(crate) endpoint: Endpoint,
    forward_calls: Arc<AtomicUsize>,
}

impl FakeServer {
    pub(crate) fn start(name: &str, blocks: &str, behaviour: Behaviour) -> Self {
        let (inner, incoming) = InProcess::new();
        let forward_calls = Arc::new(AtomicUsize::new(0));
        let span = blocks.parse().expect("a span");
        let state = State { span, behaviour, forward_calls: Arc::clone(&forward_calls) };
        std::thread::spawn(move || serve(incoming, state));
        let endpoint = Endpoint::Custom(Arc::new(NamedEndpoint { name: name.to_owned(), inner }));
        Self { endpoint, forward_calls }
    }

    pub(crate) fn forward_calls(&self) -> usize {
        self.forward_calls.load(Ordering::SeqCst)
    }
}

#[derive(Debug)]
struct NamedEndpoint {
    name: String,
    inner: InProcess,
}

impl Connect for NamedEndpoint {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn connect(&self) -> Connecting<'_> {
        let endpoint = Endpoint::InProcess(self.inner.clone());
        Box::pin(async move { endpoint.connect().await })
    }
}

#[derive(Clone)]
struct State {
    span: Span,
    behaviour: Behaviour,
    forward_calls: Arc<AtomicUsize>,
}

fn serve(incoming: Incoming, state: State) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    LocalSet::new().block_on(&runtime, async move {
        let mut listener = Listener::InProcess(incoming);
        while let Some(Ok(accepted)) = listener.accept().await {
            let connection = Connection { state: state.clone(), parts: Parts::default(), end: Rc::default() };
            tokio::task::spawn_local(serve_connection(accepted.stream, connection));
        }
    });
}

async fn serve_connection(stream: Stream, connection: Connection) {
    let Stream { reader, writer, .. } = stream;
    let (parts, end) = (connection.parts.clone(), Rc::clone(&connection.end));
    let root = capnp_rpc::new_client(Root(connection));
    let closing = async {
        end.notified().await;
        parts.activity().close(capnp::Error::disconnected("closed".to_owned()));
        std::future::pending::<()>().await;
    };
    tokio::select! {
        _ = rpc::server(reader, writer, MAX_MESSAGE_BYTES, root, &parts, None) => {}
        () = closing => {}
    }
}

#[derive(Clone)]
struct Connection {
    state: State,
    parts: Parts,
    /// Closes the connection.
    end: Rc<Notify>,
}

impl Connection {
    fn behaviour(&self) -> Behaviour {
        self.state.behaviour
    }
}

struct Root(Connection);

impl wire::block_server::Server for Root {
    async fn describe(
        self: CapRc<Self>,
        _: wire::block_server::DescribeParams,
        mut results: wire::block_server::DescribeResults,
    ) -> capnp::Result<()> {
        let State { span, behaviour, .. } = self.0.state;
        let is_honest = behaviour == Behaviour::Honest;
        let max_message_bytes = match behaviour {
            // Two positions.
            Behaviour::SmallLimits => 8 * HIDDEN as u64,
            Behaviour::NoLimits => 0,
            _ => Limits::default().max_message_bytes,
        };
        let model_digest = if behaviour == Behaviour::OtherModel { "another model" } else { DIGEST };
        let info = ServerInfo {
            protocol: sepal_wire::PROTOCOL,
            oldest_protocol: sepal_wire::OLDEST_CLIENT,
            software: String::new(),
            model_digest: model_digest.to_owned(),
            family: String::new(),
            n_blocks: N_BLOCKS,
            hidden: HIDDEN,
            span,
            compute_dtype: DType::F32,
            weights: String::new(),
            limits: Limits { max_message_bytes, ..Limits::default() },
            // Plans prefer servers that state a high speed.
            load: Load { queue: 1, rate: if is_honest { 1e-3 } else { 1e-9 }, ..Load::default() },
            tape_token_bytes: 0,
            draining: false,
            tunables: Vec::new(),
            name: None,
            key: None,
            receipts: 0,
        };
        info.write(results.get().init_info());
        Ok(())
    }

    async fn open(
        self: CapRc<Self>,
        params: wire::block_server::OpenParams,
        mut results: wire::block_server::OpenResults,
    ) -> capnp::Result<()> {
        let span = codec::read_span(params.get()?.get_span()?).map_err(failed)?;
        results.get().set_session(capnp_rpc::new_client(Session { connection: self.0.clone(), span }));
        Ok(())
    }
}

struct Session {
    connection: Connection,
    span: Span,
}

impl wire::session::Server for Session {
    async fn tune(
        self: CapRc<Self>,
        params: wire::session::TuneParams,
        mut results: wire::session::TuneResults,
    ) -> capnp::Result<()> {
        let tunables = codec::read_tunables(params.get()?.get_tunables()?, &self.connection.parts).map_err(failed)?;
        let tuned = StepSession { connection: self.connection.clone(), span: self.span, tunables: Rc::new(tunables) };
        results.get().set_tuned(capnp_rpc::new_client(tuned));
        Ok(())
    }
}

struct StepSession {
    connection: Connection,
    span: Span,
    tunables: Rc<Vec<HostTunable>>,
}

impl wire::tuned::Server for StepSession {
    async fn forward(
        self: CapRc<Self>,
        params: wire::tuned::ForwardParams,
        mut results: wire::tuned::ForwardResults,
    ) -> capnp::Result<()> {
        let (behaviour, parts) = (self.connection.behaviour(), &self.connection.parts);
        let n_before = self.connection.state.forward_calls.fetch_add(1, Ordering::SeqCst);
        if behaviour == Behaviour::Silent {
            return std::future::pending().await;
        }
        let is_first = behaviour == Behaviour::RefusesOnce && n_before == 0;
        let behaviour = if is_first { Behaviour::RefusesForward } else { behaviour };
        let keep_tape = params.get()?.get_keep_tape();
        let refuses = behaviour == Behaviour::RefusesChecks && !keep_tape;
        let behaviour = if refuses { Behaviour::RefusesForward } else { behaviour };
        if let Some(failure) = behaviour.failure(false) {
            failure.write(results.get().init_failure());
            return Ok(());
        }
        let want = codec::want_from_wire(params.get()?.get_want()?);
        let batch = codec::read_batch(params.get()?.get_batch()?, parts).map_err(failed)?;
        let pass = PassOfSpan { span: self.span, tunables: Rc::clone(&self.tunables), batch, want };
        let hidden = pass.forward();
        let rows = hidden.shape()[0];
        let hidden = match behaviour {
            Behaviour::WideHidden => filled(&[rows, 2 * HIDDEN], 0.0),
            Behaviour::HugeHidden => filled(&[HUGE_BYTES / 4 / HIDDEN, HIDDEN], 0.0),
            Behaviour::NonFiniteHidden => filled(&[rows, HIDDEN], f32::NAN),
            Behaviour::ScaledHidden => {
                let scaled: Vec<f32> = hidden.to_f32().iter().map(|value| 1.5 * value).collect();
                HostTensor::from_f32(hidden.shape().to_vec(), &scaled).expect("hidden states")
            }
            _ => hidden,
        };
        if behaviour == Behaviour::WrongBlock {
            results.get().set_not_finite(codec::block_to_wire(Some(99)));
        }
        codec::write_tensor(results.get().init_output(), &hidden, parts);
        if keep_tape && behaviour != Behaviour::NoTape {
            results.get().set_tape(capnp_rpc::new_client(Tape { connection: self.connection.clone(), pass }));
        }
        Ok(())
    }

    async fn backward(
        self: CapRc<Self>,
        params: wire::tuned::BackwardParams,
        mut results: wire::tuned::BackwardResults,
    ) -> capnp::Result<()> {
        if self.connection.behaviour() == Behaviour::RefusesChecks {
            Failure::new(FailureCode::Overloaded, "later").write(results.get().init_failure());
            return Ok(());
        }
        let parts = &self.connection.parts;
        let want = codec::want_from_wire(params.get()?.get_want()?);
        let batch = codec::read_batch(params.get()?.get_batch()?, parts).map_err(failed)?;
        let grad_output = codec::read_tensor(params.get()?.get_grad_output()?, parts).map_err(failed)?;
        let grad_want = codec::read_grad_want(params.get()?.get_grad()?).map_err(failed)?;
        let pass = PassOfSpan { span: self.span, tunables: Rc::clone(&self.tunables), batch, want };
        match answer_backward(&self.connection, &pass, &grad_output, grad_want).await {
            Ok(grads) => codec::write_grads(results.get().init_grads(), &grads, parts),
            Err(failure) => failure.write(results.get().init_failure()),
        }
        Ok(())
    }
}

struct Tape {
    connection: Connection,
    pass: PassOfSpan,
}

impl wire::tape::Server for Tape {
    async fn backward(
        self: CapRc<Self>,
        params: wire::tape::BackwardParams,
        mut results: wire::tape::BackwardResults,
    ) -> capnp::Result<()> {
        let parts = &self.connection.parts;
        let grad_output = codec::read_tensor(params.get()?.get_grad_output()?, parts).map_err(failed)?;
        let grad_want = codec::read_grad_want(params.get()?.get_grad()?).map_err(failed)?;
        match answer_backward(&self.connection, &self.pass, &grad_output, grad_want).await {
            Ok(grads) => codec::write_grads(results.get().init_grads(), &grads, parts),
            Err(failure) => failure.write(results.get().init_failure()),
        }
        Ok(())
    }
}

async fn answer_backward(
    connection: &Connection,
    pass: &PassOfSpan,
    grad_output: &HostTensor,
    want: GradWant,
) -> Result<Grads, Failure> {
    let behaviour = connection.behaviour();
    if behaviour == Behaviour::ClosesInBackward {
        connection.end.notify_one();
        return std::future::pending().await;
    }
    if let Some(failure) = behaviour.failure(true) {
        return Err(failure);
    }
    let expected = pass.output_positions().len();
    if grad_output.shape() != [expected, HIDDEN] {
        let message = format!("the gradient has shape {:?}", grad_output.shape());
        return Err(Failure::new(FailureCode::InvalidRequest, message));
    }
    let mut grads = pass.backward(grad_output, want);
    let input_rows = grads.input.as_ref().map(|input| input.shape()[0]);
    match behaviour {
        Behaviour::WideGradients => grads.input = input_rows.map(|rows| filled(&[rows, 16], 1.0)),
        Behaviour::DeepGradients => grads.input = input_rows.map(|rows| filled(&[rows, rows, HIDDEN], 1.0)),
        Behaviour::NonFiniteGradients => grads.input = input_rows.map(|rows| filled(&[rows, HIDDEN], f32::NAN)),
        Behaviour::NoTunableGradients => grads.tunables.clear(),
        Behaviour::FlatTunableGradients => {
            for tunable in &mut grads.tunables {
                tunable.tensor = filled(&[tunable.tensor.shape()[0], 1, HIDDEN], 1.0);
            }
        }
        _ => {}
    }
    Ok(grads)
}

/// Forward pass of one batch.
struct PassOfSpan {
    span: Span,
    tunables: Rc<Vec<HostTunable>>,
    batch: WireBatch,
    want: Want,
}

impl PassOfSpan {
    /// Positions of the batch that the output has.
    fn output_positions(&self) -> Vec<usize> {
        let WireBatch { prefix_len, rows, .. } = &self.batch;
        match self.want {
            Want::All => (0..self.batch.positions()).collect(),
            Want::Tokens => (*prefix_len..self.batch.positions()).collect(),
            Want::LastOfRows | Want::MeanOfRows => {
                (0..rows.len()).map(|row| prefix_len + rows.range(row).end - 1).collect()
            }
        }
    }

    fn forward(&self) -> HostTensor {
        let factor = (1_u32 << self.span.len()) as f32;
        let hidden: Vec<f32> = self.batch.hidden.to_f32().iter().map(|value| value * factor).collect();
        let positions = self.output_positions();
        let values: Vec<f32> =
            positions.iter().flat_map(|&position| &hidden[position * HIDDEN..][..HIDDEN]).copied().collect();
        HostTensor::from_f32(vec![positions.len(), HIDDEN], &values).expect("hidden states")
    }

    fn backward(&self, grad_output: &HostTensor, want: GradWant) -> Grads {
        let positions = self.batch.positions();
        let mut grad = vec![0.0_f32; positions * HIDDEN];
        let grad_output = grad_output.to_f32();
        for (row, position) in self.output_positions().into_iter().enumerate() {
            grad[position * HIDDEN..][..HIDDEN].copy_from_slice(&grad_output[row * HIDDEN..][..HIDDEN]);
        }
        let mut tunables = if want.tunables { self.tunables.to_vec() } else { Vec::new() };
        let mut sums = Vec::new();
        for _ in self.span.blocks() {
            sums.push(grad.iter().sum::<f32>());
            grad.iter_mut().for_each(|value| *value *= 2.0);
        }
        // Of the first block first.
        sums.reverse();
        for tunable in &mut tunables {
            let shape = tunable.tensor.shape().to_vec();
            let per_block: usize = shape[1..].iter().product();
            let first = tunable.first_block - self.span.start();
            let values: Vec<f32> =
                sums[first..][..shape[0]].iter().flat_map(|&sum| std::iter::repeat_n(sum, per_block)).collect();
            tunable.tensor = HostTensor::from_f32(shape, &values).expect("a gradient");
        }
        let n_wanted = match want.input {
            InputGrad::All => Some(positions),
            InputGrad::Prefix => Some(self.batch.prefix_len),
            InputGrad::None => None,
        };
        let input = n_wanted.map(|n| HostTensor::from_f32(vec![n, HIDDEN], &grad[..n * HIDDEN]).expect("a gradient"));
        Grads { input, tunables, not_finite: None }
    }
}

fn filled(shape: &[usize], value: f32) -> HostTensor {
    HostTensor::from_f32(shape.to_vec(), &vec![value; shape.iter().product()]).expect("a tensor")
}

fn failed(error: codec::DecodeError) -> capnp::Error {
    capnp::Error::failed(error.to_string())
}
