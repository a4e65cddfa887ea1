use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use sepal_core::{DType, HostTensor, NamedHostTensor, Ragged, Span};
use sepal_nn::host::{from_host, share_from_host, share_to_host, to_host};
use sepal_route::Hop;
use sepal_swarm::{Endpoint, RemoteOptions, Sightings, Traffic};
use sepal_wire::ServerInfo;
use sepal_wire::codec::{InputGrad, WireBatch};
use tch::Tensor;
use tokio::sync::{mpsc, oneshot};

use crate::backward::{Backward, Failed};
use crate::chain::ClientWant;
use crate::cuts::{Cuts, PARTS};
use crate::error::RemoteError;
use crate::servers::{ServerUsage, SharedRouter};
use crate::step::Step;
use crate::thread::{self as rpc, Command, Setup, Source};

/// The model that servers must serve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelExpectation {
    /// Digest of its checkpoint.
    pub digest: String,
    /// Its number of blocks.
    pub n_blocks: usize,
    /// Its hidden size.
    pub hidden: usize,
}

/// All blocks of a model, or all from one on, on other machines.
#[derive(Debug)]
pub struct RemoteSequential {
    commands: mpsc::UnboundedSender<Command>,
    thread: Option<JoinHandle<()>>,
    traffic: Traffic,
    expected: ModelExpectation,
    options: RemoteOptions,
    servers: Vec<ServerInfo>,
    router: SharedRouter,
    relays: Arc<AtomicU64>,
    cuts: RefCell<Cuts>,
    next_version: Cell<u64>,
    failed: Failed,
}

impl RemoteSequential {
    /// Connects to the servers and checks what they are.
    ///
    /// # Errors
    /// [`RemoteError::WrongModel`] if one serves something else; [`RemoteError::Uncovered`] if those
    /// that can be reached do not hold all blocks.
    pub fn connect(
        endpoints: Vec<Endpoint>,
        expected: ModelExpectation,
        options: RemoteOptions,
    ) -> Result<Self, RemoteError> {
        Self::start(Source::Fixed(endpoints), expected, options)
    }

    /// Connects to servers as they are found, and goes on when those that are there have all blocks.
    ///
    /// # Errors
    /// [`RemoteError::Uncovered`] if they do not within [`RemoteOptions::wait_ms`].
    pub fn discover(
        sightings: Sightings,
        expected: ModelExpectation,
        options: RemoteOptions,
    ) -> Result<Self, RemoteError> {
        Self::start(Source::Found(sightings), expected, options)
    }

    fn start(source: Source, expected: ModelExpectation, options: RemoteOptions) -> Result<Self, RemoteError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(RemoteError::local)?;
        let (commands, queue) = mpsc::unbounded_channel();
        let (ready, met) = oneshot::channel();
        let traffic = Traffic::default();
        let router = SharedRouter::default();
        let relays = Arc::<AtomicU64>::default();
        let setup = Setup {
            source,
            expected: expected.clone(),
            options: options.clone(),
            traffic: traffic.clone(),
            router: router.clone(),
            relays: Arc::clone(&relays),
        };
        let thread = thread::Builder::new()
            .name("sepal-remote".into())
            .spawn(move || rpc::run(&runtime, setup, queue, ready))
            .map_err(RemoteError::local)?;
        let servers = met.blocking_recv().map_err(|_| RemoteError::Stopped)??;
        let next_version = Cell::new(0);
        Ok(Self {
            commands,
            thread: Some(thread),
            traffic,
            expected,
            options,
            servers,
            router,
            relays,
            cuts: RefCell::default(),
            next_version,
            failed: Failed::default(),
        })
    }

    /// What the servers said of themselves when they were met.
    pub fn servers(&self) -> &[ServerInfo] {
        &self.servers
    }

    /// What was made of each server so far, in the order in which they were met.
    pub fn server_usage(&self) -> Vec<ServerUsage> {
        self.router.uses().clone()
    }

    /// Bytes sent and received so far, everything included.
    pub fn traffic(&self) -> &Traffic {
        &self.traffic
    }

    /// How often a micro-batch went forward or back through servers that handed it on to each other.
    pub fn relay_count(&self) -> u64 {
        self.relays.load(Ordering::Relaxed)
    }

    /// Runs the graph of `loss` backward, as [`Tensor::f_backward`] does, whose error is text alone: what servers failed
    /// with comes out as it was.
    ///
    /// # Errors
    /// [`RemoteError`]; gradients that were computed before it have been added up.
    pub fn backward(&self, loss: &Tensor) -> Result<(), RemoteError> {
        // A backward of before may have failed that was run without this.
        drop(self.failed.take());
        loss.f_backward().map_err(|error| self.failed.take().unwrap_or_else(|| RemoteError::local(error)))
    }

    /// The tunables of one optimizer step, stacked by block: each `[n_blocks, ..]`. They go up to each
    /// server once, however many batches are run with them.
    ///
    /// # Errors
    /// [`RemoteError::Shape`] if a tensor is not stacked by block.
    pub fn tune(&self, tunables: Vec<(String, Tensor)>) -> Result<StepSession<'_>, RemoteError> {
        let version = self.new_version();
        let mut named = Vec::with_capacity(tunables.len());
        for (name, tensor) in &tunables {
            if tensor.size().first() != Some(&(self.expected.n_blocks as i64)) {
                let expected = format!("[{}, ..]", self.expected.n_blocks);
                return Err(RemoteError::Shape { what: "a tunable", expected, found: tensor.size() });
            }
            // A copy: the optimizer updates parameters in place, while a retry may still send these.
            let tensor = to_host(tensor, self.options.dtype().for_parameters()).map_err(RemoteError::local)?;
            named.push(NamedHostTensor { name: name.clone(), tensor });
        }
        let step = RefCell::new(Arc::new(Step::new(version, named)));
        Ok(StepSession { remote: self, step, tensors: tunables.into_iter().map(|(_, tensor)| tensor).collect() })
    }
}

