//! Router with simulated servers in virtual time: replicas of different speed, slow and lying ones, failures and returns.

use std::time::Duration;

use proptest::prelude::*;
use sepal_core::Span;
use sepal_route::{Call, FIRST_BAN, Hop, LONGEST_BAN, Pass, Plan, RouteError, Router, Server, ServerId, Timing, Work};

fn span(start: usize, end: usize) -> Span {
    Span::new(start, end).expect("a span")
}

/// Actual speed of a simulated server.
#[derive(Debug, Clone, Copy)]
struct SimulatedServer {
    span: Span,
    /// Seconds per token and block.
    rate: f64,
    round_trip: f64,
}

/// Servers, and a router that measures them.
struct Simulation {
    servers: Vec<SimulatedServer>,
    router: Router,
}

impl Simulation {
    fn new(servers: &[SimulatedServer]) -> Self {
        let mut router = Router::new();
        for server in servers {
            router.add(Server { round_trip: seconds(server.round_trip), ..Server::new(server.span) });
        }
        Self { servers: servers.to_vec(), router }
    }

    /// Plans a step and simulates it. Servers compute one micro-batch at a time, in the order of arrival. Returns the plan
    /// and the duration of the step.
    fn step(&mut self, span: Span, tokens: &[usize]) -> (Plan, f64) {
        let plan = self.router.plan(span, tokens).expect("a plan");
        let mut free = vec![0.0_f64; self.servers.len()];
        let mut events: Vec<Event> =
            (0..tokens.len()).map(|batch| Event { time: 0.0, batch, hop: 0, answered: None }).collect();
        let mut duration = 0.0;
        while !events.is_empty() {
            let next = (0..events.len()).min_by(|&a, &b| events[a].time.total_cmp(&events[b].time)).expect("an event");
            let Event { time, batch, hop, answered } = events.swap_remove(next);
            if let Some((call, timing)) = answered {
                self.router.finish_call(call, timing);
                duration = time;
            }
            let Some(&Hop { server, span }) = plan.routes[batch].get(hop) else { continue };
            let simulated = self.servers[server.0];
            let work = Work { pass: Pass::Forward, blocks: span.len(), tokens: tokens[batch] };
            let computed = simulated.rate * (work.blocks * work.tokens) as f64;
            let arrived = time + simulated.round_trip / 2.0;
            let begun = arrived.max(free[server.0]);
            free[server.0] = begun + computed;
            let answered_at = begun + computed + simulated.round_trip / 2.0;
            let (total, queued) = (seconds(answered_at - time), seconds(begun - arrived));
            let timing = Timing { total, queued, computed: seconds(computed) };
            let answered = Some((self.router.start_call(server, work), timing));
            events.push(Event { time: answered_at, batch, hop: hop + 1, answered });
        }
        (plan, duration)
    }
}

/// Start of a micro-batch's hop, with the answer of the hop before.
struct Event {
    time: f64,
    batch: usize,
    hop: usize,
    answered: Option<(Call, Timing)>,
}

fn seconds(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds.max(0.0))
}

fn first_servers(plan: &Plan) -> Vec<usize> {
    plan.routes.iter().map(|route| route[0].server.0).collect()
}

/// Returns a server's share of the work of equal micro-batches.
fn share(plan: &Plan, server: usize) -> f64 {
    let blocks = |hops: &mut dyn Iterator<Item = &Hop>| hops.map(|hop| hop.span.len()).sum::<usize>() as f64;
    let hops = || plan.routes.iter().flatten();
    blocks(&mut hops().filter(|hop| hop.server.0 == server)) / blocks(&mut hops())
}

#[test]
fn equal_replicas_share_the_work() {
    let replica = SimulatedServer { span: span(0, 30), rate: 20e-6, round_trip: 0.02 };
    let mut simulation = Simulation::new(&[replica, replica]);
    let tokens = [100; 8];
    let on_one_server = 20e-6 * 30.0 * 800.0;
    for _ in 0..4 {
        let (plan, elapsed) = simulation.step(span(0, 30), &tokens);
        assert_eq!(share(&plan, 0), 0.5);
        assert!((elapsed - (on_one_server / 2.0 + 0.02)).abs() < 1e-6, "{elapsed}");
    }
    let (plan, elapsed) = simulation.step(span(0, 30), &tokens);
    let planned = plan.duration.as_secs_f64();
    assert!((planned - 2.0 * elapsed).abs() < 0.1 * elapsed, "{planned} s for both passes, forward elapsed {elapsed}");
}

