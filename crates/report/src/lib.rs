//! What a run was and how good it became, on one page that can be passed on.
//!
//! [`Run::read`] reads a run folder, [`report`] makes a page of one run and [`compare`] one of several. A page is a
//! single HTML file with everything in it: it loads nothing, works without scripts, in the dark, on a phone and on
//! paper. This crate trains nothing and decides nothing; what the run wrote down is shown as it is, and what it did not
//! is computed from its predictions.
//!
//! Invariants: only the manifest has to be there, and a page says what is missing; every text from outside is escaped;
//! a page stays under 2 MB whatever the run (curves are thinned, texts and lists cut, and the page says so); what admits
//! to a swarm is not shown.
//!
//! ```no_run
//! use sepal_report::{Run, report};
//!
//! let folder = std::path::Path::new("runs/sst2-20261124-171519");
//! let run = Run::read(folder)?;
//! std::fs::write(folder.join("report.html"), report(&run))?;
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
mod table;
mod text;

pub use compare::compare;
pub use options::Options;
pub use read::{ReadError, Run};

/// The page of one run.
pub fn report(run: &Run) -> String {
    let sections: Vec<page::Section> = [
        parts::curves::section(run),
        parts::quality::section(run),
        parts::mistakes::section(run),
        parts::words::section(run),
        parts::facts::section(run),
        parts::servers::section(run),
        parts::again::section(run),
    ]
    .into_iter()
    .flatten()
    .collect();
    let foot = format!("Made by Sepal {} from {}.", env!("CARGO_PKG_VERSION"), run.folder.display());
    page::page(&format!("{} – Sepal run", run.id()), &parts::headline::html(run), &sections, &foot)
}
