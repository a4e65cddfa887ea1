//! Event files for TensorBoard.
//!
//! A file is a sequence of frames: the payload's length (u64), its masked CRC, the payload, its masked CRC, all little
//! endian (TensorFlow's `TFRecord`). A payload is a protobuf `Event`; [`proto`] has the few messages that are written.

mod file;
mod proto;

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::scalars::{of_evaluation, of_step};
use crate::{EvaluationRecord, Manifest, RunInfo, Status, StepRecord, TrackError, Tracker};
use file::EventFile;
use proto::{Summary, What};

/// Event files that TensorBoard reads.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TensorBoardConfig {
    /// Where event files go: in a folder of the run's name in this one, so that TensorBoard shows several runs side by
    /// side. Without it in the folder `tensorboard` of the run's own.
    #[schemars(with = "Option<String>")]
    pub folder: Option<PathBuf>,
}

/// Writes event files; see [`TensorBoardConfig`].
///
/// A run that goes on gets another file in the same folder. It begins with a mark that makes TensorBoard forget what was
/// told of later steps before the interruption.
#[derive(Debug)]
pub struct TensorBoard {
    config: TensorBoardConfig,
    file: Option<EventFile>,
}

impl TensorBoard {
    /// With these options; nothing is written before [`start`](Tracker::start).
    pub fn new(config: TensorBoardConfig) -> Self {
        Self { config, file: None }
    }

    fn write(&mut self, step: u64, what: What) -> Result<(), TrackError> {
        match &mut self.file {
            Some(file) => Ok(file.append(step, what)?),
            None => Err("no event file was begun".into()),
        }
    }
}

impl Tracker for TensorBoard {
    fn start(&mut self, run: &RunInfo) -> Result<(), TrackError> {
        let folder = match &self.config.folder {
            Some(folder) => folder.join(&run.id),
            None => run.folder.join("tensorboard"),
        };
        self.file = Some(EventFile::create(&folder)?);
        self.write(0, What::FileVersion("brain.Event:2".to_owned()))?;
        if run.resumed_at > 0 {
            // What has this step or a later one is forgotten.
            self.write(run.resumed_at + 1, What::SessionLog(proto::SessionLog { status: proto::SESSION_START }))?;
            return Ok(());
        }
        self.write(0, What::Summary(Summary::text("options", &table(run))))?;
        self.write(0, What::Summary(Summary::hparams(run)))
    }

    fn step(&mut self, record: &StepRecord) -> Result<(), TrackError> {
        self.write(record.step, What::Summary(Summary::scalars(of_step(record))))
    }

    fn evaluation(&mut self, record: &EvaluationRecord) -> Result<(), TrackError> {
        self.write(record.step, What::Summary(Summary::scalars(of_evaluation(record))))
    }

    fn finish(&mut self, manifest: &Manifest) -> Result<(), TrackError> {
        let good = manifest.status == Status::Finished;
        self.write(manifest.steps, What::Summary(Summary::hparams_end(good)))?;
        self.file = None;
        Ok(())
    }
}

/// The options as a table in Markdown.
fn table(run: &RunInfo) -> String {
    let mut text = "| option | value |\n| --- | --- |\n".to_owned();
    let cell = |text: &str| text.replace('|', "\\|").replace(['\n', '\r'], " ");
    for (key, value) in &run.options {
        text.push_str(&format!("| {} | {} |\n", cell(key), cell(value)));
    }
    text.push_str(&format!("| (trainable numbers) | {} |\n", run.trainable));
    text
}

#[cfg(test)]
mod tests;
