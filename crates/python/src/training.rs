//! Runs of pipelines.

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use pyo3::prelude::*;
use sepal_pipeline::{Event, Observer, Summary};
use serde_json::{Value, json};

use crate::failure::Failure;
use crate::pipeline_text::load;
use crate::worker::{SecondInterrupt, Worker};

/// A run to make or to resume.
struct Request {
    name: String,
    text: String,
    sets: Vec<String>,
    resume: Option<Resume>,
}

enum Resume {
    /// The newest unfinished run of the pipeline, if there is one.
    Newest,
    Folder(PathBuf),
}

/// Runs the pipeline `text` and returns its summary as JSON. `resume` is a run folder, or empty for the newest unfinished run.
#[pyfunction]
#[pyo3(signature = (name, text, sets, resume, progress))]
pub(crate) fn train(
    py: Python<'_>,
    name: String,
    text: String,
    sets: Vec<String>,
    resume: Option<PathBuf>,
    progress: Option<Bound<'_, PyAny>>,
) -> PyResult<String> {
    let resume = resume.map(|folder| match folder.as_os_str().is_empty() {
        true => Resume::Newest,
        false => Resume::Folder(folder),
    });
    let request = Request { name, text, sets, resume };
    let (worker, summary) =
        Worker::<()>::start(py, progress.as_ref(), SecondInterrupt::Wait, move |observer, stop| {
            let summary = run(request, observer, stop)?;
            Ok(((), to_json(&summary).to_string()))
        })?;
    worker.close(py);
    Ok(summary)
}

fn run(request: Request, observer: &mut dyn Observer, stop: &AtomicBool) -> Result<Summary, Failure> {
    let registry = sepal_cli::plugins()?;
    let loaded = load(&registry, &request.name, &request.text, request.sets)?;
    for notice in &loaded.notices {
        observer.event(Event::Notice(notice));
    }
    let spec = loaded.spec;
    let folder = match request.resume {
        None => None,
        Some(Resume::Folder(folder)) => Some(folder),
        Some(Resume::Newest) => {
            let newest = sepal_pipeline::unfinished_run(&spec, &registry);
            if newest.is_none() {
                observer.event(Event::Notice("nothing to resume: a new run begins"));
            }
            newest
        }
    };
    let summary = match folder {
        Some(folder) => {
            observer.event(Event::Notice(&format!("resuming {}", folder.display())));
            sepal_pipeline::resume(&spec, &folder, &registry, observer, stop)?
        }
        None => sepal_pipeline::run(&spec, &registry, observer, stop)?,
    };
    if summary.interrupted {
        let folder = summary.folder.display();
        let notice = format!("stopped after {} steps; to continue, call sepal.train(resume={folder:?})", summary.steps);
        observer.event(Event::Notice(&notice));
    }
    Ok(summary)
}

fn to_json(summary: &Summary) -> Value {
    json!({
        "folder": summary.folder.to_string_lossy(),
        "interrupted": summary.interrupted,
        "metrics": summary.metrics,
        "headline": summary.headline.as_ref().map(|(name, _)| name),
        "best_step": summary.best_step,
        "ended_early": summary.ended_early,
        "steps": summary.steps,
        "skipped_steps": summary.skipped_steps,
        "rows_per_second": summary.rows_per_second,
        "tokens_per_second": summary.tokens_per_second,
        "bytes_sent": summary.bytes_sent,
        "bytes_received": summary.bytes_received,
        "seconds": summary.seconds,
    })
}
