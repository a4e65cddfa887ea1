//! Calls with tensors between the two sides of a connection.

use std::cell::Cell;
use std::time::Duration;

use capnp::capability::Rc;
use sepal_core::{DType, HostTensor, NamedHostTensor, Ragged};
use sepal_wire::codec::{self, Grads, WireBatch};
use sepal_wire::sepal_capnp::{block_server, tuned};
use sepal_wire::{Parts, conversation};
use tokio::task::{JoinHandle, LocalSet};

const LIMIT: u64 = 1 << 22;

/// A forward that sends back what came, and a backward that never answers.
struct Echo {
    parts: Parts,
    waiting: std::rc::Rc<Cell<usize>>,
}

impl tuned::Server for Echo {
    async fn forward(
        self: Rc<Self>,
        params: tuned::ForwardParams,
        mut results: tuned::ForwardResults,
    ) -> Result<(), capnp::Error> {
        let batch = codec::read_batch(params.get()?.get_batch()?, &self.parts);
        let batch = batch.map_err(|error| capnp::Error::failed(error.to_string()))?;
        codec::write_tensor(results.get().init_output(), &batch.hidden, &self.parts);
        Ok(())
    }

    async fn backward(
        self: Rc<Self>,
        params: tuned::BackwardParams,
        mut results: tuned::BackwardResults,
    ) -> Result<(), capnp::Error> {
        let batch = codec::read_batch(params.get()?.get_batch()?, &self.parts);
        let batch = batch.map_err(|error| capnp::Error::failed(error.to_string()))?;
        let named = NamedHostTensor { name: "deep_prompts".to_owned(), tensor: batch.hidden };
        let grads = Grads { tunables: vec![named], ..Grads::default() };
        codec::write_grads(results.get().init_grads(), &grads, &self.parts);
        self.waiting.set(self.waiting.get() + 1);
        std::future::pending().await
    }
}

fn batch(n_tokens: usize) -> WireBatch {
    let data: Vec<u8> = (0..n_tokens * 16).map(|i| (i % 251) as u8).collect();
    let hidden = HostTensor::new(DType::F32, vec![n_tokens, 4], data.into()).expect("it fits");
    WireBatch::new(0, Ragged::from_lengths([n_tokens]).expect("rows"), hidden).expect("a batch")
}

/// The sides of a connection.
struct Sides {
    echo: tuned::Client,
    client: Parts,
    server: Parts,
    /// Calls that never end.
    waiting: std::rc::Rc<Cell<usize>>,
    serving: JoinHandle<Result<(), capnp::Error>>,
}

impl Sides {
    /// The tensor of `batch`, there and back.
    async fn echoed(&self, batch: &WireBatch) -> Result<HostTensor, capnp::Error> {
        let mut request = self.echo.forward_request();
        codec::write_batch(request.get().init_batch(), batch, &self.client);
        let answer = request.send().promise.await?;
        let tensor = codec::read_tensor(answer.get()?.get_output()?, &self.client);
        tensor.map_err(|error| capnp::Error::failed(error.to_string()))
    }

    /// How many parts either side holds, once all that is on its way has come.
    async fn held(&self) -> String {
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        format!("{:?} {:?}", self.client, self.server)
    }
}

const NOTHING: &str = "Parts(0 leaving, 0 arrived) Parts(0 leaving, 0 arrived)";

/// Runs `work` on a connection whose pipe is smaller than a tensor.
fn check(work: impl AsyncFnOnce(Sides)) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    LocalSet::new().block_on(&runtime, async {
        let (near, far) = tokio::io::duplex(1 << 12);
        let (client, server) = (Parts::default(), Parts::default());
        let waiting = std::rc::Rc::new(Cell::new(0));
        let echo = Echo { parts: server.clone(), waiting: waiting.clone() };
        let root = block_server::Client { client: capnp_rpc::new_client::<tuned::Client, _>(echo).client };
        let (reader, writer) = tokio::io::split(far);
        let serving = conversation::server(reader, writer, LIMIT, root, &server);
        let serving = tokio::task::spawn_local(serving);
        let (reader, writer) = tokio::io::split(near);
        let (root, conversation) = conversation::client(reader, writer, LIMIT, &client);
        tokio::task::spawn_local(conversation);
        let sides = Sides { echo: tuned::Client { client: root.client }, client, server, waiting, serving };
        tokio::time::timeout(Duration::from_secs(60), work(sides)).await.expect("it ends");
    });
}

#[test]
fn tensors_go_there_and_back_and_leave_nothing() {
    check(async |sides| {
        let batches = [1, 60, 64, 1000, 20_000].map(batch);
        for batch in &batches {
            assert_eq!(sides.echoed(batch).await.expect("sent back"), batch.hidden);
        }
        let all = futures::future::try_join_all(batches.iter().map(|batch| sides.echoed(batch))).await;
        for (found, batch) in all.expect("sent back").iter().zip(&batches) {
            assert_eq!(found, &batch.hidden);
        }
        assert_eq!(sides.held().await, NOTHING);
    });
}

#[test]
fn calls_that_are_not_made_or_given_up_leave_nothing() {
    check(async |sides| {
        let batch = batch(1000);
        let mut request = sides.echo.forward_request();
        codec::write_batch(request.get().init_batch(), &batch, &sides.client);
        drop(request);
        assert_eq!(sides.held().await, NOTHING, "never sent");
        let mut request = sides.echo.backward_request();
        codec::write_batch(request.get().init_batch(), &batch, &sides.client);
        let call = request.send().promise;
        let given_up = tokio::time::timeout(Duration::from_millis(1), call).await;
        assert!(given_up.is_err());
        while sides.waiting.get() == 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(sides.held().await, NOTHING, "given up with its answer written");
        assert_eq!(sides.echoed(&batch).await.expect("sent back"), batch.hidden);
    });
}

#[test]
fn a_message_beyond_the_limit_ends_the_connection() {
    check(async |sides| {
        sides.echoed(&batch(300_000)).await.expect_err("too large");
        assert!(sides.echoed(&batch(1000)).await.is_err());
        assert_eq!(sides.held().await, NOTHING, "calls on a connection that has ended");
        let error = sides.serving.await.expect("no panic").expect_err("refused");
        assert_eq!(error.extra, format!("a message of more than {LIMIT} bytes"));
    });
}