impl RemoteSequential {
    fn new_version(&self) -> u64 {
        let version = self.next_version.get();
        self.next_version.set(version + 1);
        version
    }
}

impl Drop for RemoteSequential {
    fn drop(&mut self) {
        // Graphs that are still alive hold senders of their own, so the thread must be told. If it has ended
        // already, there is nobody to tell.
        let _ = self.commands.send(Command::Stop);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that speaks with the servers panicked");
        }
    }
}

/// Remote blocks with the tunables of one optimizer step.
#[derive(Debug)]
pub struct StepSession<'a> {
    remote: &'a RemoteSequential,
    step: RefCell<Arc<Step>>,
    tensors: Vec<Tensor>,
}

impl StepSession<'_> {
    /// Replaces the graph of the tunables, for a second backward pass within one step. The values, which are already
    /// uploaded, must be those of [`RemoteSequential::tune`].
    pub fn set_graph(&mut self, tunables: Vec<(String, Tensor)>) {
        self.tensors = tunables.into_iter().map(|(_, tensor)| tensor).collect();
    }

    /// Runs the blocks on `[prefix; row]` for each row and returns the hidden state of each row's last
    /// token, before the final norm: `[rows, hidden]`.
    ///
    /// `prefix` is `[prefix_len, hidden]`, shared by all rows; `tokens` is `[n_tokens, hidden]`, the rows
    /// end to end. The result is differentiable in the prefix, in the tunables and in the tokens; text that nothing
    /// trainable went into has frozen tokens, whose gradient servers leave out.
    ///
    /// # Errors
    /// [`RemoteError`]; an error in the backward comes out of `f_backward`.
    pub fn forward(&self, prefix: Option<&Tensor>, tokens: &Tensor, rows: &Ragged) -> Result<Tensor, RemoteError> {
        let prefix_len = self.check(prefix, tokens, rows)?;
        let inputs: Vec<&Tensor> = prefix.into_iter().chain([tokens]).chain(&self.tensors).collect();
        let keep = sepal_nn::grad_is_enabled() && inputs.iter().any(|input| input.requires_grad());
        let Split { groups, routes, choice } = split(self.remote, prefix_len, rows)?;
        let begun = Instant::now();
        let batches = self.batches(prefix, tokens, rows, &groups)?.into_iter().zip(routes).collect();
        let (reply, answer) = oneshot::channel();
        let step = self.step_for(prefix.filter(|_| !keep))?;
        self.send(Command::Forward { step: Arc::clone(&step), batches, keep, reply })?;
        let (call, outputs) = answer.blocking_recv().map_err(|_| RemoteError::Stopped)??;
        if let Some(choice) = choice {
            let seconds = begun.elapsed().as_secs_f64();
            self.remote.cuts.borrow_mut().took(choice, seconds / rows.n_tokens() as f64);
        }
        let pooled = assemble(&outputs, &groups)?;
        if !keep {
            return Ok(pooled);
        }
        let backward = Backward {
            commands: self.remote.commands.clone(),
            failed: self.remote.failed.clone(),
            call,
            groups,
            dtype: self.remote.options.dtype(),
            want: ClientWant {
                input: match (tokens.requires_grad(), prefix.is_some_and(Tensor::requires_grad)) {
                    (true, _) => InputGrad::All,
                    (false, true) => InputGrad::Prefix,
                    (false, false) => InputGrad::None,
                },
                tunables: self.tensors.iter().any(Tensor::requires_grad),
            },
            prefix_len: prefix.map(|_| prefix_len),
            rows: rows.clone(),
            tunables: step.tunables.iter().map(|named| (named.name.clone(), named.tensor.shape().to_vec())).collect(),
        };
        sepal_autograd::attach(&inputs, pooled, move |grad| backward.run(grad)).map_err(RemoteError::local)
    }

    /// The step that `prefix` goes with: servers keep one prefix for each, so that another one begins a new step.
    fn step_for(&self, prefix: Option<&Tensor>) -> Result<Arc<Step>, RemoteError> {
        let mut step = self.step.borrow_mut();
        if let Some(prefix) = prefix {
            let prefix = to_host(prefix, DType::F32).map_err(RemoteError::local)?;
            if *step.prefix.get_or_init(|| prefix.clone()) != prefix {
                *step = Arc::new(Step::new(self.remote.new_version(), step.tunables.clone()));
                step.prefix.get_or_init(|| prefix);
            }
        }
        Ok(Arc::clone(&step))
    }

    fn check(&self, prefix: Option<&Tensor>, tokens: &Tensor, rows: &Ragged) -> Result<usize, RemoteError> {
        let hidden = self.remote.expected.hidden as i64;
        if tokens.size() != [rows.n_tokens() as i64, hidden] {
            let expected = format!("[{}, {hidden}]", rows.n_tokens());
            return Err(RemoteError::Shape { what: "the tokens", expected, found: tokens.size() });
        }
        match prefix.map(|prefix| prefix.size()) {
            None => Ok(0),
            Some(size) if size.len() == 2 && size[0] > 0 && size[1] == hidden => Ok(size[0] as usize),
            Some(found) => {
                Err(RemoteError::Shape { what: "the prefix", expected: format!("[prefix_len, {hidden}]"), found })
            }
        }
    }

    /// Prefix and rows of each group, on the host: `[prefix_len + n_tokens of the group, hidden]`.
    fn batches(
        &self,
        prefix: Option<&Tensor>,
        tokens: &Tensor,
        rows: &Ragged,
        groups: &[Vec<usize>],
    ) -> Result<Vec<WireBatch>, RemoteError> {
        let prefix_len = prefix.map_or(0, |prefix| prefix.size()[0] as usize);
        let batch = |group: &Vec<usize>| {
            let part = |&row: &usize| {
                let range = rows.range(row);
                tokens.narrow(0, range.start as i64, range.len() as i64)
            };
            let mut parts: Vec<Tensor> = prefix.map(|prefix| prefix.detach()).into_iter().collect();
            match groups {
                [_] => parts.push(tokens.detach()),
                _ => parts.extend(group.iter().map(part)),
            }
            let hidden = tch::no_grad(|| Tensor::f_cat(&parts, 0)).map_err(RemoteError::local)?;
            let hidden = share_to_host(&hidden, self.remote.options.dtype()).map_err(RemoteError::local)?;
            WireBatch::new(prefix_len, rows.select(group), hidden).map_err(RemoteError::local)
        };
        groups.iter().map(batch).collect()
    }

    fn send(&self, command: Command) -> Result<(), RemoteError> {
        self.remote.commands.send(command).map_err(|_| RemoteError::Stopped)
    }
}

