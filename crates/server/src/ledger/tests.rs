//! Tests of the ledger.

use sepal_wire::Limits;

use super::*;

const MB: u64 = 1 << 20;

fn ledger(limits: Limits, max_memory: Option<u64>) -> Ledger {
    Ledger::new(Quotas::new(&limits, max_memory))
}

/// A server of 100 MB: 40 for tapes, 10 for tunables, 30 for a computation, which leaves 20.
fn small() -> Ledger {
    let limits = Limits {
        tape_budget_bytes: 40 * MB,
        shared_bytes: 10 * MB,
        client_bytes: 5 * MB,
        call_bytes: 30 * MB,
        ..Limits::default()
    };
    ledger(limits, Some(100 * MB))
}

fn code(ledger: &Ledger, client: u64, kind: Kind, bytes: u64) -> Result<(), FailureCode> {
    code_of(ledger, ClientId::local(client), kind, bytes)
}

fn code_of(ledger: &Ledger, client: ClientId, kind: Kind, bytes: u64) -> Result<(), FailureCode> {
    ledger.client(client).reserve(kind, bytes).map(drop).map_err(|failure| failure.code)
}

#[test]
fn tunables_are_limited_for_each_client_and_for_all() {
    let ledger = ledger(Limits { client_bytes: 60, shared_bytes: 100, ..Limits::default() }, None);
    let first = ledger.client(ClientId::local(1));
    let reserved = first.reserve(Kind::Tunables, 40).expect("room");
    assert_eq!(code(&ledger, 1, Kind::Tunables, 30), Err(FailureCode::Overloaded), "70 of 60");
    assert_eq!(code(&ledger, 2, Kind::Tunables, 61), Err(FailureCode::NoMemory), "never fits");
    let beside = |bytes| first.reserve_beside(&reserved, Kind::Prefixes, bytes).map(drop).map_err(|f| f.code);
    assert_eq!((beside(20), beside(21)), (Ok(()), Err(FailureCode::NoMemory)), "never fits beside the first");
    let second = ledger.client(ClientId::local(2)).reserve(Kind::Prefixes, 60).expect("room");
    assert_eq!(code(&ledger, 3, Kind::Tunables, 1), Err(FailureCode::Overloaded), "101 of 100");
    drop(reserved);
    assert_eq!(code(&ledger, 3, Kind::Tunables, 40), Ok(()));
    drop(second);
    assert_eq!(ledger.used(&Kind::ALL), 0);
    assert!(lock(&ledger.accounts).is_empty());
    assert_eq!(ledger.refusals().count(Reason::TunableBytes), 4);
}

#[test]
fn messages_and_inputs_of_one_connection_leave_room_for_another() {
    let ledger = small();
    assert_eq!(code(&ledger, 1, Kind::Frames, 10 * MB + 1), Err(FailureCode::NoMemory), "more than half of 20 MB");
    let first = ledger.client(ClientId::local(1));
    let frame = first.reserve(Kind::Frames, 6 * MB).expect("room");
    let input = first.reserve(Kind::Calls, 4 * MB).expect("room");
    assert_eq!(code(&ledger, 1, Kind::Mailbox, 1), Err(FailureCode::Overloaded));
    let second = ledger.client(ClientId::local(2)).reserve(Kind::Calls, 10 * MB).expect("the other half");
    assert_eq!(code(&ledger, 3, Kind::Frames, 7 * MB), Err(FailureCode::Overloaded), "more than a third of 20 MB");
    assert_eq!(code(&ledger, 3, Kind::Frames, 6 * MB), Ok(()), "a share that the others cannot take");
    assert_eq!(code(&ledger, 3, Kind::Tunables, MB), Ok(()), "tunables have a part of their own");
    drop((frame, input, second));
    assert_eq!(ledger.used(&Kind::ALL), 0);
}

#[test]
fn answers_do_not_wait_for_inputs_and_keep_out_later_ones() {
    let ledger = small();
    let first = ledger.client(ClientId::local(1));
    let input = first.reserve(Kind::Calls, 10 * MB).expect("room");
    assert!(first.will_free());
    let answer = first.reserve(Kind::Answers, 10 * MB).expect("beside the input");
    assert_eq!(code(&ledger, 1, Kind::Answers, 1), Err(FailureCode::Overloaded), "11 of 10 MB are not read");
    drop(input);
    assert_eq!(code(&ledger, 1, Kind::Frames, 1), Err(FailureCode::Overloaded), "10 MB are not read");
    drop(answer);
    assert_eq!((ledger.used(&Kind::ALL), first.will_free()), (0, false));
}

#[test]
fn sessions_of_many_connections_leave_room_for_others() {
    let ledger = small();
    // A sixteenth of 100 MB is 6.25 MB.
    let _first = ledger.client(ClientId::local(1)).reserve(Kind::Sessions, 3 * MB).expect("a half of that");
    assert_eq!(code(&ledger, 1, Kind::Sessions, MB), Err(FailureCode::Overloaded));
    let others: Vec<Reservation> = (2..40)
        .flat_map(|client| {
            let quota = ledger.client(ClientId::local(client));
            std::iter::from_fn(move || quota.reserve(Kind::Sessions, 16 << 10).ok())
        })
        .collect();
    assert!(ledger.used(&Kind::ALL) <= 30 * MB, "equal shares of the others");
    assert_eq!(code(&ledger, 40, Kind::Sessions, MB / 8), Ok(()));
    assert_eq!(code(&ledger, 40, Kind::Frames, 10 * MB), Ok(()));
    drop(others);
}

