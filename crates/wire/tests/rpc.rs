//! Calls with tensors between the two sides of a connection.

use std::cell::Cell;
use std::time::Duration;

use capnp::capability::Rc;
use sepal_core::{DType, HostTensor, HostTunable, Ragged};
use sepal_wire::codec::{self, Grads, WireBatch};
use sepal_wire::sepal_capnp::block_server;
use sepal_wire::sepal_capnp::tuned::{self, BackwardParams, BackwardResults, ForwardParams, ForwardResults};
use sepal_wire::{Parts, rpc};
use tokio::task::{JoinHandle, LocalSet};

const LIMIT: u64 = 1 << 22;

/// Server whose forward returns its input and whose backward never returns.
struct Echo {
    parts: Parts,
    backward_calls: std::rc::Rc<Cell<usize>>,
}

impl tuned::Server for Echo {
    async fn forward(self: Rc<Self>, params: ForwardParams, mut results: ForwardResults) -> capnp::Result<()> {
        let batch = codec::read_batch(params.get()?.get_batch()?, &self.parts);
        let batch = batch.map_err(|error| capnp::Error::failed(error.to_string()))?;
        codec::write_tensor(results.get().init_output(), &batch.hidden, &self.parts);
        Ok(())
    }

    async fn backward(self: Rc<Self>, params: BackwardParams, mut results: BackwardResults) -> capnp::Result<()> {
        let batch = codec::read_batch(params.get()?.get_batch()?, &self.parts);
        let batch = batch.map_err(|error| capnp::Error::failed(error.to_string()))?;
        let named = HostTunable { name: "deep_prompts".to_owned(), first_block: 0, tensor: batch.hidden };
        let grads = Grads { tunables: vec![named], ..Grads::default() };
        codec::write_grads(results.get().init_grads(), &grads, &self.parts);
        self.backward_calls.set(self.backward_calls.get() + 1);
        std::future::pending().await
    }
}

fn batch(n_tokens: usize) -> WireBatch {
    let data: Vec<u8> = (0..n_tokens * 16).map(|i| (i % 251) as u8).collect();
    let hidden = HostTensor::new(DType::F32, vec![n_tokens, 4], data.into()).expect("a tensor");
    WireBatch::new(0, Ragged::from_lengths([n_tokens]).expect("rows"), hidden).expect("a batch")
}

struct Sides {
    echo: tuned::Client,
    client: Parts,
    server: Parts,
    /// Number of backward calls, which never return.
    backward_calls: std::rc::Rc<Cell<usize>>,
    serving: JoinHandle<Result<(), capnp::Error>>,
}

impl Sides {
    /// Sends the hidden states of `batch` and returns them as they come back.
    async fn echo(&self, batch: &WireBatch) -> Result<HostTensor, capnp::Error> {
        let mut request = self.echo.forward_request();
        codec::write_batch(request.get().init_batch(), batch, &self.client);
        let answer = request.send().promise.await?;
        let tensor = codec::read_tensor(answer.get()?.get_output()?, &self.client);
        tensor.map_err(|error| capnp::Error::failed(error.to_string()))
    }

    /// Returns the parts of both sides, after everything in flight has arrived.
    async fn stored_parts(&self) -> String {
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        format!("{:?} {:?}", self.client, self.server)
    }
}

const NO_PARTS: &str = "Parts(0 outgoing, 0 incoming) Parts(0 outgoing, 0 incoming)";

/// Runs `test` on a connection whose pipe is smaller than a tensor.
fn check(test: impl AsyncFnOnce(Sides)) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    LocalSet::new().block_on(&runtime, async {
        let (near, far) = tokio::io::duplex(1 << 12);
        let (client, server) = (Parts::default(), Parts::default());
        let backward_calls = std::rc::Rc::new(Cell::new(0));
        let echo = Echo { parts: server.clone(), backward_calls: backward_calls.clone() };
        let root = block_server::Client { client: capnp_rpc::new_client::<tuned::Client, _>(echo).client };
        let (reader, writer) = tokio::io::split(far);
        let serving = rpc::server(reader, writer, LIMIT, root, &server, None);
        let serving = tokio::task::spawn_local(serving);
        let (reader, writer) = tokio::io::split(near);
        let (root, system) = rpc::client(reader, writer, LIMIT, &client);
        tokio::task::spawn_local(system);
        let sides = Sides { echo: tuned::Client { client: root.client }, client, server, backward_calls, serving };
        tokio::time::timeout(Duration::from_secs(60), test(sides)).await.expect("it ends");
    });
}

#[test]
fn echoed_tensors_are_exact_and_leave_no_parts() {
    check(async |sides| {
        let batches = [1, 60, 64, 1000, 20_000].map(batch);
        for batch in &batches {
            assert_eq!(sides.echo(batch).await.expect("sent back"), batch.hidden);
        }
        let all = futures::future::try_join_all(batches.iter().map(|batch| sides.echo(batch))).await;
        for (found, batch) in all.expect("sent back").iter().zip(&batches) {
            assert_eq!(found, &batch.hidden);
        }
        assert_eq!(sides.stored_parts().await, NO_PARTS);
    });
}

#[test]
fn unsent_and_cancelled_calls_leave_no_parts() {
    check(async |sides| {
        let batch = batch(1000);
        let mut request = sides.echo.forward_request();
        codec::write_batch(request.get().init_batch(), &batch, &sides.client);
        drop(request);
        assert_eq!(sides.stored_parts().await, NO_PARTS, "unsent");
        let mut request = sides.echo.backward_request();
        codec::write_batch(request.get().init_batch(), &batch, &sides.client);
        let call = request.send().promise;
        let cancelled = tokio::time::timeout(Duration::from_millis(1), call).await;
        assert!(cancelled.is_err());
        while sides.backward_calls.get() == 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(sides.stored_parts().await, NO_PARTS, "cancelled after its answer was written");
        assert_eq!(sides.echo(&batch).await.expect("sent back"), batch.hidden);
    });
}

#[test]
fn message_beyond_limit_ends_connection() {
    check(async |sides| {
        sides.echo(&batch(300_000)).await.expect_err("too large");
        assert!(sides.echo(&batch(1000)).await.is_err());
        assert_eq!(sides.stored_parts().await, NO_PARTS, "calls on a closed connection");
        let error = sides.serving.await.expect("no panic").expect_err("refused");
        assert_eq!(error.extra, format!("a message of more than {LIMIT} bytes"));
    });
}