/// Hidden states of one micro-batch at the most. Whatever else goes over a connection waits behind a message, and a call
/// that is asked for too long whether it is there counts as hung. (A backward without a tape sends as much again.)
const MAX_MICRO_BATCH_BYTES: usize = 16_000_000;

/// Positions of one micro-batch at the most.
fn most_positions(options: &RemoteOptions, hidden: usize) -> usize {
    let bytes = options.dtype().n_bytes(hidden).unwrap_or(usize::MAX);
    options.micro_batch_tokens.min(MAX_MICRO_BATCH_BYTES / bytes.max(1))
}

/// The blocks that servers run.
pub(crate) fn remote_span(options: &RemoteOptions, expected: &ModelExpectation) -> Result<Span, RemoteError> {
    Span::new(options.first_block, expected.n_blocks).map_err(RemoteError::local)
}

/// A batch cut into micro-batches.
struct Split {
    /// Their rows.
    groups: Vec<Vec<usize>>,
    /// A route for each; an empty one where servers must be waited for.
    routes: Vec<Vec<Hop>>,
    /// Which cut it is, if it was chosen by what cuts took.
    choice: Option<usize>,
}

/// Cuts a batch into micro-batches. Each has a prefix of its own, so more of them are only made where servers that
/// work at the same time gain more than that.
fn split(remote: &RemoteSequential, prefix_len: usize, rows: &Ragged) -> Result<Split, RemoteError> {
    let deterministic = remote.options.deterministic;
    let most = most_positions(&remote.options, remote.expected.hidden);
    let whole = remote_span(&remote.options, &remote.expected)?;
    let router = remote.router.lock();
    let cut = |choice: usize| {
        let max_tokens = prefix_len + rows.n_tokens().div_ceil(PARTS[choice]);
        // More prefixes than text would be computed.
        (choice == 0 || max_tokens > 2 * prefix_len).then(|| rows.micro_batches(prefix_len, max_tokens.min(most)))
    };
    let plan = |groups: &[Vec<usize>]| {
        let sizes: Vec<usize> = groups.iter().map(|group| prefix_len + rows.select(group).n_tokens()).collect();
        router.plan(whole, &sizes)
    };
    let mut made = [const { None }; PARTS.len()];
    let promise = |choice: usize| {
        let groups = cut(choice)?;
        let plan = plan(&groups).ok()?;
        let seconds = plan.done.as_secs_f64() / rows.n_tokens() as f64;
        made[choice] = Some((groups, plan.routes));
        Some(seconds)
    };
    let choice =
        (!deterministic && router.len() > 1).then(|| remote.cuts.borrow_mut().choose(router.changes(), promise));
    if let Some((groups, routes)) = choice.and_then(|choice| made[choice].take()) {
        return Ok(Split { groups, routes, choice });
    }
    let groups = cut(0).unwrap_or_default();
    let routes = plan(&groups).map_or_else(|_| vec![Vec::new(); groups.len()], |plan| plan.routes);
    Ok(Split { groups, routes, choice: None })
}

