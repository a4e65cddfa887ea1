//! Verification: a share of the calls is made again elsewhere, and the results are compared.
//!
//! A forward call is chosen after its answer has arrived, so that no server knows which ones are checked. Its backward call is
//! checked with it, in one repetition. The checks of a step run beside its other work and end before its gradients or
//! predictions reach the caller ([`Servers::finish_checks`]). A server whose results are wrong is quarantined, and the caller
//! does the step again.

mod chain;
mod compare;
mod pending;
mod quarantine;
mod sampler;
mod scale;
mod trial;

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;

use sepal_core::{HostTensor, PublicKey, Span, Want};
use sepal_route::{Hop, ServerId};
use sepal_swarm::{Evidence, Receipt};
use sepal_wire::codec::{GradWant, Grads, WireBatch};
use tokio::task::JoinHandle;

use self::chain::{Call, Part, join};
use self::compare::Output;
use self::pending::{Check, HopCheck};
use self::quarantine::Record;
use self::sampler::{CallKind, Identity, Sampler};
use self::scale::Scales;
use self::trial::{Finding, LegCheck, RelayCheck};
use crate::command::MicroBatchGrads;
use crate::connection::Peer;
use crate::error::RemoteError;
use crate::servers::Servers;
use crate::step::Step;

pub use compare::{Difference, Tolerance};
pub(crate) use pending::PendingCheck;

/// State of the verification.
pub(crate) struct Verifier {
    sampler: RefCell<Sampler>,
    record: RefCell<Record>,
    scales: RefCell<Scales>,
    /// Checks that are not finished.
    checks: RefCell<Vec<JoinHandle<Finding>>>,
    /// Checks of forward calls whose backward call is not made any more. They are not started.
    unpaired: Rc<RefCell<Vec<Check>>>,
    own_peer: OnceCell<Rc<Peer>>,
    /// Number of repetitions that are under way in which every call is checked.
    thorough: Cell<usize>,
    /// True once a relayed result was wrong and no server could be named.
    distrusts_relays: Cell<bool>,
    /// True once the result for a batch without its prefix was wrong and no server could be named.
    distrusts_prefix_caches: Cell<bool>,
}

/// Answer to a forward call through the client.
pub(crate) struct ForwardAnswer<'a> {
    pub(crate) hop: Hop,
    pub(crate) step: &'a Step,
    /// Batch with its prefix.
    pub(crate) batch: &'a WireBatch,
    /// Batch as it was sent.
    pub(crate) sent: &'a WireBatch,
    pub(crate) want: Want,
    /// Output for the whole batch.
    pub(crate) hidden: &'a HostTensor,
    /// Output as it was received.
    pub(crate) received: &'a HostTensor,
    /// True if a backward call may follow.
    pub(crate) keep_tape: bool,
    pub(crate) receipt: Option<Receipt>,
}

/// Answer to a backward call through the client.
pub(crate) struct BackwardAnswer<'a> {
    pub(crate) hop: Hop,
    pub(crate) step: &'a Step,
    /// Input of the forward call.
    pub(crate) batch: &'a WireBatch,
    /// Output of the forward call.
    pub(crate) output: Want,
    pub(crate) grad_output: &'a HostTensor,
    pub(crate) want: GradWant,
    pub(crate) grads: &'a Grads,
    pub(crate) receipt: Option<Receipt>,
}

/// Result of a relay, from the first to the last server of a route.
pub(crate) struct RelayAnswer<'a> {
    /// Servers in the order of the blocks.
    pub(crate) route: &'a [Hop],
    pub(crate) step: &'a Step,
    pub(crate) batch: &'a WireBatch,
    pub(crate) want: Want,
    /// True if a backward pass may follow.
    pub(crate) keep_tape: bool,
}

impl Verifier {
    pub(crate) fn new(share: f64) -> Self {
        Self {
            sampler: RefCell::new(Sampler::new(share)),
            record: RefCell::default(),
            scales: RefCell::default(),
            checks: RefCell::default(),
            unpaired: Rc::default(),
            own_peer: OnceCell::new(),
            thorough: Cell::new(0),
            distrusts_relays: Cell::new(false),
            distrusts_prefix_caches: Cell::new(false),
        }
    }

    /// True if relays may be used.
    pub(crate) fn trusts_relays(&self) -> bool {
        !self.distrusts_relays.get()
    }

    /// True if batches may be sent without the prefix that servers have cached.
    pub(crate) fn trusts_prefix_caches(&self) -> bool {
        !self.distrusts_prefix_caches.get()
    }

    /// True if a server with this key was quarantined.
    pub(crate) fn is_banned(&self, key: Option<PublicKey>) -> bool {
        key.is_some_and(|key| self.record.borrow().is_banned(key))
    }

