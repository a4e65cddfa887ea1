//! One misbehaving server beside an honest one: the results are those of the honest one, and the other is blamed.

use sepal_core::{DEEP_PROMPTS, Ragged, Want};
use sepal_nn::Tunable;
use sepal_remote::{ModelExpectation, RemoteError, RemoteOptions, RemoteSequential, ServerUsage};
use tch::{Device, Kind, Tensor};

use super::fake_server::{Behaviour, DIGEST, FakeServer, HIDDEN, N_BLOCKS};

const PREFIX: i64 = 2;
const LENGTHS: [usize; 4] = [3, 5, 2, 4];

fn options() -> RemoteOptions {
    // Several micro-batches, the same in every run.
    RemoteOptions { deterministic: true, micro_batch_tokens: 8, ..RemoteOptions::default() }
}

fn connect(servers: &[&FakeServer], options: RemoteOptions) -> RemoteSequential {
    try_connect(servers, options).expect("connected")
}

fn try_connect(servers: &[&FakeServer], options: RemoteOptions) -> Result<RemoteSequential, RemoteError> {
    let endpoints = servers.iter().map(|server| server.endpoint.clone()).collect();
    let (digest, n_blocks, hidden) = (DIGEST.to_owned(), N_BLOCKS, HIDDEN);
    let expected = ModelExpectation { digest, n_blocks, hidden, tunables: vec![DEEP_PROMPTS.to_owned()] };
    RemoteSequential::connect(endpoints, expected, options)
}

/// Returns numbers that differ and are not round.
fn numbers(size: &[i64], offset: f64) -> Tensor {
    let numel: i64 = size.iter().product();
    ((Tensor::arange(numel, (Kind::Float, Device::Cpu)) + offset) * 0.37).sin().reshape(size)
}

/// Runs a step. Returns the hidden states and the gradients of prompts and tunables.
fn step(remote: &RemoteSequential, number: u32) -> Result<Vec<Tensor>, RemoteError> {
    let offset = f64::from(number);
    let hidden = HIDDEN as i64;
    let prompts = numbers(&[PREFIX, hidden], offset).set_requires_grad(true);
    let deep = numbers(&[N_BLOCKS as i64, PREFIX, hidden], offset).set_requires_grad(true);
    let rows = Ragged::from_lengths(LENGTHS).expect("rows");
    let tokens = numbers(&[rows.n_tokens() as i64, hidden], offset);
    let session = remote.tune(vec![Tunable::new(DEEP_PROMPTS, deep.shallow_clone())])?;
    let pooled = session.forward(Some(&prompts), &tokens, &rows, Want::LastOfRows)?;
    remote.backward(&pooled.square().sum(Kind::Float))?;
    Ok(vec![pooled.detach(), prompts.grad(), deep.grad()])
}

fn usage_of<'a>(usage: &'a [ServerUsage], server: &str) -> &'a ServerUsage {
    usage.iter().find(|usage| usage.server == server).expect("a server of this name")
}

/// Compares steps of a client that prefers `liar` with those of the honest servers alone.
fn check(liar: &FakeServer, honest: &[&FakeServer], options: &RemoteOptions, what: &str) {
    let reference = connect(honest, options.clone());
    let servers: Vec<&FakeServer> = honest.iter().copied().chain([liar]).collect();
    let remote = connect(&servers, options.clone());
    for number in 0..3 {
        let expected = step(&reference, number).expect("honest servers");
        let found = step(&remote, number).unwrap_or_else(|error| panic!("{what}, step {number}: {error}"));
        assert_eq!(found, expected, "{what}, step {number}");
    }
    let usage = remote.server_usage();
    assert!(usage_of(&usage, "liar").failures > 0, "{what}: {usage:?}");
    for server in usage.iter().filter(|usage| usage.server != "liar") {
        assert_eq!(server.failures, 0, "{what}: {usage:?}");
        assert!(server.calls > 0, "{what}: {usage:?}");
    }
}

#[test]
fn misbehaving_server_changes_no_bit_and_is_blamed() {
    let honest = FakeServer::start("honest", "0:3", Behaviour::Honest);
    for behaviour in [
        Behaviour::WideGradients,
        Behaviour::DeepGradients,
        Behaviour::NoTunableGradients,
        Behaviour::FlatTunableGradients,
        Behaviour::WideHidden,
        Behaviour::HugeHidden,
        Behaviour::RefusesForward,
        Behaviour::RefusesBackward,
        Behaviour::Overloaded,
        Behaviour::Expired,
        Behaviour::NotServed,
        Behaviour::Leaving,
        Behaviour::NoTape,
        Behaviour::ClosesInBackward,
        Behaviour::NonFiniteHidden,
        Behaviour::NonFiniteGradients,
        Behaviour::WrongBlock,
        Behaviour::SmallLimits,
    ] {
        let liar = FakeServer::start("liar", "0:3", behaviour);
        check(&liar, &[&honest], &options(), &format!("{behaviour:?}"));
    }
}

