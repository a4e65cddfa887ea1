use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Instant;

use sepal_core::{DEEP_PROMPTS, DType, HostTensor, HostTunable, PREFIX_KEYS_VALUES, Ragged, Want};
use sepal_nn::Tunable;
use sepal_nn::host::{from_host, share_from_host, share_to_host, to_host};
use sepal_swarm::{Endpoint, RemoteOptions, Sightings, Traffic};
use sepal_wire::ServerInfo;
use sepal_wire::codec::{InputGrad, WireBatch};
use tch::Tensor;
use tokio::sync::{mpsc, oneshot};

use crate::backward::{BackwardNode, LastError, TunableShape};
use crate::command::{Command, WantedGrads};
use crate::error::RemoteError;
use crate::expectation::ModelExpectation;
use crate::micro_batching::{Division, MicroBatching};
use crate::noise::with_noise;
use crate::servers::Source;
use crate::shared::{EvidenceHandler, ServerUsage, SharedState};
use crate::step::Step;
use crate::thread as rpc;

/// Blocks of a model on other machines: all of them, or all from [`RemoteOptions::first_block`].
#[derive(Debug)]
pub struct RemoteSequential {
    commands: mpsc::UnboundedSender<Command>,
    thread: Option<JoinHandle<()>>,
    shared: SharedState,
    servers: Vec<ServerInfo>,
    micro_batching: RefCell<MicroBatching>,
    next_version: Cell<u64>,
    last_error: LastError,
}

impl RemoteSequential {
    /// Connects to servers and checks that they serve the expected model.
    ///
    /// # Errors
    /// [`RemoteError::WrongModel`] if a server serves another model; [`RemoteError::Uncovered`] if the reachable servers
    /// do not hold all blocks.
    pub fn connect(
        endpoints: Vec<Endpoint>,
        expected: ModelExpectation,
        options: RemoteOptions,
    ) -> Result<Self, RemoteError> {
        Self::start(Source::Fixed(endpoints), expected, options)
    }

    /// Connects to servers as they are discovered, until they hold all blocks.
    ///
    /// # Errors
    /// [`RemoteError::Uncovered`] if they do not within [`RemoteOptions::wait_ms`].
    pub fn discover(
        sightings: Sightings,
        expected: ModelExpectation,
        options: RemoteOptions,
    ) -> Result<Self, RemoteError> {
        Self::start(Source::Discovered(sightings), expected, options)
    }

    fn start(source: Source, expected: ModelExpectation, options: RemoteOptions) -> Result<Self, RemoteError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(RemoteError::local)?;
        let (commands, queue) = mpsc::unbounded_channel();
        let (ready, answer) = oneshot::channel();
        let shared = SharedState::new(expected, options, source.may_have_replicas());
        let thread_state = shared.clone();
        let thread = thread::Builder::new()
            .name("sepal-remote".into())
            .spawn(move || rpc::run(&runtime, source, thread_state, queue, ready))
            .map_err(RemoteError::local)?;
        let servers = answer.blocking_recv().map_err(|_| RemoteError::Stopped)??;
        Ok(Self {
            commands,
            thread: Some(thread),
            shared,
            micro_batching: RefCell::new(MicroBatching::new(servers.iter().map(|server| server.limits))),
            servers,
            next_version: Cell::default(),
            last_error: LastError::default(),
        })
    }

    /// Descriptions of the servers at their first connection.
    pub fn servers(&self) -> &[ServerInfo] {
        &self.servers
    }

    /// Usage of each server so far, in the order of the first connections.
    pub fn server_usage(&self) -> Vec<ServerUsage> {
        self.shared.router.usage().clone()
    }

    /// Bytes sent and received so far.
    pub fn traffic(&self) -> &Traffic {
        &self.shared.traffic
    }

    /// Number of forward and backward passes of micro-batches that servers relayed to each other.
    pub fn relay_count(&self) -> u64 {
        self.shared.relay_count()
    }

    /// Checks calls with the blocks of this server, which is part of this process and holds all blocks that servers run. The
    /// first one counts, and is set before the first call.
    pub fn check_with(&self, own_blocks: Endpoint) {
        let _ = self.shared.verification.own_blocks.set(own_blocks);
    }

    /// Passes the evidence against each server with wrong results to `handler`. The first handler counts.
    pub fn on_evidence(&self, handler: EvidenceHandler) {
        let _ = self.shared.verification.on_evidence.set(handler);
    }

    /// Runs the graph of `loss` backward like [`Tensor::f_backward`], but with typed errors of servers instead of text.
    ///
    /// # Errors
    /// [`RemoteError`]; gradients that were computed before the error have been accumulated.
    pub fn backward(&self, loss: &Tensor) -> Result<(), RemoteError> {
        // An earlier backward pass may have failed in `Tensor::f_backward`.
        drop(self.last_error.take());
        loss.f_backward().map_err(|error| self.last_error.take().unwrap_or_else(|| RemoteError::local(error)))
    }

    /// Starts a session with the tunables of one optimizer step. They are uploaded once to each server of their blocks,
    /// however many batches use them.
    ///
    /// # Errors
    /// [`RemoteError::Shape`] if a tensor is not stacked by block.
    pub fn tune(&self, tunables: Vec<Tunable>) -> Result<StepSession<'_>, RemoteError> {
        let n_blocks = self.shared.expected.n_blocks;
        let version = self.new_version();
        let mut on_host = Vec::with_capacity(tunables.len());
        for Tunable { name, first_block, tensor } in &tunables {
            let blocks = tensor.size().first().map_or(0, |&blocks| usize::try_from(blocks).unwrap_or(0));
            if blocks == 0 || first_block.saturating_add(blocks) > n_blocks {
                let expected = format!("[up to {} blocks, ..]", n_blocks.saturating_sub(*first_block));
                return Err(RemoteError::Shape { what: "a tunable", expected, found: tensor.size() });
            }
            // A copy, because the optimizer updates parameters in place while a retry may still send these.
            let tensor = to_host(tensor, self.dtype().for_parameters()).map_err(RemoteError::local)?;
            on_host.push(HostTunable { name: name.clone(), first_block: *first_block, tensor });
        }
        let step = RefCell::new(Arc::new(Step::new(version, on_host)));
        Ok(StepSession { remote: self, step, tensors: tunables.into_iter().map(|tunable| tunable.tensor).collect() })
    }

    fn new_version(&self) -> u64 {
        let version = self.next_version.get();
        self.next_version.set(version + 1);
        version
    }

    fn dtype(&self) -> DType {
        self.shared.options.dtype()
    }
}