    /// Server of this process with the blocks for checks.
    fn own_peer(&self, servers: &Servers) -> Option<Rc<Peer>> {
        let endpoint = servers.shared.verification.own_blocks.get()?;
        let peer = || Rc::new(Peer::new(endpoint.clone(), servers.shared.uncounted()));
        Some(Rc::clone(self.own_peer.get_or_init(peer)))
    }

    fn start(&self, servers: &Rc<Servers>, check: Check) {
        self.checks.borrow_mut().push(tokio::task::spawn_local(check.run(Rc::clone(servers))));
    }

    /// Starts the check of a forward call, or returns it to wait for the backward call.
    fn start_or_wait(&self, servers: &Rc<Servers>, check: Check, waits: bool) -> Option<PendingCheck> {
        if waits {
            return Some(PendingCheck::new(check, &self.unpaired));
        }
        self.start(servers, check);
        None
    }
}

impl Servers {
    /// Checks the answer to a forward call, if it is chosen. Returns a check that waits for the backward call.
    pub(crate) fn check_forward(self: &Rc<Self>, answer: ForwardAnswer<'_>) -> Option<PendingCheck> {
        let ForwardAnswer { hop, step, batch, sent, want, hidden, received, keep_tape, receipt } = answer;
        // The caller asks another server about numbers that are not finite.
        if !self.is_check_due(hop.server, CallKind::of(keep_tape), step) || !hidden.is_finite() {
            return None;
        }
        let part = Part { step, span: hop.span, batch: sent, want };
        let accused = part.forward_witness(self, &self.peer(hop.server), received, receipt);
        let call = Call { step: Arc::new(step.snapshot()), span: hop.span, batch: batch.clone(), want, backward: None };
        // The server that cached the prefix may have computed it from the result of another server.
        let is_prefix_cached = sent.prefix_cached;
        let skipped = if is_prefix_cached && want == Want::All { batch.prefix_len } else { 0 };
        let forward =
            LegCheck { hop, call, answer: Output::Hidden(hidden.clone()), accused, is_prefix_cached, skipped };
        let check = Check::Hop(Box::new(HopCheck { forward: Some(forward), backward: None }));
        self.verifier.start_or_wait(self, check, keep_tape)
    }

    /// Checks the answer to a backward call with its forward call, if that was chosen, or if the gradients are unusually large.
    pub(crate) fn check_backward(self: &Rc<Self>, answer: BackwardAnswer<'_>, pending: Option<PendingCheck>) {
        let BackwardAnswer { hop, step, batch, output, grad_output, want, grads, receipt } = answer;
        let answer = Output::Grads(grads.clone());
        let is_due = pending.is_some() || self.are_unusual(hop.span, grad_output, grads);
        if !is_due || !answer.is_finite() {
            return;
        }
        let part = Part { step, span: hop.span, batch, want: output };
        let accused = part.backward_witness(self, &self.peer(hop.server), (grad_output, want), grads, receipt);
        let backward = Some((grad_output.clone(), want));
        let (step, batch) = (Arc::new(step.snapshot()), batch.clone());
        let call = Call { step, span: hop.span, batch, want: output, backward };
        let backward = LegCheck { hop, call, answer, accused, is_prefix_cached: false, skipped: 0 };
        let forward = match pending.and_then(PendingCheck::take) {
            Some(Check::Hop(check)) => check.forward,
            _ => None,
        };
        self.verifier.start(self, Check::Hop(Box::new(HopCheck { forward, backward: Some(backward) })));
    }

    /// Checks the hidden states that the last server of a relay returned, if a call of one of the servers is chosen. Returns a
    /// check that waits for the backward pass.
    pub(crate) fn check_relay_forward(
        self: &Rc<Self>,
        answer: RelayAnswer<'_>,
        hidden: &HostTensor,
    ) -> Option<PendingCheck> {
        let keep_tape = answer.keep_tape;
        let kind = CallKind::of(keep_tape);
        // Each server's call is counted.
        if answer.route.iter().filter(|hop| self.is_check_due(hop.server, kind, answer.step)).count() == 0 {
            return None;
        }
        let mut check = relay_check(answer)?;
        check.hidden = Some(Output::Hidden(hidden.clone()));
        self.verifier.start_or_wait(self, Check::Relay(Box::new(check)), keep_tape)
    }

