//! Result of a run as text.

use sepal_pipeline::Summary;

use crate::calibrate;
use crate::units::{clock, size};

pub(crate) fn summary(summary: &Summary) -> String {
    let mut lines = Vec::new();
    if summary.interrupted {
        let folder = summary.folder.display();
        lines.push(format!("stopped after {} steps; go on with: sepal run --resume {folder}", summary.steps));
    }
    if let Some(reason) = &summary.ended_early {
        lines.push(format!("ended after {} steps: {reason}", summary.steps));
    }
    if let Some((name, value)) = &summary.headline {
        let shown = if name == "accuracy" { format!("{:.2} %", value * 100.0) } else { format!("{value:.4}") };
        let best = summary.best_step.filter(|&step| step != summary.steps);
        let best = best.map(|step| format!(" (the best evaluation, after step {step}, is kept)")).unwrap_or_default();
        lines.push(format!("{name:<11} {shown}{best}"));
    }
    lines.extend(summary.calibration.iter().flat_map(calibrate::lines));
    let n = summary.skipped_steps;
    let skipped = if n > 0 { format!(", {n} of them skipped") } else { String::new() };
    lines.push(format!(
        "throughput  {:.1} rows/s, {:.0} tokens/s over {} steps{skipped}",
        summary.rows_per_second, summary.tokens_per_second, summary.steps
    ));
    if !summary.quarantined.is_empty() {
        lines.push(format!(
            "quarantined {} (wrong results; see `evidence` in the folder)",
            summary.quarantined.join(", ")
        ));
    }
    lines.push(format!("bytes       {} sent, {} received", size(summary.bytes_sent), size(summary.bytes_received)));
    lines.push(format!("time        {}", clock(summary.seconds)));
    lines.push(format!("folder      {}", summary.folder.display()));
    lines.join("\n")
}
