//! `sepal report`.

use std::path::PathBuf;

use sepal_report::{Run, compare, report};

use crate::args::ReportArgs;
use crate::{Failure, print};

pub(crate) fn write(args: &ReportArgs) -> Result<(), Failure> {
    let runs = args.runs.iter().map(|folder| Run::read(folder)).collect::<Result<Vec<_>, _>>()?;
    let (page, usual) = match runs.as_slice() {
        [run] => (report(run), args.runs[0].join("report.html")),
        runs => (compare(runs), PathBuf::from("comparison.html")),
    };
    let path = args.output.clone().unwrap_or(usual);
    sepal_track::write_whole(&path, page.as_bytes())?;
    print(&format!("wrote {}", path.display()))
}
