//! Servers that lie or misbehave beside honest replicas: they are found and named, and change no result.

use sepal_integration_tests::fixture::{Fixture, Run, Server, bounded_output};
use sepal_integration_tests::golden::Golden;
use sepal_integration_tests::liar::{Lie, LyingProxy};
use sepal_remote::{RemoteOptions, RemoteSequential};
use sepal_swarm::Endpoint;
use tch::Tensor;

/// Option of a run: share of the calls that are computed again.
const VERIFY: &str = "swarm.with.verify";
/// Beginning of the message that names a quarantined server.
const QUARANTINED: &str = "results of a server are wrong";
/// Makes computations longer than transfers, so that runs choose a liar, which states to be faster.
const SLOW: [&str; 2] = ["--pace-us", "20"];
/// Answers before a liar begins to lie: more than the first calls of a server, which are always checked.
const TRUTHS: u64 = 150;

/// Losses and trained parameters of a run.
type Trained = (Vec<f64>, Vec<u8>);

/// Honest servers of all blocks, and the model.
struct Swarm {
    fixture: Fixture,
    servers: Vec<Server>,
    /// Server behind the liars, which is as fast as they state.
    behind_liars: Server,
}

impl Swarm {
    fn new(n: usize) -> Self {
        let fixture = Fixture::new("llama-gqa");
        let servers = (0..n).map(|_| fixture.serve_with("0:3", "127.0.0.1:0", &SLOW)).collect();
        let behind_liars = fixture.serve("0:3", "127.0.0.1:0");
        Self { fixture, servers, behind_liars }
    }

    fn honest(&self) -> Vec<&str> {
        self.servers.iter().map(|server| server.addr.as_str()).collect()
    }

    fn lying(&self, lie: Lie, truths: u64) -> LyingProxy {
        LyingProxy::after(lie, &self.behind_liars.addr, truths)
    }

    /// Trains on the honest servers alone, without checks.
    fn expected(&self, sets: &[&str]) -> Trained {
        trained(&self.train(&self.honest(), "0.0", sets).0)
    }

    /// Trains on servers at these addresses. Returns the run and its messages.
    fn train(&self, addresses: &[&str], verify: &str, sets: &[&str]) -> (Run, String) {
        let servers = format!("swarm.with.servers=[\"{}\"]", addresses.join("\", \""));
        let fixed = ["swarm.use=static", &servers, "train.deterministic=true", "evaluate.every=never"];
        let bounded = ["swarm.with.timeout_ms=3000", "swarm.with.wait_ms=30000"];
        let verify = format!("{VERIFY}={verify}");
        self.fixture.run_with_messages(&[&fixed[..], &bounded[..], &[verify.as_str()], sets].concat())
    }

    /// Trains beside a server that lies. Checks that it lied and that nothing of a server reaches the terminal as it is.
    fn train_beside(&self, liar: &LyingProxy, verify: &str, sets: &[&str]) -> (Run, String) {
        let addresses = [&[liar.addr.as_str()], &self.honest()[..]].concat();
        let (run, messages) = self.train(&addresses, verify, sets);
        assert!(liar.lies() > 0, "{liar:?} was never in use: {} calls", liar.calls());
        assert_visible(&format!("{liar:?}"), &messages);
        (run, messages)
    }

    fn assert_honest_are_not_blamed(&self, what: &str, messages: &str) {
        let blamed = |line: &&str| line.contains(QUARANTINED) && self.honest().iter().any(|addr| line.contains(addr));
        let line = messages.lines().find(blamed);
        assert_eq!(line, None, "{what}: an honest server is blamed");
    }
}

fn trained(run: &Run) -> Trained {
    (run.losses(), run.adapter())
}

/// Asserts that messages have no escape sequences and no characters that reorder text.
fn assert_visible(what: &str, messages: &str) {
    let is_hidden = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
    assert!(!messages.contains(is_hidden), "{what}: {messages:?}");
}

#[test]
fn liar_without_a_replica_changes_results_and_a_truthful_proxy_does_not() {
    let golden = Golden::open("llama-gqa");
    let server = golden.serve_listening("0:3", 4 << 30);
    let addr = server.endpoint().to_string();
    let honest = two_steps(&golden, &addr);
    for lie in Lie::NUMBERS {
        let liar = LyingProxy::new(lie, &addr);
        assert!(two_steps(&golden, &liar.addr) != honest, "{lie}: the results are those of the honest server");
        assert!(liar.lies() > 0, "{lie}");
    }
    let truthful = LyingProxy::after(Lie::OutputsNegated, &addr, u64::MAX);
    assert!(two_steps(&golden, &truthful.addr) == honest, "a proxy that passes everything changes nothing");
    assert_eq!(truthful.lies(), 0);
    assert!(truthful.calls() > 0);
}