/// The rows of all groups in the batch's order: `[rows, hidden]`.
fn assemble(outputs: &[HostTensor], groups: &[Vec<usize>]) -> Result<Tensor, RemoteError> {
    if let [only] = outputs {
        // A copy: the caller may write into it.
        return from_host(only).map_err(RemoteError::local);
    }
    let parts: Vec<Tensor> =
        outputs.iter().map(share_from_host).collect::<Result<_, _>>().map_err(RemoteError::local)?;
    let order: Vec<i64> = groups.concat().iter().map(|&row| row as i64).collect();
    let stacked = Tensor::f_cat(&parts, 0).map_err(RemoteError::local)?;
    let empty = stacked.f_empty_like().map_err(RemoteError::local)?;
    empty.f_index_copy(0, &Tensor::from_slice(&order), &stacked).map_err(RemoteError::local)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_micro_batch_stays_under_16_mb() {
        let check = |micro_batch_tokens, hidden, wire_dtype, expected| {
            let options =
                RemoteOptions { micro_batch_tokens, wire_dtype: Some(wire_dtype), ..RemoteOptions::default() };
            assert_eq!(most_positions(&options, hidden), expected, "{hidden} as {wire_dtype}");
        };
        check(2048, 576, DType::F32, 2048);
        check(8192, 576, DType::F32, 6944);
        check(2048, 8192, DType::F32, 488);
        check(2048, 8192, DType::Bf16, 976);
        check(2048, 8192, DType::Q8, 1838);
        check(100, 8192, DType::Bf16, 100);
        // Nothing fits: each row stands alone.
        check(2048, 5_000_000, DType::F32, 0);
    }
}
