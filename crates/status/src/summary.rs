//! Data of the status page.

use std::time::Duration;

use sepal_core::Span;
use sepal_discover::{Member, ServerRecord};
use sepal_route::{coverage, uncovered_spans};
use sepal_wire::ServerInfo;
use serde_json::{Value, json};

pub(crate) fn summary(name: &str, info: Option<&ServerInfo>, others: &[Member], uptime: Duration) -> Value {
    let Some(info) = info else {
        return json!({ "name": name, "state": "loading", "up_seconds": uptime.as_secs() });
    };
    let mut servers = vec![(name.to_owned(), true, server_record(info))];
    let is_other = |member: &&Member| member.record.digest == info.model_digest && member.endpoint.to_string() != name;
    let others = others.iter().filter(is_other);
    servers.extend(others.map(|member| (member.endpoint.to_string(), false, member.record.clone())));
    servers.sort_by_key(|(name, is_own, record)| (record.span.start(), record.span.end(), !is_own, name.clone()));
    let spans: Vec<Span> =
        servers.iter().filter(|(_, _, record)| !record.draining).map(|(_, _, record)| record.span).collect();
    let server = |(name, is_own, record): &(String, bool, ServerRecord)| {
        let rate = (record.rate > 0.0).then(|| 1.0 / (record.rate * record.span.len() as f64));
        json!({
            "name": name,
            "label": record.name,
            "is_this": is_own,
            "start": record.span.start(),
            "end": record.span.end(),
            "tokens_per_second": rate,
            "queue": record.queue,
            "free_tape_bytes": record.free_tape_bytes,
            "draining": record.draining,
        })
    };
    json!({
        "name": name,
        "label": info.name,
        "state": if info.draining { "leaving" } else { "serving" },
        "up_seconds": uptime.as_secs(),
        "software": info.software,
        "model": { "digest": info.model_digest, "family": info.family, "weights": info.weights,
                   "n_blocks": info.n_blocks, "hidden": info.hidden, "dtype": info.compute_dtype },
        "load": { "queue": info.load.queue, "tapes": info.load.tapes, "tape_bytes": info.load.tape_bytes,
                  "tape_budget_bytes": info.limits.tape_budget_bytes, "completed": info.load.completed },
        "servers": servers.iter().map(server).collect::<Vec<_>>(),
        "servers_per_block": coverage(&spans, info.n_blocks),
        "holes": uncovered_spans(&spans, info.n_blocks).iter().map(|hole| [hole.start(), hole.end()]).collect::<Vec<_>>(),
    })
}

/// Returns the record that a server announces.
pub fn server_record(info: &ServerInfo) -> ServerRecord {
    ServerRecord {
        digest: info.model_digest.clone(),
        family: info.family.clone(),
        n_blocks: info.n_blocks,
        span: info.span,
        dtype: info.compute_dtype,
        rate: info.load.rate,
        queue: info.load.queue,
        free_tape_bytes: info.limits.tape_budget_bytes.saturating_sub(info.load.tape_bytes),
        draining: info.draining,
        software: info.software.clone(),
        name: info.name.clone(),
    }
}

#[cfg(test)]
mod tests {
    use sepal_core::DType;
    use sepal_swarm::Endpoint;
    use sepal_wire::{Limits, Load};

    use super::*;

    fn info(span: &str) -> ServerInfo {
        ServerInfo {
            protocol: sepal_wire::PROTOCOL,
            oldest_protocol: sepal_wire::OLDEST_CLIENT,
            tunables: Vec::new(),
            software: "sepal".into(),
            model_digest: "sha256:ab".into(),
            family: "llama".into(),
            n_blocks: 10,
            hidden: 8,
            span: span.parse().expect("a span"),
            compute_dtype: DType::F32,
            weights: "random".into(),
            limits: Limits { tape_budget_bytes: 100, ..Limits::default() },
            load: Load { tape_bytes: 30, rate: 1e-3, ..Load::default() },
            tape_token_bytes: 1,
            draining: false,
            name: "lab-3".parse().ok(),
            key: None,
            receipts: 0,
        }
    }

    fn member(name: &str, record: ServerRecord) -> Member {
        Member { endpoint: Endpoint::Addr(name.parse().expect("an address")), record }
    }

    #[test]
    fn summary_lists_servers_of_model_and_excludes_draining_from_coverage() {
        let others = [
            member("b:1", server_record(&info("5:8"))),
            member("c:1", ServerRecord { draining: true, ..server_record(&info("0:10")) }),
            member("d:1", ServerRecord { digest: "sha256:cd".into(), ..server_record(&info("0:10")) }),
            // The server's own announcement.
            member("a:1", server_record(&info("3:5"))),
        ];
        let summary = summary("a:1", Some(&info("2:6")), &others, Duration::from_secs(3));
        let servers = summary["servers"].as_array().expect("a list");
        let names: Vec<&str> = servers.iter().filter_map(|server| server["name"].as_str()).collect();
        assert_eq!(names, ["c:1", "a:1", "b:1"]);
        assert_eq!((&summary["label"], &summary["servers"][2]["label"]), (&json!("lab-3"), &json!("lab-3")));
        assert_eq!(summary["servers"][1]["is_this"], true);
        assert_eq!(summary["servers"][1]["tokens_per_second"], 250.0);
        assert_eq!(summary["servers"][1]["free_tape_bytes"], 70);
        assert_eq!(summary["servers_per_block"], json!([0, 0, 1, 1, 1, 2, 1, 1, 0, 0]));
        assert_eq!(summary["holes"], json!([[0, 2], [8, 10]]));
    }

    #[test]
    fn summary_of_loading_server_has_state_loading() {
        assert_eq!(summary("a:1", None, &[], Duration::ZERO)["state"], "loading");
    }
}