/// Returns losses and gradients of two steps of plain gradient descent on one server.
fn two_steps(golden: &Golden, addr: &str) -> Vec<f32> {
    let endpoint = Endpoint::Addr(addr.parse().expect("an address"));
    let options = RemoteOptions { deterministic: true, ..RemoteOptions::default() };
    let remote = RemoteSequential::connect(vec![endpoint], golden.expectation(), options);
    let (remote, mut trained, mut found) = (remote.expect("connected"), golden.trained(), Vec::new());
    let flat = |tensor: &Tensor| Vec::<f32>::try_from(tensor.detach().flatten(0, -1)).expect("numbers");
    for _ in 0..2 {
        let loss = golden.loss(&trained.golden_logits(golden, &remote));
        loss.backward();
        found.extend(flat(&loss.unsqueeze(0)));
        found.extend(trained.grads().iter().flat_map(|(_, grad)| flat(grad)));
        trained = trained.step(golden.lr);
    }
    found
}

/// Few steps of several calls.
const SHORT: [&str; 2] = ["train.max_steps=5", "swarm.with.micro_batch_tokens=60"];
/// Twenty steps of one call for each row, of 96 rows.
const LONG: [&str; 4] =
    ["train.epochs=10", "train.max_steps=20", "loader.batch_size=96", "swarm.with.micro_batch_tokens=20"];

#[test]
fn liar_beside_replicas_with_all_calls_checked_changes_no_result() {
    let swarm = Swarm::new(2);
    let expected = swarm.expected(&SHORT);
    for lie in Lie::NUMBERS {
        let liar = swarm.lying(lie, 0);
        let (run, messages) = swarm.train_beside(&liar, "1.0", &SHORT);
        assert!(trained(&run) == expected, "{lie}: the results differ; {messages}");
        assert_quarantined(&liar, &messages);
        swarm.assert_honest_are_not_blamed(lie.name(), &messages);
    }
}

#[test]
fn liar_about_outputs_with_few_calls_checked_is_found_within_twenty_steps() {
    check_detection(|lie| lie.name().starts_with("outputs"));
}

#[test]
fn liar_about_gradients_with_few_calls_checked_is_found_within_twenty_steps() {
    check_detection(|lie| lie.name().starts_with("grads"));
}

/// Runs twenty steps beside each liar, which begins to lie when its first calls have been checked.
fn check_detection(is_included: impl Fn(Lie) -> bool) {
    let swarm = Swarm::new(2);
    for lie in Lie::NUMBERS.into_iter().filter(|&lie| is_included(lie)) {
        let liar = swarm.lying(lie, TRUTHS);
        let (run, messages) = swarm.train_beside(&liar, "0.02", &LONG);
        assert_eq!(run.losses().len(), 20, "{lie}: {messages}");
        assert_quarantined(&liar, &messages);
        swarm.assert_honest_are_not_blamed(lie.name(), &messages);
    }
}

#[test]
fn gradients_of_unusual_size_are_checked_without_being_chosen() {
    let swarm = Swarm::new(2);
    let expected = swarm.expected(&LONG);
    let liar = swarm.lying(Lie::GradsLarge, TRUTHS);
    let (run, messages) = swarm.train_beside(&liar, "0.000001", &LONG);
    assert_quarantined(&liar, &messages);
    // Its first wrong gradients are found, so none of them was applied.
    assert!(trained(&run) == expected, "the results differ; {messages}");
}

fn assert_quarantined(liar: &LyingProxy, messages: &str) {
    let names = |line: &str| line.contains(QUARANTINED) && line.contains(&liar.addr);
    assert!(messages.lines().any(names), "{liar:?} is not named: {} lies; {messages}", liar.lies());
}

#[test]
fn liar_with_honest_blocks_here_is_found_without_a_replica() {
    let swarm = Swarm::new(1);
    let sets = [&SHORT[..], &["swarm.with.verify_locally=true"]].concat();
    let expected = swarm.expected(&SHORT);
    for lie in [Lie::OutputsScaled, Lie::GradsNegated] {
        let liar = swarm.lying(lie, 0);
        let (run, messages) = swarm.train_beside(&liar, "1.0", &sets);
        assert!(trained(&run) == expected, "{lie}: the results differ; {messages}");
        assert_quarantined(&liar, &messages);
        swarm.assert_honest_are_not_blamed(lie.name(), &messages);
    }
}

#[test]
fn honest_servers_with_all_calls_checked_raise_no_alarm() {
    let swarm = Swarm::new(3);
    let expected = swarm.expected(&SHORT);
    let (run, messages) = swarm.train(&swarm.honest(), "1.0", &SHORT);
    assert!(trained(&run) == expected, "checks change no result; {messages}");
    assert!(!messages.contains(QUARANTINED), "{messages}");
}