#[test]
fn fast_server_that_refuses_checks_does_not_shield_a_liar() {
    let [a, b] = ["a", "b"].map(|name| FakeServer::start(name, "0:3", Behaviour::Honest));
    let liar = FakeServer::start("liar", "0:3", Behaviour::ScaledHidden);
    let accomplice = FakeServer::start("accomplice", "0:3", Behaviour::RefusesChecks);
    let reference = connect(&[&a, &b], RemoteOptions { verify: 0.0, ..options() });
    let remote = connect(&[&liar, &accomplice, &a, &b], RemoteOptions { verify: 1.0, ..options() });
    let mut named = Vec::new();
    for number in 0..3 {
        let found = loop {
            match step(&remote, number) {
                Ok(found) => break found,
                Err(RemoteError::Quarantined { servers }) => named.extend(servers),
                Err(error) => panic!("step {number}: {error}"),
            }
            assert!(named.len() <= 4, "{named:?}");
        };
        assert_eq!(found, step(&reference, number).expect("honest servers"), "step {number}");
    }
    assert_eq!(named, ["liar"]);
}

#[test]
fn server_with_a_wrong_description_is_left_out() {
    let honest = FakeServer::start("honest", "0:3", Behaviour::Honest);
    for (behaviour, text) in [
        (
            Behaviour::NoLimits,
            "server liar could not be reached (it describes itself with a maximum message size in bytes of 0)",
        ),
        (Behaviour::OtherModel, "server liar serves another model"),
    ] {
        let liar = FakeServer::start("liar", "0:3", behaviour);
        let remote = connect(&[&liar, &honest], options());
        let expected = step(&connect(&[&honest], options()), 0).expect("an honest server");
        assert_eq!(step(&remote, 0).expect("the honest server"), expected);
        assert_eq!(liar.forward_calls(), 0);
        let error = try_connect(&[&liar], options()).expect_err("no other server");
        assert!(error.to_string().contains(text), "{text} in {error}");
    }
}

#[test]
fn server_that_never_answers_is_left_after_the_timeout() {
    let honest = FakeServer::start("honest", "0:3", Behaviour::Honest);
    let liar = FakeServer::start("liar", "0:3", Behaviour::Silent);
    check(&liar, &[&honest], &RemoteOptions { timeout_ms: 500, ..options() }, "silent");
    // A ban of a minute follows the first timeout, so only the calls in flight were lost.
    assert!(liar.forward_calls() <= LENGTHS.len(), "{} calls", liar.forward_calls());
}

#[test]
fn neighbours_of_a_misbehaving_server_are_not_blamed() {
    let first = FakeServer::start("first", "0:1", Behaviour::Honest);
    let honest = FakeServer::start("honest", "1:3", Behaviour::Honest);
    for behaviour in [
        Behaviour::WideGradients,
        Behaviour::DeepGradients,
        Behaviour::RefusesBackward,
        Behaviour::NonFiniteHidden,
        Behaviour::NonFiniteGradients,
    ] {
        let liar = FakeServer::start("liar", "1:3", behaviour);
        check(&liar, &[&first, &honest], &options(), &format!("{behaviour:?} behind another server"));
    }
    for behaviour in [Behaviour::WideHidden, Behaviour::RefusesForward, Behaviour::NonFiniteHidden] {
        let last = FakeServer::start("last", "2:3", Behaviour::Honest);
        let honest = FakeServer::start("honest", "0:2", Behaviour::Honest);
        let liar = FakeServer::start("liar", "0:2", behaviour);
        check(&liar, &[&honest, &last], &options(), &format!("{behaviour:?} before another server"));
    }
}

#[test]
fn request_that_two_servers_refuse_is_wrong() {
    for behaviour in [Behaviour::RefusesForward, Behaviour::RefusesBackward] {
        let servers = ["one", "two"].map(|name| FakeServer::start(name, "0:3", behaviour));
        let remote = connect(&[&servers[0], &servers[1]], options());
        let error = step(&remote, 0).expect_err("refused");
        assert!(matches!(&error, RemoteError::Refused { refusals, .. } if refusals.len() == 2), "{error}");
        for name in ["one", "two"] {
            let text = format!("server {name} refused a call: this request is wrong");
            assert!(error.to_string().contains(&text), "{text} in {error}");
        }
    }
}

