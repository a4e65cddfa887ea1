//! Attacks by tensors that a server keeps: tunables, tapes, prefixes, deliveries.

use bytes::Bytes;
use sepal_core::{DType, HostTensor, Want};
use sepal_wire::Relay;

use super::Attack;
use super::client::{Client, forwarded, kind, mailbox_key};

/// Uploads tunables of this many megabytes `n` times, and keeps all.
pub fn uploads(addr: &str, n: usize, megabytes: usize) -> Attack {
    kept_sessions(addr, n, Some(megabytes))
}

/// Opens `n` sessions without tunables, and keeps all.
pub fn tuned_sessions(addr: &str, n: usize) -> Attack {
    kept_sessions(addr, n, None)
}

fn kept_sessions(addr: &str, n: usize, megabytes: Option<usize>) -> Attack {
    let addr = addr.to_owned();
    Attack::start(move |tally| async move {
        let client = Client::connect(&addr).await.map_err(|kind| tally.add(kind)).ok()?;
        let deep_prompts = megabytes.map(|megabytes| client.deep_prompts(megabytes));
        let mut stored = Vec::new();
        for _ in 0..n {
            let tuned = client.tune(deep_prompts.clone()).await;
            tally.add(kind(&tuned));
            stored.extend(tuned);
        }
        Some((client, stored))
    })
}

/// Delivers `n` empty tensors of this many dimensions to mailboxes of no call.
pub fn deliveries(addr: &str, n: usize, rank: usize) -> Attack {
    let shape = |rank: usize| [vec![0], vec![1; rank.saturating_sub(1)]].concat();
    let tensor = HostTensor::new(DType::F32, shape(rank), Bytes::new()).expect("no numbers");
    let addr = addr.to_owned();
    Attack::start(move |tally| async move {
        let client = Client::connect(&addr).await.map_err(|kind| tally.add(kind)).ok()?;
        for index in 0..n {
            tally.add(client.deliver(mailbox_key(index), &tensor).await);
        }
        Some(client)
    })
}

/// Runs `n` forward passes of this many positions, and keeps their tapes.
pub fn stored_tapes(addr: &str, n: usize, positions: usize) -> Attack {
    let addr = addr.to_owned();
    Attack::start(move |tally| async move {
        let client = Client::connect(&addr).await.map_err(|kind| tally.add(kind)).ok()?;
        let tuned = client.tune(None).await.map_err(|kind| tally.add(kind)).ok()?;
        let batch = client.batch(0, vec![16; positions.div_ceil(16)]);
        let mut tapes = Vec::new();
        for _ in 0..n {
            let call = client.forward(&tuned, &batch, Want::LastOfRows, true, &Relay::default());
            let outcome = forwarded(call).await;
            tally.add(kind(&outcome));
            tapes.extend(outcome);
        }
        Some((client, tapes))
    })
}

/// Runs a forward pass of this many positions with a tape on each of `n` connections, and closes the connection.
pub fn tapes_of_dead_connections(addr: &str, n: usize, positions: usize) -> Attack {
    let addr = addr.to_owned();
    Attack::start(move |tally| async move {
        for _ in 0..n {
            let outcome: Result<(), String> = async {
                let client = Client::connect(&addr).await?;
                let tuned = client.tune(None).await?;
                let batch = client.batch(0, vec![16; positions.div_ceil(16)]);
                forwarded(client.forward(&tuned, &batch, Want::LastOfRows, true, &Relay::default())).await?;
                Ok(())
            }
            .await;
            tally.add(kind(&outcome));
        }
    })
}

/// Fills `n` prefix caches of this many positions, and keeps them.
pub fn cached_prefixes(addr: &str, n: usize, positions: usize) -> Attack {
    let addr = addr.to_owned();
    Attack::start(move |tally| async move {
        let client = Client::connect(&addr).await.map_err(|kind| tally.add(kind)).ok()?;
        let batch = client.batch(positions, vec![1]);
        let mut stored = Vec::new();
        for _ in 0..n {
            let outcome: Result<_, String> = async {
                let tuned = client.tune(None).await?;
                forwarded(client.forward(&tuned, &batch, Want::LastOfRows, false, &Relay::default())).await?;
                Ok(tuned)
            }
            .await;
            tally.add(kind(&outcome));
            stored.extend(outcome);
        }
        Some((client, stored))
    })
}
