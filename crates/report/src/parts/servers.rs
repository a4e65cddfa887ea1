use sepal_track::ServerUsage;

use crate::page::{Section, missing, paragraph};
use crate::read::Run;
use crate::table::{Cell, Table};
use crate::text;

/// Maximum number of listed servers.
const LISTED: usize = 100;

/// Section with the servers, their failures and the traffic.
pub(crate) fn section(run: &Run) -> Option<Section> {
    let servers = &run.manifest.servers;
    let bytes = run.manifest.bytes;
    let (sent, received) = (text::bytes(bytes.sent), text::bytes(bytes.received));
    let lead = if run.is_in_process() {
        format!(
            "The blocks ran in the run's own process: {sent} went to them and {received} came back, none over a network."
        )
    } else {
        format!("{sent} were sent and {received} received in all.")
    };
    let mut parts = vec![paragraph(&lead)];
    if servers.is_empty() {
        parts.push(missing("The run did not write down which servers it used."));
    } else {
        let (calls, failures) = servers
            .iter()
            .fold((0_u64, 0_u64), |sum, one| (sum.0.saturating_add(one.calls), sum.1.saturating_add(one.failures)));
        let cut = if servers.len() > LISTED { format!("; the {LISTED} with the most calls") } else { String::new() };
        let (calls, failures) = (text::counted(calls, "call", "calls"), text::counted(failures, "failure", "failures"));
        let all = text::counted(servers.len() as u64, "server", "servers");
        let caption = format!("{all}, {calls}, {failures}{cut}");
        let mut table = Table::new(caption, &["Server", "Blocks", "Calls", "Failures", "Failed", "Checked", "Wrong"]);
        let mut listed: Vec<_> = servers.iter().collect();
        if listed.len() > LISTED {
            listed.sort_by_key(|one| std::cmp::Reverse(one.calls));
            listed.truncate(LISTED);
        }
        let row = |one: &&ServerUsage| {
            let failed = text::percent(one.failures as f64 / one.calls.saturating_add(one.failures).max(1) as f64, 1);
            let wrong = text::count(one.differences);
            let wrong = if one.quarantined { format!("{wrong}, quarantined") } else { wrong };
            let [calls, failures, checks] = [one.calls, one.failures, one.checks].map(text::count);
            let numbers = [text::cut(&one.blocks, 40), calls, failures, failed, checks, wrong];
            std::iter::once(Cell::cut(&one.server, 48)).chain(numbers.map(Cell::number)).collect()
        };
        table.rows = listed.iter().map(row).collect();
        parts.push(table.html());
    }
    Some(Section::new("servers", "Servers", parts))
}
