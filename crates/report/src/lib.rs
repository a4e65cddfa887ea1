//! Self-contained HTML reports of one run or of several.
//!
//! [`Run::read`] reads a run folder, [`report`] makes the page of one run, and [`compare`] makes that of several.
//! [`Sweep::read`] reads the folder of a sweep, and [`sweep_page`] makes its page with the statistics of repeated runs. A
//! page is a single HTML file: it loads nothing and works without scripts, in dark mode, on a phone and on paper.
//!
//! Limits: this crate trains nothing and fetches nothing; it shows recorded values as they are and computes the others
//! from the predictions.
//!
//! Invariants: only the manifest is required, and a page names missing parts; all external text is escaped; a page
//! stays under 2 MB for any run (curves are thinned, texts and lists are truncated, and the page says so); secrets are
//! not shown.
//!
//! ```
//! use sepal_report::{ReadError, Run, compare, report};
//!
//! let folder = std::path::Path::new("runs/sst2-20261124-171519");
//! match Run::read(folder) {
//!     Ok(run) => std::fs::write(folder.join("report.html"), report(&run))?,
//!     Err(ReadError::NoFolder { .. }) => assert!(compare(&[]).contains("There are no runs.")),
//!     Err(error) => return Err(error.into()),
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod axis;
mod chart;
mod compare;
mod curve;
mod measures;
mod options;
mod page;
mod parts;
mod read;
mod statistics;
mod sweep;
mod table;
mod text;

pub use compare::compare;
pub use options::Options;
pub use read::{ReadError, Run};
pub use statistics::Statistics;
pub use sweep::{Group, Sweep, sweep_page};

/// Returns the page of one run as HTML.
pub fn report(run: &Run) -> String {
    let sections: Vec<page::Section> = [
        parts::curves::section(run),
        parts::quality::section(run),
        parts::mistakes::section(run),
        parts::words::section(run),
        parts::facts::section(run),
        parts::servers::section(run),
        parts::reproduce::section(run),
    ]
    .into_iter()
    .flatten()
    .collect();
    let foot = format!("Made by Sepal {} from {}.", env!("CARGO_PKG_VERSION"), run.folder.display());
    page::page(&format!("{} – Sepal run", run.id()), &parts::headline::html(run), &sections, &foot)
}