#[test]
fn slower_replica_gets_a_proportional_share() {
    let fast = SimulatedServer { span: span(0, 30), rate: 20e-6, round_trip: 0.02 };
    let mut simulation = Simulation::new(&[SimulatedServer { rate: 80e-6, ..fast }, fast]);
    let tokens = [50; 16];
    // The first step measures the servers.
    simulation.step(span(0, 30), &tokens);
    let (plan, elapsed) = simulation.step(span(0, 30), &tokens);
    let slow = share(&plan, 0);
    assert!((slow - 0.2).abs() < 0.05, "{slow} is not a fifth");
    let ideal = 20e-6 * 30.0 * 800.0 * 0.8 + 0.02;
    assert!(elapsed < 1.2 * ideal, "{elapsed} against {ideal}");
}

#[test]
fn plans_change_as_measurements_do() {
    let replica = SimulatedServer { span: span(0, 4), rate: 20e-6, round_trip: 0.001 };
    let mut simulation = Simulation::new(&[replica, replica]);
    let tokens = [400; 10];
    simulation.step(span(0, 4), &tokens);
    simulation.servers[0].rate *= 9.0;
    let shares: Vec<f64> = (0..12).map(|_| share(&simulation.step(span(0, 4), &tokens).0, 0)).collect();
    assert_eq!(shares.first(), Some(&0.5));
    let last = shares.last().expect("shares");
    assert!((last - 0.1).abs() < 0.05, "{shares:?}");
}

#[test]
fn measured_speed_replaces_overstated_speed() {
    let honest = SimulatedServer { span: span(0, 10), rate: 20e-6, round_trip: 0.001 };
    let mut simulation = Simulation::new(&[]);
    simulation.servers = vec![SimulatedServer { rate: 200e-6, ..honest }, honest];
    for stated in [1e-6, 20e-6] {
        let round_trip = Duration::from_millis(1);
        simulation.router.add(Server { stated_rate: Some(stated), round_trip, ..Server::new(span(0, 10)) });
    }
    let (plan, _) = simulation.step(span(0, 10), &[100; 4]);
    assert!(share(&plan, 0) > 0.9, "its statement counts before the first measurement");
    let (plan, _) = simulation.step(span(0, 10), &[100; 4]);
    assert!(share(&plan, 0) < 0.2, "its measured speed counts afterwards: {}", share(&plan, 0));
}

#[test]
fn invalid_statements_of_time_are_ignored() {
    let mut router = Router::new();
    for stated in [Some(f64::NAN), Some(-1.0), Some(f64::INFINITY), Some(0.0), None] {
        let server = router.add(Server { stated_rate: stated, ..Server::new(span(0, 4)) });
        let call = router.start_call(server, Work { pass: Pass::Forward, blocks: 4, tokens: 10 });
        let lie = Timing { total: seconds(0.01), queued: Duration::MAX, computed: Duration::MAX };
        router.finish_call(call, lie);
        let late = router.late_after(&router.clone().start_call(server, call_work())).expect("measured");
        assert!(late < Duration::from_secs(2), "{late:?}");
    }
    assert_eq!(router.plan(span(0, 4), &[10; 9]).expect("a plan").routes.len(), 9);
}

fn call_work() -> Work {
    Work { pass: Pass::Forward, blocks: 4, tokens: 10 }
}