#[test]
fn misbehaving_server_beside_a_replica_ends_no_run() {
    let swarm = Swarm::new(1);
    let expected = swarm.expected(&SHORT);
    // Absurd statements do no harm and may pass without a word.
    let harmless = [Lie::LimitsMax, Lie::SpeedAbsurd, Lie::Escapes];
    for lie in Lie::MISBEHAVIOUR.into_iter().filter(|lie| !OTHER_MODELS.contains(lie)) {
        let liar = swarm.lying(lie, 0);
        let (run, messages) = swarm.train_beside(&liar, "0.0", &SHORT);
        assert!(trained(&run) == expected, "{lie}: the results differ; {messages}");
        let is_named = messages.contains(&liar.addr);
        assert!(is_named || harmless.contains(&lie), "{lie}: the server is not named; {messages}");
    }
}

/// Lies of a server that claims to hold another model.
const OTHER_MODELS: [Lie; 3] = [Lie::OtherDigest, Lie::OtherSpan, Lie::ManyBlocks];

#[test]
fn server_of_another_model_beside_a_replica_ends_no_run() {
    let swarm = Swarm::new(1);
    let expected = swarm.expected(&SHORT);
    for lie in OTHER_MODELS {
        let liar = swarm.lying(lie, 0);
        let (run, messages) = swarm.train_beside(&liar, "0.0", &SHORT);
        assert!(trained(&run) == expected, "{lie}: the results differ; {messages}");
        assert!(messages.contains(&liar.addr), "{lie}: the server is not named; {messages}");
        assert_eq!(liar.calls(), 0, "{lie}: a server of another model computes");
    }
}

#[test]
fn wrong_shapes_in_a_chain_are_blamed_on_the_server_that_sent_them() {
    let fixture = Fixture::new("llama-gqa");
    let servers = ["0:2", "2:3"].map(|blocks| fixture.serve_with(blocks, "127.0.0.1:0", &SLOW));
    let behind_liars = fixture.serve("0:2", "127.0.0.1:0");
    let swarm = Swarm { fixture, servers: servers.into(), behind_liars };
    let expected = swarm.expected(&SHORT);
    for lie in [Lie::OutputsNarrow, Lie::GradsNarrow, Lie::GradsDeep, Lie::OutputsNan] {
        // The liar is a replica of the first server.
        let liar = swarm.lying(lie, 0);
        let (run, messages) = swarm.train_beside(&liar, "0.0", &SHORT);
        assert!(trained(&run) == expected, "{lie}: the results differ; {messages}");
        assert!(messages.contains(&liar.addr), "{lie}: the server is not named; {messages}");
    }
}

#[test]
fn refusal_of_all_servers_ends_the_run_and_names_them() {
    let swarm = Swarm::new(1);
    let liars = [swarm.lying(Lie::RefusesAll, 0), swarm.lying(Lie::RefusesAll, 0)];
    let servers = format!("swarm.with.servers=[\"{}\", \"{}\"]", liars[0].addr, liars[1].addr);
    let sets = ["swarm.use=static", &servers, "swarm.with.wait_ms=5000", "train.max_steps=5"];
    let text = swarm.fixture.failure(&sets);
    assert!(text.contains("the request is wrong"), "{text}");
    assert!(liars.iter().any(|liar| text.contains(&liar.addr)), "{text}");
    assert_visible("two servers that refuse all", &text);
}

#[test]
fn status_of_a_swarm_with_lying_servers_is_bounded_and_visible() {
    let swarm = Swarm::new(1);
    let kinds = [Lie::Escapes, Lie::ManyBlocks, Lie::OtherSpan, Lie::LimitsZero, Lie::LimitsMax, Lie::SpeedAbsurd];
    for lie in kinds.into_iter().chain([Lie::OtherDigest]) {
        let liar = swarm.lying(lie, 0);
        for more in [None, Some("--json")] {
            let addresses = [liar.addr.as_str(), swarm.servers[0].addr.as_str()];
            let mut command = swarm.fixture.sepal(&["swarm", "status"]);
            let output = bounded_output(command.args(addresses).args(more));
            let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
            assert!(output.status.success(), "{lie}: {text}");
            assert!(text.contains(&swarm.servers[0].addr), "{lie}: the honest server is shown: {text}");
            assert!(text.len() < 1 << 16, "{lie}: {} bytes", text.len());
            assert_visible(lie.name(), &text);
        }
        assert!(liar.lies() > 0, "{lie}: the server was not asked");
    }
}
