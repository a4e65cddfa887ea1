//! `sepal report`: report pages of runs.

use std::path::PathBuf;

use sepal_report::{Run, Sweep, compare, report, sweep_page};
use sepal_track::SweepRecord;

use crate::args::ReportArgs;
use crate::output::{Failure, print};

pub(crate) fn write(args: &ReportArgs) -> Result<(), Failure> {
    let path = page_path(args)?;
    if let [folder] = args.runs.as_slice()
        && SweepRecord::is_in(folder)
    {
        let page = sweep_page(&Sweep::read(folder)?);
        sepal_track::write_atomic(&path, page.as_bytes())?;
        return print(&format!("wrote {}", path.display()));
    }
    let runs = args.runs.iter().map(|folder| Run::read(folder)).collect::<Result<Vec<_>, _>>()?;
    let page = if let [run] = runs.as_slice() { report(run) } else { compare(&runs) };
    sepal_track::write_atomic(&path, page.as_bytes())?;
    print(&format!("wrote {}", path.display()))
}

/// Returns the path of the page. Only the report.html of a run replaces an existing page without `--overwrite`.
fn page_path(args: &ReportArgs) -> Result<PathBuf, Failure> {
    let path = match (&args.output, args.runs.as_slice()) {
        (None, [run]) => return Ok(run.join("report.html")),
        (None, _) => PathBuf::from("comparison.html"),
        (Some(output), _) => output.clone(),
    };
    if !args.overwrite && path.is_file() {
        return Err(
            format!("write {}: it exists; give another name by --output, or --overwrite", path.display()).into()
        );
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn existing_page_without_overwrite_is_kept() {
        let folder = tempfile::tempdir().expect("a folder");
        let page = folder.path().join("page.html");
        let args = |runs: &[&str], output: Option<&PathBuf>, overwrite| ReportArgs {
            runs: runs.iter().map(|run| folder.path().join(run)).collect(),
            output: output.cloned(),
            overwrite,
        };
        assert_eq!(page_path(&args(&["a", "b"], Some(&page), false)).expect("a free place"), page);
        std::fs::write(&page, "").expect("written");
        let refused = page_path(&args(&["a", "b"], Some(&page), false)).expect_err("a taken place").to_string();
        assert!(refused.ends_with("page.html: it exists; give another name by --output, or --overwrite"), "{refused}");
        assert_eq!(page_path(&args(&["a", "b"], Some(&page), true)).expect("replaced"), page);
        std::fs::create_dir(folder.path().join("a")).expect("made");
        std::fs::write(folder.path().join("a/report.html"), "").expect("written");
        assert!(page_path(&args(&["a"], None, false)).is_ok());
    }
}
