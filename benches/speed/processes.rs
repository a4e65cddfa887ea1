//! Server processes as `sepal serve` starts them.

use std::path::PathBuf;
use std::sync::OnceLock;

use sepal_remote::RemoteSequential;
use sepal_swarm::Endpoint;

use crate::model::{smollm2, write_checkpoint};
use crate::step::connect;
use sepal_integration_tests::fixture::{Fixture, Server, http_get};

/// Checkpoint with SmolLM2's shape, written on first use.
#[derive(Default)]
pub(crate) struct Checkpoint(OnceLock<(Fixture, String)>);

impl Checkpoint {
    fn written(&self) -> &(Fixture, String) {
        self.0.get_or_init(|| {
            let fixture = Fixture { folder: tempfile::tempdir().expect("a folder") };
            write_checkpoint(&fixture.path("model"));
            let checkpoint = sepal_checkpoint::Checkpoint::open(fixture.path("model")).expect("a checkpoint");
            (fixture, checkpoint.digest().to_owned())
        })
    }

    pub(crate) fn folder(&self) -> PathBuf {
        self.written().0.path("model")
    }

    pub(crate) fn digest(&self) -> &str {
        &self.written().1
    }

    /// Starts a server of these blocks on loopback, with libtorch's number of threads.
    pub(crate) fn serve(&self, blocks: &str) -> Process {
        let args = ["--blocks", blocks, "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"];
        let mut server = self.written().0.serve_args(&args);
        let url = server.line("status on ");
        let http = url.trim_start_matches("http://").trim_end_matches('/').to_owned();
        Process { server, http }
    }

    pub(crate) fn connect(&self, servers: &[Process]) -> RemoteSequential {
        connect(servers.iter().map(Process::endpoint).collect(), self.digest(), &smollm2())
    }
}

pub(crate) struct Process {
    pub(crate) server: Server,
    http: String,
}

impl Process {
    pub(crate) fn endpoint(&self) -> Endpoint {
        Endpoint::Addr(self.server.addr.parse().expect("an address"))
    }

    /// Returns the seconds of computation so far, from the metrics.
    pub(crate) fn computed(&self) -> f64 {
        let (_, page) = http_get(&self.http, "/metrics");
        let sums = page.lines().filter(|line| line.starts_with("sepal_compute_seconds_sum"));
        sums.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }

    pub(crate) fn peak_bytes(&self) -> Option<u64> {
        peak_bytes(&self.server.child.id().to_string())
    }
}

pub(crate) fn peak_bytes(process: &str) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kilobytes: u64 = line.trim().trim_end_matches("kB").trim().parse().ok()?;
    Some(kilobytes * 1024)
}
