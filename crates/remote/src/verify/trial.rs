//! Checks of single calls and of relays, and the search for the server with the wrong result.

use std::rc::Rc;

use sepal_route::{Hop, ServerId};
use sepal_swarm::{Evidence, Witness};

use super::chain::{Call, Chain, Repeated};
use super::compare::{Difference, Output, Tolerance};
use super::quarantine::Verdict;
use crate::command::WantedGrads;
use crate::error::{CallError, RemoteError};
use crate::execute;
use crate::servers::Servers;

/// Share of the checks of which any server can be the checker, and not the fastest one.
pub(super) const RANDOM_CHECKERS: f64 = 0.25;

/// Result of a check.
pub(super) enum Finding {
    Passed,
    /// Servers that were quarantined.
    Quarantined(Vec<String>),
    Disputed(RemoteError),
    /// A relay returned a wrong result. Its servers repeat the work, with checks of each.
    WrongRelay,
    /// A server returned a wrong result for a batch without its prefix, and a right one with it. What it has cached may come
    /// from a wrong result of another server.
    WrongPrefix,
}

/// Check of one call to one server.
pub(super) struct LegCheck {
    pub(super) hop: Hop,
    pub(super) call: Call,
    pub(super) answer: Output,
    /// The answer for the evidence.
    pub(super) accused: Witness,
    /// True if the batch was sent without its prefix.
    pub(super) is_prefix_cached: bool,
    /// Rows of hidden states that are not compared.
    pub(super) skipped: usize,
}

/// Answers of the servers that made a call again, and of those that made it a third time.
struct Witnesses {
    checkers: Vec<Witness>,
    third: Vec<Witness>,
}

/// Check of a relayed micro-batch from its beginning to its end.
pub(super) struct RelayCheck {
    pub(super) route: Vec<Hop>,
    pub(super) call: Call,
    /// Hidden states that the last server returned. `None` if the backward pass alone was chosen.
    pub(super) hidden: Option<Output>,
    /// Joined gradients. `None` if there was no backward pass.
    pub(super) grads: Option<Output>,
}

impl LegCheck {
    /// Compares the answer with that of `checkers`, and finds the wrong server if they differ. `None` if they agree.
    pub(super) async fn settle(
        mut self,
        servers: &Rc<Servers>,
        checkers: &Chain,
        repeated: Repeated,
    ) -> Option<Finding> {
        let difference = compare(servers, &self.answer, &repeated.output, self.skipped).await;
        let Some(difference) = difference.filter(|difference| !difference.is_within(tolerance(servers))) else {
            self.confirm_scale(servers);
            return None;
        };
        if self.is_prefix_cached {
            let again = Chain::through(servers, &[self.hop]).repeat(servers, &self.call).await;
            let Ok(again) = again else { return Some(Finding::WrongPrefix) };
            let again = again.last();
            if self.agree(servers, &again.output, &repeated.output).await {
                return Some(Finding::WrongPrefix);
            }
            self.answer = again.output;
            // A receipt without the prefix does not show which one the server had cached.
            self.accused = again.witnesses.into_iter().next().unwrap_or(self.accused);
        }
        let (accused, span) = (&self.accused.server, self.hop.span);
        tracing::warn!(server = accused, %span, call = self.accused.statement.call, ?difference, "results of servers differ");
        let (verdict, third) = self.verdict(servers, checkers, &repeated).await;
        let witnesses = Witnesses { checkers: repeated.witnesses, third };
        Some(self.conclude(servers, &checkers.servers(), witnesses, difference, verdict))
    }

    /// Remembers the size of gradients that were confirmed.
    fn confirm_scale(&self, servers: &Servers) {
        if let (Some((grad_output, _)), Output::Grads(grads)) = (&self.call.backward, &self.answer) {
            servers.verifier.scales.borrow_mut().confirm(self.hop.span, grad_output, grads);
        }
    }

    /// Counts a wrong receipt. Returns a finding if it is not the server's first one.
    pub(super) fn blame_receipt(&self, servers: &Servers) -> Option<Finding> {
        let server = self.hop.server;
        servers.verifier.sampler.borrow_mut().suspect(server);
        tracing::warn!(server = self.accused.server, "a receipt is missing or does not fit the call");
        if !servers.verifier.record.borrow_mut().strike(server) {
            servers.shared.router.usage()[server.0].differences += 1;
            return None;
        }
        let evidence = self.evidence(servers, self.accused.clone(), Vec::new(), Difference::default());
        Some(Finding::Quarantined(vec![quarantine(servers, server, &evidence)]))
    }

