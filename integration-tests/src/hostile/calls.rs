//! Attacks by calls: long rows, full queues, waits without end, cancelled calls.

use std::collections::VecDeque;
use std::time::Duration;

use sepal_core::{Span, Want};
use sepal_wire::{Relay, RelayTarget, codec, sepal_capnp as wire};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;

use super::client::{Calls, Client, forwarded, kind, mailbox_key};
use super::frames::header;
use super::{Attack, CLOSED, OK, PATIENCE, Tally};

/// Calls that are sent before other tasks run.
const BURST: usize = 200;

/// Sends one row of this many tokens, the memory of which grows with the square of its length.
pub fn one_row(addr: &str, tokens: usize) -> Attack {
    let addr = addr.to_owned();
    Attack::start(move |tally| async move {
        let outcome: Result<Client, String> = async {
            let client = Client::connect(&addr).await?;
            let tuned = client.tune(None).await?;
            let batch = client.batch(0, vec![tokens]);
            forwarded(client.forward(&tuned, &batch, Want::All, false, &Relay::default())).await?;
            Ok(client)
        }
        .await;
        tally.add(kind(&outcome));
        outcome
    })
}

/// Sends one row of this many tokens, `n` times, and closes the connection each time before the answer.
pub fn abandoned_row(addr: &str, n: usize, tokens: usize) -> Attack {
    let addr = addr.to_owned();
    Attack::start(move |tally| async move {
        for _ in 0..n {
            let outcome: Result<(), String> = async {
                let client = Client::connect(&addr).await?;
                let tuned = client.tune(None).await?;
                let batch = client.batch(0, vec![tokens]);
                let call = client.forward(&tuned, &batch, Want::All, false, &Relay::default());
                client.flush().await;
                drop(call);
                Ok(())
            }
            .await;
            tally.add(kind(&outcome));
        }
    })
}

/// Sends `n` forward passes whose inputs another server is to deliver, which it never does.
pub fn waiting_forwards(addr: &str, n: usize) -> Attack {
    let relay = |index| Relay { from: Some(mailbox_key(index)), next: None };
    in_flight(addr, n, vec![1; 4096], relay)
}

/// Sends `n` forward passes on each of `connections`, whose inputs never arrive.
pub fn crowded_calls(addr: &str, connections: usize, n: usize) -> Attack {
    let addr = addr.to_owned();
    Attack::start(move |tally| async move {
        let (mut opened, mut calls) = (Vec::new(), Calls::default());
        for _ in 0..connections {
            let (client, tuned) = connect_and_tune(&addr, &tally).await?;
            let batch = client.batch(0, vec![1]);
            for index in 0..n {
                let relay = Relay { from: Some(mailbox_key(index)), next: None };
                let call = client.forward(&tuned, &batch, Want::All, false, &relay);
                calls.add(&tally, async move { kind(&forwarded(call).await) });
            }
            client.flush().await;
            opened.push((client, tuned));
        }
        calls.settle(&tally, PATIENCE).await;
        Some((opened, calls))
    })
}

/// Sends `n` forward passes whose inputs never arrive, each with an address of this many bytes to send the result to.
pub fn long_addresses(addr: &str, n: usize, bytes: usize) -> Attack {
    let relay = move |index| {
        let next = Some(RelayTarget { address: "a".repeat(bytes), key: mailbox_key(index) });
        Relay { from: Some(mailbox_key(index)), next }
    };
    in_flight(addr, n, vec![1], relay)
}

/// Sends `n` forward passes of one position, so that always 200 wait for their answers.
pub fn small_calls(addr: &str, n: usize) -> Attack {
    let addr = addr.to_owned();
    Attack::start(move |tally| async move {
        let (client, tuned) = connect_and_tune(&addr, &tally).await?;
        let batch = client.batch(0, vec![1]);
        let mut waiting = VecDeque::new();
        for _ in 0..n {
            if waiting.len() == BURST
                && let Some(call) = waiting.pop_front()
            {
                tally.add(kind(&forwarded(call).await));
            }
            waiting.push_back(client.forward(&tuned, &batch, Want::All, false, &Relay::default()));
        }
        for call in waiting {
            tally.add(kind(&forwarded(call).await));
        }
        Some((client, tuned))
    })
}

/// Sends `n` forward passes of this many positions without waiting for the answers.
pub fn queued_calls(addr: &str, n: usize, positions: usize) -> Attack {
    in_flight(addr, n, vec![4; positions.div_ceil(4)], |_| Relay::default())
}

/// Sends `n` forward passes of rows of these lengths, and holds those without an answer.
fn in_flight(addr: &str, n: usize, lengths: Vec<usize>, relay: impl Fn(usize) -> Relay + Send + 'static) -> Attack {
    let addr = addr.to_owned();
    Attack::start(move |tally| async move {
        let (client, tuned) = connect_and_tune(&addr, &tally).await?;
        let batch = client.batch(0, lengths);
        let mut calls = Calls::default();
        for index in 0..n {
            let call = client.forward(&tuned, &batch, Want::All, false, &relay(index));
            calls.add(&tally, async move { kind(&forwarded(call).await) });
            if index.is_multiple_of(BURST) {
                tokio::task::yield_now().await;
            }
        }
        calls.settle(&tally, PATIENCE).await;
        Some((client, tuned, calls))
    })
}