fn at(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

#[test]
fn lateness_follows_the_measured_speed() {
    let mut router = Router::new();
    let server = router.add(Server::new(span(0, 10)));
    let work = Work { pass: Pass::Backward, blocks: 10, tokens: 100 };
    let call = router.start_call(server, work);
    assert_eq!(router.late_after(&call), None, "nothing was measured");
    router.finish_call(call, Timing { total: seconds(1.1), queued: Duration::ZERO, computed: seconds(1.0) });
    let call = router.start_call(server, work);
    let usual = 1.1;
    let late = router.late_after(&call).expect("measured").as_secs_f64();
    assert!(late > 1.5 * usual && late < 3.0 * usual, "{late}");
    let second = router.start_call(server, work);
    let waiting = router.late_after(&second).expect("measured").as_secs_f64();
    assert!(waiting > late + 1.0, "the first call is ahead of the second: {waiting}");
    router.abandon_call(call);
    router.mark_late(server, Duration::ZERO);
    assert!(router.plan(span(0, 10), &[1]).is_err(), "banned");
    let after = router.late_after(&router.clone().start_call(server, work)).expect("measured").as_secs_f64();
    assert!(after > waiting, "it is assumed to be slower: {after}");
}

#[test]
fn work_beyond_the_tape_budget_counts_for_more() {
    let mut router = Router::new();
    let server = Server { round_trip: Duration::from_millis(1), ..Server::new(span(0, 4)) };
    router.add(Server { tape_token_blocks: Some(400), ..server });
    router.add(server);
    let plan = router.plan(span(0, 4), &[100; 5]).expect("a plan");
    assert!(share(&plan, 0) < 0.5, "{}", share(&plan, 0));
}

#[test]
fn bans_apply_at_once_and_grow() {
    let mut router = Router::new();
    let a = router.add(Server::new(span(0, 4)));
    let b = router.add(Server::new(span(0, 4)));
    let servers = |router: &Router| first_servers(&router.plan(span(0, 4), &[1; 4]).expect("a plan"));
    router.mark_failed(a, at(10));
    assert_eq!(servers(&router), [b.0; 4]);
    router.mark_failed(b, at(20));
    router.mark_failed(b, at(30));
    let error = router.plan(span(0, 4), &[1]).expect_err("both are banned");
    assert_eq!(error, RouteError::Banned { block_idx: 0, probe_at: at(10) + FIRST_BAN });
    // A failure at the probe doubles the ban; one before the probe does not count.
    router.mark_failed(a, at(5_000));
    assert_eq!(router.probe_at(a), Some(at(5_000) + 2 * FIRST_BAN));
    assert_eq!(router.probe_at(b), Some(at(20) + FIRST_BAN));
    router.mark_returned(b, span(0, 4));
    assert!(router.is_available(b) && !router.is_available(a));
    assert_eq!(servers(&router), [b.0; 4]);
    let mut now = at(6_000);
    for _ in 0..40 {
        router.mark_failed(a, now);
        now = router.probe_at(a).expect("banned");
    }
    router.mark_failed(a, now);
    assert_eq!(router.probe_at(a), Some(now + LONGEST_BAN));
    let good = Timing { total: at(1), queued: Duration::ZERO, computed: at(1) };
    let call = router.start_call(a, call_work());
    router.finish_call(call, good);
    assert!(!router.is_available(a), "the finished call may be its last");
    router.mark_returned(a, span(0, 4));
    router.mark_failed(a, now);
    assert_eq!(router.probe_at(a), Some(now + LONGEST_BAN), "returning does not reset the failures");
    router.mark_returned(a, span(0, 4));
    let call = router.start_call(a, call_work());
    router.finish_call(call, good);
    router.mark_failed(a, now);
    assert_eq!(router.probe_at(a), Some(now + FIRST_BAN), "a finished call resets the failures");
}

#[test]
fn quarantined_server_is_in_no_route_and_never_returns() {
    let mut router = Router::new();
    let (liar, honest) = (router.add(Server::new(span(0, 4))), router.add(Server::new(span(0, 2))));
    router.mark_failed(liar, Duration::ZERO);
    router.quarantine(liar);
    assert_eq!((router.probe_at(liar), router.is_quarantined(liar)), (None, true));
    router.mark_failed(liar, seconds(1.0));
    router.mark_returned(liar, span(0, 4));
    assert!(!router.is_available(liar) && router.is_available(honest) && !router.is_quarantined(honest));
    let plan = router.plan(span(0, 2), &[8]).expect("a plan");
    assert_eq!(plan.routes[0], [Hop { server: honest, span: span(0, 2) }]);
    let missing = span(2, 4);
    assert_eq!(router.plan(span(0, 4), &[8]), Err(RouteError::Uncovered { missing }));
}

#[test]
fn failed_backward_pass_is_not_forgiven_for_forward_passes() {
    let mut router = Router::new();
    let server = router.add(Server::new(span(0, 4)));
    let succeed = |router: &mut Router, pass| {
        let call = router.start_call(server, Work { pass, ..call_work() });
        router.finish_call(call, Timing { total: at(1), queued: Duration::ZERO, computed: at(1) });
    };
    let mut now = at(0);
    for doubled in [1_u32, 2, 4, 8] {
        router.expect_success(server, Pass::Backward);
        router.mark_failed(server, now);
        assert_eq!(router.probe_at(server), Some(now + doubled * FIRST_BAN));
        now += doubled * FIRST_BAN;
        router.mark_returned(server, span(0, 4));
        succeed(&mut router, Pass::Forward);
    }
    assert_eq!(router.failures(server), 4);
    succeed(&mut router, Pass::Stateless);
    assert_eq!(router.failures(server), 0);
    router.mark_failed(server, now);
    router.mark_returned(server, span(0, 4));
    succeed(&mut router, Pass::Forward);
    assert_eq!(router.failures(server), 0, "no backward pass has failed");
}

#[test]
fn ban_after_a_timeout_is_ten_times_as_long() {
    let mut router = Router::new();
    let [a, b] = [0, 1].map(|_| router.add(Server::new(span(0, 4))));
    router.mark_timed_out(a, at(1_000), at(300_000));
    assert_eq!(router.probe_at(a), Some(at(3_001_000)));
    router.mark_timed_out(b, at(0), at(50));
    assert_eq!(router.probe_at(b), Some(LONGEST_BAN));
}

#[test]
fn replicas_are_known_servers_even_if_they_are_banned() {
    let mut router = Router::new();
    let [all, start, end] = [(0, 4), (0, 2), (1, 4)].map(|(from, to)| router.add(Server::new(span(from, to))));
    router.mark_failed(start, at(0));
    assert!(router.has_replicas(span(0, 4), &[all]));
    assert!(!router.has_replicas(span(0, 4), &[all, start]));
    assert!(router.has_replicas(span(2, 4), &[all, start]));
    assert_eq!(router.holders(span(0, 1), &[]), [all, start]);
    assert_eq!((router.span(end), router.failures(start)), (span(1, 4), 1));
}

#[test]
fn uncovered_blocks_are_named() {
    let mut router = Router::new();
    router.add(Server::new(span(0, 10)));
    let last = router.add(Server::new(span(20, 30)));
    let error = router.plan(span(0, 30), &[1]).expect_err("uncovered blocks");
    assert_eq!(error, RouteError::Uncovered { missing: span(10, 20) });
    router.mark_returned(last, span(5, 30));
    assert!(router.plan(span(0, 30), &[1]).is_ok());
    let error = router.plan_avoiding(span(0, 30), &[1], &[last]).expect_err("it is the only one");
    assert!(matches!(error, RouteError::Banned { block_idx: 10, .. }));
}

proptest! {
    #[test]
    fn route_covers_its_span_exactly_once(
        servers in prop::collection::vec((0_usize..20, 1_usize..12, 1_u32..90, 0_u64..50), 1..12),
        dead in prop::collection::vec(0_usize..12, 0..6),
        tokens in prop::collection::vec(1_usize..300, 1..9),
    ) {
        let mut router = Router::new();
        for &(start, len, rate, round_trip) in &servers {
            router.add(Server {
                stated_rate: Some(f64::from(rate) * 1e-6),
                round_trip: Duration::from_millis(round_trip),
                ..Server::new(span(start, start + len))
            });
        }
        for &server in dead.iter().filter(|&&server| server < servers.len()) {
            router.mark_failed(ServerId(server), Duration::ZERO);
        }
        let held = |server: usize| span(servers[server].0, servers[server].0 + servers[server].1);
        let planned = router.plan(span(0, 20), &tokens);
        prop_assert_eq!(&planned, &router.plan(span(0, 20), &tokens), "the same again");
        match planned {
            Ok(plan) => {
                prop_assert_eq!(plan.routes.len(), tokens.len());
                for route in &plan.routes {
                    let mut end = 0;
                    for Hop { server, span } in route {
                        prop_assert_eq!(span.start(), end);
                        prop_assert!(held(server.0).covers(*span));
                        prop_assert!(!dead.contains(&server.0));
                        end = span.end();
                    }
                    prop_assert_eq!(end, 20);
                    let neighbours = route.windows(2).all(|pair| pair[0].server != pair[1].server);
                    prop_assert!(neighbours, "two hops on one server are one hop");
                }
            }
            Err(RouteError::Uncovered { missing }) => {
                prop_assert!((0..servers.len()).all(|server| !held(server).contains(missing.start())));
            }
            Err(RouteError::Banned { block_idx, .. }) => {
                prop_assert!((0..servers.len()).all(|server| dead.contains(&server) || !held(server).contains(block_idx)));
            }
            Err(_) => prop_assert!(false, "no such error"),
        }
    }
}