    /// Decides which side is wrong, and returns the answers of the servers that made the third result.
    async fn verdict(&self, servers: &Rc<Servers>, checkers: &Chain, first: &Repeated) -> (Verdict, Vec<Witness>) {
        let mut excluded = [&[self.hop.server][..], &checkers.servers()].concat();
        let mut others: Vec<Repeated> = Vec::new();
        while let Some((arbiter, third)) = self.third(servers, checkers, &excluded).await {
            let with_accused = self.agree(servers, &self.answer, &third.output).await;
            let with_checkers = self.agree(servers, &first.output, &third.output).await;
            let verdict = Verdict::by_arbiter(with_accused, with_checkers, arbiter.is_own());
            if verdict != Verdict::Disputed {
                return (verdict, third.witnesses);
            }
            for other in &others {
                if self.agree(servers, &other.output, &third.output).await {
                    return (Verdict::Both, [other.witnesses.clone(), third.witnesses].concat());
                }
            }
            // Several servers may lie, each in its own way.
            arbiter.servers().iter().for_each(|server| servers.verifier.sampler.borrow_mut().suspect(*server));
            excluded.extend(arbiter.servers());
            others.push(third);
        }
        let verdict = self.verdict_by_repetition(servers, checkers, first).await;
        (verdict.unwrap_or(Verdict::Disputed), Vec::new())
    }

    /// Makes the call again on other servers than those of both sides and of `excluded`, or on the blocks of this process.
    async fn third(&self, servers: &Rc<Servers>, checkers: &Chain, excluded: &[ServerId]) -> Option<(Chain, Repeated)> {
        if let Some((chain, repetition)) = Chain::repeat_elsewhere(servers, &self.call, excluded, 1.0).await {
            return Some((chain, repetition.last()));
        }
        let (positions, route) = (self.call.batch.positions(), checkers.route());
        // A chain that swaps each checker for another of them, once.
        let is_first = excluded.len() == 1 + checkers.servers().len();
        if route.is_empty() || !is_first {
            return None;
        }
        let beside = Chain::beside(servers, &route, positions, &[self.hop.server])?;
        let third = beside.repeat(servers, &self.call).await.ok()?;
        Some((beside, third.last()))
    }

    /// Has both sides make the call again, because no third decides.
    async fn verdict_by_repetition(
        &self,
        servers: &Rc<Servers>,
        checkers: &Chain,
        first: &Repeated,
    ) -> Result<Verdict, CallError> {
        let accused = Chain::through(servers, &[self.hop]).repeat(servers, &self.call).await?.last();
        let second = checkers.repeat(servers, &self.call).await?.last();
        let second_agree = self.agree(servers, &accused.output, &second.output).await;
        let accused_repeats = self.agree(servers, &self.answer, &accused.output).await;
        let checkers_repeat = self.agree(servers, &first.output, &second.output).await;
        Ok(Verdict::by_repetition(second_agree, accused_repeats, checkers_repeat))
    }

    /// Quarantines the servers on the wrong side. Of several checkers it is not known which one is wrong: they are checked with
    /// their next calls.
    fn conclude(
        &self,
        servers: &Servers,
        checkers: &[ServerId],
        Witnesses { checkers: witnesses, third }: Witnesses,
        difference: Difference,
        verdict: Verdict,
    ) -> Finding {
        let accused = self.hop.server;
        if verdict == Verdict::Disputed {
            return self.dispute(servers, checkers, witnesses, difference);
        }
        let mut liars = Vec::new();
        if matches!(verdict, Verdict::Accused | Verdict::Both) {
            let against = witnesses.iter().chain(&third).cloned().collect();
            let evidence = self.evidence(servers, self.accused.clone(), against, difference);
            liars.push(quarantine(servers, accused, &evidence));
        }
        if matches!(verdict, Verdict::Checkers | Verdict::Both) {
            match (checkers, witnesses.into_iter().next()) {
                ([checker], Some(witness)) => {
                    let own = Some(self.accused.clone()).filter(|_| verdict == Verdict::Checkers);
                    let against = own.into_iter().chain(third).collect();
                    let evidence = self.evidence(servers, witness, against, difference);
                    liars.push(quarantine(servers, *checker, &evidence));
                }
                (several, _) => {
                    several.iter().for_each(|server| servers.verifier.sampler.borrow_mut().suspect(*server));
                }
            }
        }
        if liars.is_empty() { Finding::Passed } else { Finding::Quarantined(liars) }
    }

    /// Records that nothing tells which side is wrong.
    fn dispute(
        &self,
        servers: &Servers,
        checkers: &[ServerId],
        witnesses: Vec<Witness>,
        difference: Difference,
    ) -> Finding {
        let evidence = self.evidence(servers, self.accused.clone(), witnesses, difference);
        servers.report(&Evidence { disputed: true, ..evidence });
        let sides: Vec<ServerId> = [&self.hop.server].into_iter().chain(checkers).copied().collect();
        sides.iter().for_each(|server| servers.shared.router.usage()[server.0].differences += 1);
        let names = sides.iter().map(|server| servers.label(*server)).collect();
        Finding::Disputed(RemoteError::Disputed { servers: names, span: self.hop.span })
    }