/// Sends a forward pass for each of these addresses, to which the server is to send the result.
pub fn relays_to(addr: &str, targets: Vec<String>) -> Attack {
    let addr = addr.to_owned();
    Attack::start(move |tally| async move {
        let (client, tuned) = connect_and_tune(&addr, &tally).await?;
        let batch = client.batch(0, vec![2]);
        for (index, address) in targets.into_iter().enumerate() {
            let next = Some(RelayTarget { address, key: mailbox_key(index) });
            let call = client.forward(&tuned, &batch, Want::All, false, &Relay { from: None, next });
            tally.add(kind(&forwarded(call).await));
        }
        Some((client, tuned))
    })
}

/// Sends `n` forward passes, each with a listener of its own to send the result to, which keeps the transfer open.
pub fn slow_relays(addr: &str, n: usize) -> Attack {
    let addr = addr.to_owned();
    Attack::start(move |tally| async move {
        let (client, tuned) = connect_and_tune(&addr, &tally).await?;
        let batch = client.batch(0, vec![2]);
        let mut calls = Calls::default();
        for index in 0..n {
            let listener = TcpListener::bind("127.0.0.1:0").await.ok()?;
            let address = listener.local_addr().ok()?.to_string();
            tokio::task::spawn_local(drip_answer(listener));
            let next = Some(RelayTarget { address, key: mailbox_key(index) });
            let call = client.forward(&tuned, &batch, Want::All, false, &Relay { from: None, next });
            calls.add(&tally, async move { kind(&forwarded(call).await) });
        }
        calls.settle(&tally, PATIENCE).await;
        Some((client, tuned, calls))
    })
}

/// Accepts a connection and sends one byte of an answer each second.
async fn drip_answer(listener: TcpListener) {
    let Ok((mut stream, _)) = listener.accept().await else { return };
    for byte in header(8, 0, 0) {
        if stream.write_all(&[byte]).await.is_err() {
            return;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// Connects and opens a session. Counts the answer and returns `None` if that fails.
async fn connect_and_tune(addr: &str, tally: &Tally) -> Option<(Client, wire::tuned::Client)> {
    let connected: Result<(Client, wire::tuned::Client), String> = async {
        let client = Client::connect(addr).await?;
        let tuned = client.tune(None).await?;
        Ok((client, tuned))
    }
    .await;
    connected.map_err(|kind| tally.add(kind)).ok()
}

/// Sends `n` forward passes of this many positions, and cancels each before its answer.
pub fn cancelled_calls(addr: &str, n: usize, positions: usize) -> Attack {
    let addr = addr.to_owned();
    Attack::start(move |tally| async move {
        let (client, tuned) = connect_and_tune(&addr, &tally).await?;
        let batch = client.batch(0, vec![4; positions.div_ceil(4)]);
        for _ in 0..n {
            let call = client.forward(&tuned, &batch, Want::All, true, &Relay::default());
            // A cancelled call is one that was sent.
            client.flush().await;
            drop(call);
        }
        tally.add_many(OK, n);
        Some((client, tuned))
    })
}

/// Asks for the description of the server `n` times without waiting for the answers.
pub fn describe_flood(addr: &str, n: usize) -> Attack {
    let addr = addr.to_owned();
    Attack::start(move |tally| async move {
        let client = Client::connect(&addr).await.map_err(|kind| tally.add(kind)).ok()?;
        let mut calls = Calls::default();
        for index in 0..n {
            let call = client.root.describe_request().send().promise;
            calls.add(&tally, async move { call.await.map_or(CLOSED, |_| OK).to_owned() });
            if index.is_multiple_of(BURST) {
                tokio::task::yield_now().await;
            }
        }
        calls.settle(&tally, PATIENCE).await;
        Some((client, calls))
    })
}

/// Sends `n` batches of this many rows without a token, each with hidden states of one position.
pub fn empty_rows(addr: &str, n: usize, rows: usize) -> Attack {
    let addr = addr.to_owned();
    Attack::start(move |tally| async move {
        let (client, tuned) = connect_and_tune(&addr, &tally).await?;
        let batch = client.batch(0, vec![1]);
        for _ in 0..n {
            let mut request = tuned.forward_request();
            let mut params = request.get();
            codec::write_batch(params.reborrow().init_batch(), &batch, client.parts());
            if let Ok(written) = params.reborrow().get_batch() {
                // All offsets are 0.
                written.init_offsets(u32::try_from(rows + 1).unwrap_or(u32::MAX));
            }
            params.set_want(wire::Want::All);
            tally.add(kind(&forwarded(request.send()).await));
        }
        Some((client, tuned))
    })
}

/// Calls sessions that the server refuses to open, `n` times, before the refusals have arrived.
pub fn broken_promises(addr: &str, n: usize) -> Attack {
    let addr = addr.to_owned();
    Attack::start(move |tally| async move {
        let client = Client::connect(&addr).await.map_err(|kind| tally.add(kind)).ok()?;
        let end = client.info.span.end();
        let unserved = Span::new(end, end + 1).expect("a span");
        let batch = client.batch(0, vec![4; 16]);
        let mut calls = Calls::default();
        for index in 0..n {
            let opened = client.open_request(unserved).send();
            let tuned = opened.pipeline.get_session().tune_request().send();
            let call = client.forward(&tuned.pipeline.get_tuned(), &batch, Want::All, true, &Relay::default());
            calls.add(&tally, async move {
                let outcome = forwarded(call).await;
                drop((opened, tuned));
                kind(&outcome)
            });
            if index.is_multiple_of(BURST) {
                tokio::task::yield_now().await;
            }
        }
        calls.settle(&tally, PATIENCE).await;
        Some((client, calls))
    })
}