    /// Checks the gradients that the servers of a relay returned with the hidden states, if these were chosen, or if the
    /// gradients are unusually large.
    pub(crate) fn check_relay_backward(
        self: &Rc<Self>,
        answer: RelayAnswer<'_>,
        (grad_output, want): (&HostTensor, GradWant),
        grads: &MicroBatchGrads,
        pending: Option<PendingCheck>,
    ) {
        let Some(mut check) = relay_check(answer) else { return };
        let mut grads = Grads { input: grads.input.clone(), tunables: grads.tunables.clone(), not_finite: None };
        if pending.is_none() && !self.are_unusual(check.call.span, grad_output, &grads) {
            return;
        }
        // The parts come in the order of the backward pass. Joining copies them, so only those of checks are joined.
        grads.tunables.sort_by_key(|part| part.first_block);
        let Ok(tunables) = join(grads.tunables.into_iter()) else { return };
        grads.tunables = tunables;
        if let Some(Check::Relay(forward)) = pending.and_then(PendingCheck::take) {
            check.hidden = forward.hidden;
        }
        check.call.backward = Some((grad_output.clone(), want));
        check.grads = Some(Output::Grads(grads));
        self.verifier.start(self, Check::Relay(Box::new(check)));
    }

    /// Waits for the checks that were started.
    ///
    /// # Errors
    /// [`RemoteError::Quarantined`] if a result was wrong; [`RemoteError::Disputed`] if nothing tells which one.
    pub(crate) async fn finish_checks(self: &Rc<Self>) -> Result<(), RemoteError> {
        let (mut liars, mut disputed) = (BTreeSet::new(), None);
        let (mut is_relay_wrong, mut is_prefix_wrong) = (false, false);
        loop {
            // A check may start others.
            self.verifier.unpaired.take().into_iter().for_each(|check| self.verifier.start(self, check));
            let checks = self.verifier.checks.take();
            if checks.is_empty() {
                break;
            }
            for check in checks {
                match check.await {
                    Ok(Finding::Passed) => {}
                    Ok(Finding::Quarantined(servers)) => liars.extend(servers),
                    Ok(Finding::Disputed(error)) => disputed = Some(error),
                    Ok(Finding::WrongRelay) => is_relay_wrong = true,
                    Ok(Finding::WrongPrefix) => is_prefix_wrong = true,
                    Err(error) => return Err(RemoteError::local(error)),
                }
            }
        }
        if !liars.is_empty() {
            return Err(RemoteError::Quarantined { servers: liars.into_iter().collect() });
        }
        if is_prefix_wrong {
            self.verifier.distrusts_prefix_caches.set(true);
            tracing::warn!(
                "a result with a cached prompt was wrong, but not without it; prompts are sent with every call now"
            );
            return Err(RemoteError::Quarantined { servers: Vec::new() });
        }
        if let Some(error) = disputed {
            return Err(error);
        }
        if is_relay_wrong {
            self.verifier.distrusts_relays.set(true);
            tracing::warn!("a relayed result was wrong, but no server repeated it; relays are not used any more");
            return Err(RemoteError::Quarantined { servers: Vec::new() });
        }
        Ok(())
    }

    /// Passes evidence to the caller's handler.
    fn report(&self, evidence: &Evidence) {
        if let Some(handler) = self.shared.verification.on_evidence.get() {
            handler(evidence);
        }
    }

    /// Counts a call and returns true if it is to be checked.
    fn is_check_due(&self, server: ServerId, kind: CallKind, step: &Step) -> bool {
        if !self.shared.can_verify() || !self.has_checkers() {
            return false;
        }
        let peer = self.peer(server);
        let identity = peer.key().map_or(Identity::Connection(peer.generation()), Identity::Key);
        let is_due =
            self.verifier.sampler.borrow_mut().is_due(server, identity, kind, step.version, rand::random::<f64>);
        is_due || self.verifier.thorough.get() > 0
    }

    /// True if gradients that could be checked are much larger than those that were confirmed.
    fn are_unusual(&self, span: Span, grad_output: &HostTensor, grads: &Grads) -> bool {
        let can_check = self.shared.can_verify() && self.has_checkers();
        can_check && self.verifier.scales.borrow().is_unusual(span, grad_output, grads)
    }

    /// True if calls may be made again elsewhere.
    fn has_checkers(&self) -> bool {
        self.shared.verification.own_blocks.get().is_some() || self.router().len() > 1
    }
}

/// Returns the check of a relay without its results. `None` for an empty route.
fn relay_check(RelayAnswer { route, step, batch, want, .. }: RelayAnswer<'_>) -> Option<RelayCheck> {
    let (first, last) = route.first().zip(route.last())?;
    let span = Span::new(first.span.start(), last.span.end()).ok()?;
    let call = Call { step: Arc::new(step.snapshot()), span, batch: batch.clone(), want, backward: None };
    Some(RelayCheck { route: route.to_vec(), call, hidden: None, grads: None })
}