#[test]
fn only_server_is_asked_again_before_its_refusal_is_believed() {
    let server = FakeServer::start("only", "0:3", Behaviour::RefusesForward);
    let remote = connect(&[&server], RemoteOptions { micro_batch_tokens: 100, ..options() });
    let error = step(&remote, 0).expect_err("refused");
    assert_eq!(error.to_string(), "run blocks 0:3: server only refused a call: this request is wrong");
    assert_eq!(server.forward_calls(), 2);
}

#[test]
fn refusal_that_the_only_server_does_not_repeat_is_forgotten() {
    let honest = FakeServer::start("honest", "0:3", Behaviour::Honest);
    let moody = FakeServer::start("moody", "0:3", Behaviour::RefusesOnce);
    let options = RemoteOptions { micro_batch_tokens: 100, ..options() };
    let expected = step(&connect(&[&honest], options.clone()), 0).expect("an honest server");
    assert_eq!(step(&connect(&[&moody], options), 0).expect("the second attempt succeeds"), expected);
    assert_eq!(moody.forward_calls(), 2);
}

#[test]
fn non_finite_numbers_of_all_servers_name_them() {
    let servers = ["one", "two"].map(|name| FakeServer::start(name, "0:3", Behaviour::NonFiniteHidden));
    let remote = connect(&[&servers[0], &servers[1]], options());
    let error = step(&remote, 0).expect_err("non-finite");
    assert!(error.is_overflow(), "{error}");
    assert!(["one", "two"].iter().all(|name| error.to_string().contains(name)), "{error}");
}

#[test]
fn non_finite_prompts_and_tokens_are_told_apart() {
    let honest = FakeServer::start("honest", "0:3", Behaviour::Honest);
    let remote = connect(&[&honest], options());
    let rows = Ragged::from_lengths(LENGTHS).expect("rows");
    let tokens = numbers(&[rows.n_tokens() as i64, HIDDEN as i64], 0.0).set_requires_grad(true);
    let prompts = numbers(&[PREFIX, HIDDEN as i64], 0.0);
    let check = |prefix: Option<&Tensor>, tokens: &Tensor, expected: &str| {
        let session = remote.tune(Vec::new()).expect("tuned");
        let error = session.forward(prefix, tokens, &rows, Want::LastOfRows).expect_err("non-finite");
        assert!(error.to_string().contains(expected) && !error.is_overflow(), "{expected}: {error}");
    };
    let (nan_tokens, nan_prompts) = (&tokens * f64::NAN, &prompts * f64::NAN);
    check(None, &nan_tokens, "send non-finite hidden states of tokens as");
    check(Some(&prompts), &nan_tokens, "send non-finite hidden states of tokens as");
    // This server's output depends on the tokens alone.
    check(Some(&nan_prompts), &nan_tokens, "send non-finite prompts as");
}

#[test]
fn deep_prompts_without_a_prefix_of_their_length_are_refused() {
    let honest = FakeServer::start("honest", "0:3", Behaviour::Honest);
    let remote = connect(&[&honest], options());
    let hidden = HIDDEN as i64;
    let rows = Ragged::from_lengths(LENGTHS).expect("rows");
    let tokens = numbers(&[rows.n_tokens() as i64, hidden], 0.0);
    let deep = numbers(&[N_BLOCKS as i64, PREFIX, hidden], 0.0).set_requires_grad(true);
    let session = remote.tune(vec![Tunable::new(DEEP_PROMPTS, deep)]).expect("tuned");
    let longer = numbers(&[PREFIX + 1, hidden], 0.0);
    for (prefix, length) in [(None, 0), (Some(&longer), 3)] {
        let error = session.forward(prefix, &tokens, &rows, Want::LastOfRows).expect_err("another length");
        assert!(matches!(&error, RemoteError::PrefixLen { expected: 2, found, .. } if *found == length), "{error}");
        assert!(error.to_string().contains("`deep_prompts` is for one of 2"), "{error}");
    }
    assert_eq!(honest.forward_calls(), 0, "nothing was sent");
}

#[test]
fn error_without_a_server_lists_the_last_failure_of_each() {
    let leaving = FakeServer::start("one", "0:3", Behaviour::Leaving);
    let other = FakeServer::start("two", "0:3", Behaviour::NotServed);
    let remote = connect(&[&leaving, &other], RemoteOptions { wait_ms: 600, ..options() });
    let error = step(&remote, 0).expect_err("no server");
    assert!(matches!(&error, RemoteError::NoServer { .. }), "{error}");
    for text in ["server one: leaving", "server two: other blocks"] {
        assert!(error.to_string().contains(text), "{text} in {error}");
    }
}