#[test]
fn sessions_of_one_network_leave_a_quarter_to_others() {
    let ledger = small();
    let reserve = |number| ledger.client(ClientId::remote(number, 1)).reserve(Kind::Sessions, 2 * MB);
    let _entries = [reserve(1), reserve(2)].map(|reserved| reserved.expect("room"));
    assert_eq!(reserve(3).map(drop).map_err(|failure| failure.code), Err(FailureCode::Overloaded), "6 of 4.7 MB");
    assert_eq!(code_of(&ledger, ClientId::remote(4, 2), Kind::Sessions, 2 * MB), Ok(()));
}

#[test]
fn full_parts_of_a_server_and_its_sessions_do_not_keep_messages_out() {
    let ledger = small();
    let _tapes = [1, 2].map(|client| ledger.record_of(ClientId::local(client), Kind::Tapes, 20 * MB));
    let _tunables = ledger.record_of(ClientId::local(3), Kind::Tunables, 10 * MB);
    let _sessions = ledger.record_of(ClientId::local(3), Kind::Sessions, 6 * MB);
    let _computation = ledger.record(Kind::Computation, 30 * MB);
    let _message = ledger.client(ClientId::local(5)).reserve(Kind::Frames, 10 * MB).expect("room");
    assert_eq!(code(&ledger, 4, Kind::Frames, 10 * MB), Ok(()), "106 MB with the sessions");
    assert_eq!(code(&ledger, 4, Kind::Tapes, 5 * MB), Err(FailureCode::Overloaded), "101 of 100 MB");
}

#[test]
fn connections_of_one_network_leave_a_quarter_to_others() {
    let ledger = small();
    let [first, second, third] = [1, 2, 3].map(|number| ClientId::remote(number, 1));
    let _frames = [first, second].map(|client| ledger.client(client).reserve(Kind::Frames, 7 * MB).expect("room"));
    assert_eq!(code_of(&ledger, third, Kind::Frames, 2 * MB), Err(FailureCode::Overloaded), "16 of 15 MB");
    assert_eq!(code_of(&ledger, ClientId::remote(4, 2), Kind::Frames, 6 * MB), Ok(()));
    let _tunables = ledger.client(first).reserve(Kind::Tunables, 5 * MB).expect("room");
    assert_eq!(code_of(&ledger, second, Kind::Tunables, 3 * MB), Err(FailureCode::Overloaded), "8 of 7.5 MB");
    assert_eq!(code_of(&ledger, ClientId::remote(4, 2), Kind::Tunables, 3 * MB), Ok(()));
    assert_eq!(ledger.refusals().count(Reason::NetworkBytes), 2);
    // Another network has a share of what is full, however many connections the first one has.
    let _others = ledger.client(ClientId::remote(5, 3)).reserve(Kind::Frames, 6 * MB).expect("room");
    assert_eq!(code_of(&ledger, ClientId::remote(6, 4), Kind::Frames, 6 * MB), Ok(()), "a third");
}

#[test]
fn tensors_of_one_server_leave_room_for_those_of_another() {
    let limits = Limits { max_message_bytes: 100, ..Limits::default() };
    let ledger = ledger(limits, None);
    let _first = ledger.client(ClientId::local(1)).reserve(Kind::Mailbox, 90).expect("room");
    assert_eq!(code(&ledger, 1, Kind::Mailbox, 20), Err(FailureCode::Overloaded));
    assert_eq!(code(&ledger, 2, Kind::Mailbox, 60), Err(FailureCode::Overloaded), "more than a half");
    assert_eq!(code(&ledger, 2, Kind::Mailbox, 50), Ok(()));
    assert_eq!(ledger.refusals().count(Reason::Mailbox), 2);
}

#[test]
fn everything_that_a_connection_keeps_is_limited() {
    let ledger = small();
    let first = ledger.client(ClientId::local(1));
    let _tapes = first.reserve(Kind::Tapes, 73 * MB).expect("three quarters are 75 MB");
    assert_eq!(code(&ledger, 1, Kind::Sessions, 3 * MB), Err(FailureCode::Overloaded));
    assert_eq!(code(&ledger, 1, Kind::Frames, 10 * MB), Ok(()), "the call that uses a tape");
    assert_eq!(code(&ledger, 2, Kind::Sessions, 3 * MB), Ok(()));
    let _computation = ledger.record(Kind::Computation, 30 * MB);
    assert_eq!(code(&ledger, 2, Kind::Sessions, MB), Err(FailureCode::Overloaded), "100 MB are in use");
}

#[test]
fn reservation_grows_within_the_limits() {
    let ledger = small();
    let mut input = ledger.client(ClientId::local(1)).reserve(Kind::Calls, 4 * MB).expect("room");
    input.grow(5 * MB).expect("9 of 10 MB");
    assert_eq!(input.grow(2 * MB).map_err(|failure| failure.code), Err(FailureCode::Overloaded));
    assert_eq!(ledger.used(&[Kind::Calls]), 9 * MB);
    drop(input);
    assert_eq!(ledger.used(&Kind::ALL), 0);
}

#[test]
fn server_without_a_limit_takes_everything_but_tunables_and_tensors_of_others() {
    let ledger = ledger(Limits::default(), None);
    for kind in [Kind::Tapes, Kind::Calls, Kind::Frames, Kind::Answers, Kind::Sessions] {
        assert_eq!(code(&ledger, 1, kind, 1 << 50), Ok(()), "{kind:?}");
    }
}