    async fn agree(&self, servers: &Servers, found: &Output, expected: &Output) -> bool {
        let difference = compare(servers, found, expected, self.skipped).await;
        difference.is_some_and(|difference| difference.is_within(tolerance(servers)))
    }

    fn evidence(
        &self,
        servers: &Servers,
        accused: Witness,
        checkers: Vec<Witness>,
        difference: Difference,
    ) -> Evidence {
        Evidence {
            accused,
            disputed: false,
            session: self.call.step.version,
            // JSON has no infinity.
            difference: difference.tensor.min(f64::MAX),
            tolerance: tolerance(servers).tensor,
            checkers,
        }
    }
}

impl RelayCheck {
    /// Makes the work again without relays: on the blocks of this process, on other servers for all of it, or for each hop on
    /// another server. If the results differ, the servers of the route repeat the work, and each of their calls is checked.
    pub(super) async fn run(self, servers: Rc<Servers>) -> Finding {
        let Self { route, call, hidden, grads } = self;
        let positions = call.batch.positions();
        let used: Vec<ServerId> = route.iter().map(|hop| hop.server).collect();
        let others = Chain::repeat_elsewhere(&servers, &call, &used, RANDOM_CHECKERS).await;
        let repetition = match others {
            Some((_, repetition)) => repetition,
            None => {
                let Some(beside) = Chain::beside(&servers, &route, positions, &[]) else { return Finding::Passed };
                let Ok(repetition) = beside.repeat(&servers, &call).await else { return Finding::Passed };
                repetition
            }
        };
        let pairs = [(&hidden, Some(&repetition.forward)), (&grads, repetition.backward.as_ref())];
        let (mut n_calls, mut is_wrong) = (0, false);
        for (answer, repeated) in pairs {
            let (Some(answer), Some(repeated)) = (answer, repeated) else { continue };
            n_calls += 1;
            let difference = compare(&servers, answer, &repeated.output, 0).await;
            is_wrong |= difference.is_some_and(|difference| !difference.is_within(tolerance(&servers)));
        }
        used.iter().for_each(|server| servers.shared.router.usage()[server.0].checks += n_calls);
        if !is_wrong {
            if let (Some((grad_output, _)), Some(Output::Grads(grads))) = (&call.backward, &grads) {
                servers.verifier.scales.borrow_mut().confirm(call.span, grad_output, grads);
            }
            return Finding::Passed;
        }
        tracing::warn!(span = %call.span, "a relayed result differs from that of other servers; looking for the server");
        // The legs of the repetition start checks of their own, which `finish_checks` waits for.
        let thorough = &servers.verifier.thorough;
        thorough.set(thorough.get() + 1);
        let Call { step, batch, want, backward, .. } = call;
        let backward = backward
            .map(|(grad_output, want)| (grad_output, WantedGrads { input: want.input, tunables: want.tunables }));
        let repeated = execute::repeat_on_star(&servers, &step, &batch, want, backward, route).await;
        thorough.set(thorough.get() - 1);
        if let Err(error) = repeated {
            tracing::debug!(%error, "a relayed result could not be repeated");
        }
        Finding::WrongRelay
    }
}

/// Returns the difference of two results, on another thread, because results are large. `None` if neither is finite, or one is
/// not where overflow is expected: honest servers round to different sides of the largest number.
async fn compare(servers: &Servers, found: &Output, expected: &Output, skipped: usize) -> Option<Difference> {
    let (found, expected) = (found.clone(), expected.clone());
    let expects_overflow = servers.options().expects_overflow;
    let compared = tokio::task::spawn_blocking(move || {
        let is_overflow = expects_overflow && !(found.is_finite() && expected.is_finite());
        if is_overflow { None } else { Difference::of_outputs(&found, &expected, skipped) }
    });
    compared.await.ok().flatten()
}

fn tolerance(servers: &Servers) -> Tolerance {
    Tolerance::new(&servers.shared.expected.digest, servers.options().dtype())
}

/// Takes a server out of all routes for good and returns its name.
fn quarantine(servers: &Servers, server: ServerId, evidence: &Evidence) -> String {
    let name = servers.label(server);
    if servers.router().is_quarantined(server) {
        return name;
    }
    servers.router().quarantine(server);
    let mut usage = servers.shared.router.usage();
    usage[server.0].differences += 1;
    usage[server.0].quarantined = true;
    drop(usage);
    servers.peer(server).disconnect();
    // Without a receipt, the server may have stated the key of another one.
    if let Some(key) = evidence.accused.key.filter(|_| evidence.accused.is_signed()) {
        servers.verifier.record.borrow_mut().ban_key(key);
        servers.quarantine_banned();
    }
    tracing::warn!(server = name, "results of a server are wrong; it is not used again in this run");
    servers.report(evidence);
    name
}