impl Drop for RemoteSequential {
    fn drop(&mut self) {
        // Live graphs hold senders of their own, so the channel stays open. The thread may have ended already.
        let _ = self.commands.send(Command::Stop);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the RPC thread panicked");
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
    pub fn set_graph(&mut self, tunables: Vec<Tunable>) {
        self.tensors = tunables.into_iter().map(|tunable| tunable.tensor).collect();
    }

    /// Runs the blocks on `[prefix; row]` for each row. Returns the hidden states that `want` selects, before the final
    /// norm: of the rows' last tokens or means, `[rows, hidden]`, or of all tokens, `[n_tokens, hidden]`.
    ///
    /// `prefix` is `[prefix_len, hidden]`, shared by all rows; `tokens` is `[n_tokens, hidden]`, the rows end to end. The
    /// result is differentiable in the prefix, the tunables and the tokens. Servers leave out the gradient of tokens that
    /// do not require one.
    ///
    /// # Errors
    /// [`RemoteError`] of the forward pass; [`RemoteError::PrefixLen`] for tunables of a prefix without one of their length;
    /// [`RemoteError::Local`] for [`Want::All`], which only servers use. Errors of the backward pass come out of
    /// [`RemoteSequential::backward`].
    pub fn forward(
        &self,
        prefix: Option<&Tensor>,
        tokens: &Tensor,
        rows: &Ragged,
        want: Want,
    ) -> Result<Tensor, RemoteError> {
        let remote = self.remote;
        if want == Want::All {
            return Err(RemoteError::local("hidden states of the prefix stay on the servers"));
        }
        let prefix_len = self.check_shapes(prefix, tokens, rows)?;
        let inputs: Vec<&Tensor> = prefix.into_iter().chain([tokens]).chain(&self.tensors).collect();
        let keep_tape = sepal_nn::grad_is_enabled() && inputs.iter().any(|input| input.requires_grad());
        let SharedState { options, expected, router, .. } = &remote.shared;
        let Division { groups, routes, choice } =
            remote.micro_batching.borrow_mut().divide(options, expected, &router.lock(), prefix_len, rows)?;
        let started = Instant::now();
        let sent = match options.noise {
            0.0 => tokens.detach(),
            noise => with_noise(tokens, noise).map_err(RemoteError::local)?,
        };
        let batches = self.micro_batches(prefix, &sent, rows, &groups)?.into_iter().zip(routes).collect();
        let (reply, answer) = oneshot::channel();
        let step = self.step_for(prefix.filter(|_| !keep_tape))?;
        let command = Command::Forward { step: Arc::clone(&step), batches, want, keep_tape, reply };
        remote.commands.send(command).map_err(|_| RemoteError::Stopped)?;
        let (call, outputs) = answer.blocking_recv().map_err(|_| RemoteError::Stopped)??;
        if let Some(choice) = choice {
            let seconds = started.elapsed().as_secs_f64();
            remote.micro_batching.borrow_mut().record(choice, seconds / rows.n_tokens() as f64);
        }
        let positions = positions(&groups, rows, want);
        let output = assemble(&outputs, &positions)?;
        if !keep_tape {
            return Ok(output);
        }
        let node = BackwardNode {
            commands: remote.commands.clone(),
            last_error: remote.last_error.clone(),
            call,
            groups,
            positions,
            dtype: remote.dtype(),
            want: WantedGrads {
                input: match (tokens.requires_grad(), prefix.is_some_and(Tensor::requires_grad)) {
                    (true, _) => InputGrad::All,
                    (false, true) => InputGrad::Prefix,
                    (false, false) => InputGrad::None,
                },
                tunables: self.tensors.iter().any(Tensor::requires_grad),
            },
            prefix_len: prefix.map(|_| prefix_len),
            rows: rows.clone(),
            tunables: step.tunables.iter().map(TunableShape::new).collect(),
        };
        sepal_autograd::attach(&inputs, output, move |grad| node.run(grad)).map_err(RemoteError::local)
    }

    /// Returns the step, or a new one if the prefix has changed: servers cache one prefix per step.
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

    /// Returns the length of the prefix.
    fn check_shapes(&self, prefix: Option<&Tensor>, tokens: &Tensor, rows: &Ragged) -> Result<usize, RemoteError> {
        let hidden = self.remote.shared.expected.hidden as i64;
        if tokens.size() != [rows.n_tokens() as i64, hidden] {
            let expected = format!("[{}, {hidden}]", rows.n_tokens());
            return Err(RemoteError::Shape { what: "the tokens", expected, found: tokens.size() });
        }
        let prefix_len = match prefix.map(|prefix| prefix.size()) {
            None => 0,
            Some(size) if size.len() == 2 && size[0] > 0 && size[1] == hidden => size[0] as usize,
            Some(found) => {
                let expected = format!("[prefix_len, {hidden}]");
                return Err(RemoteError::Shape { what: "the prefix", expected, found });
            }
        };
        self.check_prefix_len(prefix_len)?;
        Ok(prefix_len)
    }

    /// Refuses tunables for a prefix of another length. Servers refuse the shapes that they do not know.
    fn check_prefix_len(&self, found: usize) -> Result<(), RemoteError> {
        let step = self.step.borrow();
        let mut lengths =
            step.tunables.iter().filter_map(|tunable| match (tunable.name.as_str(), tunable.tensor.shape()) {
                (DEEP_PROMPTS | PREFIX_KEYS_VALUES, &[_, length, _]) => Some((&tunable.name, length)),
                _ => None,
            });
        match lengths.find(|&(_, expected)| expected != found) {
            Some((name, expected)) => Err(RemoteError::PrefixLen { tunable: name.clone(), expected, found }),
            None => Ok(()),
        }
    }

    /// Returns prefix and rows of each group on the host: `[prefix_len + n_tokens of the group, hidden]`.
    fn micro_batches(
        &self,
        prefix: Option<&Tensor>,
        tokens: &Tensor,
        rows: &Ragged,
        groups: &[Vec<usize>],
    ) -> Result<Vec<WireBatch>, RemoteError> {
        let prefix_len = prefix.map_or(0, |prefix| prefix.size()[0] as usize);
        let batch = |group: &Vec<usize>| {
            let row_tokens = |&row: &usize| {
                let range = rows.range(row);
                tokens.narrow(0, range.start as i64, range.len() as i64)
            };
            let mut parts: Vec<Tensor> = prefix.map(|prefix| prefix.detach()).into_iter().collect();
            match groups {
                [_] => parts.push(tokens.shallow_clone()),
                _ => parts.extend(group.iter().map(row_tokens)),
            }
            let hidden = tch::no_grad(|| Tensor::f_cat(&parts, 0)).map_err(RemoteError::local)?;
            let hidden = share_to_host(&hidden, self.remote.dtype()).map_err(RemoteError::local)?;
            WireBatch::new(prefix_len, rows.select(group), hidden).map_err(RemoteError::local)
        };
        groups.iter().map(batch).collect()
    }
}

/// Index of each group's outputs among those of the whole batch.
fn positions(groups: &[Vec<usize>], rows: &Ragged, want: Want) -> Vec<Vec<i64>> {
    let of_row = |&row: &usize| match want {
        Want::Tokens => rows.range(row),
        _ => row..row + 1,
    };
    groups.iter().map(|group| group.iter().flat_map(of_row).map(|position| position as i64).collect()).collect()
}

/// Returns the outputs of all groups in the order of the batch.
fn assemble(outputs: &[HostTensor], positions: &[Vec<i64>]) -> Result<Tensor, RemoteError> {
    if let [output] = outputs {
        // A copy, because the caller may write to it.
        return from_host(output).map_err(RemoteError::local);
    }
    let parts: Vec<Tensor> =
        outputs.iter().map(share_from_host).collect::<Result<_, _>>().map_err(RemoteError::local)?;
    let stacked = Tensor::f_cat(&parts, 0).map_err(RemoteError::local)?;
    let empty = stacked.f_empty_like().map_err(RemoteError::local)?;
    empty.f_index_copy(0, &Tensor::from_slice(&positions.concat()), &stacked).map_err(RemoteError::local)
}
