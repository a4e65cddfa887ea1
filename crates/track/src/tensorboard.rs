//! Tracker that writes event files for TensorBoard.
//!
//! A file is a sequence of frames: the payload's length (u64), its masked CRC, the payload, its masked CRC, all little
//! endian (TensorFlow's `TFRecord`). A payload is a protobuf `Event`; [`proto`] defines the messages that are written.

mod file;
mod proto;

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::scalars::{evaluation_scalars, step_scalars};
use crate::{EvaluationRecord, Manifest, RunInfo, Status, StepRecord, TrackError, Tracker};
use file::EventFile;
use proto::{EventKind, Summary};

/// Event files for TensorBoard.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TensorBoardConfig {
    /// Parent folder of the event files, with a subfolder of the run's name, so that TensorBoard shows several runs
    /// side by side. The folder `tensorboard` of the run folder if not given.
    #[schemars(with = "Option<String>")]
    pub folder: Option<PathBuf>,
}

/// Tracker that writes event files; see [`TensorBoardConfig`].
///
/// A resumed run gets another file in the same folder. It starts with a marker that makes TensorBoard drop the later
/// steps before the interruption.
#[derive(Debug)]
pub struct TensorBoard {
    config: TensorBoardConfig,
    file: Option<EventFile>,
}

impl TensorBoard {
    /// Creates a tracker with the given options; nothing is written before [`start`](Tracker::start).
    pub fn new(config: TensorBoardConfig) -> Self {
        Self { config, file: None }
    }

    fn write(&mut self, step: u64, kind: EventKind) -> Result<(), TrackError> {
        match &mut self.file {
            Some(file) => Ok(file.append(step, kind)?),
            None => Err("the tracker was not started".into()),
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
        self.write(0, EventKind::FileVersion("brain.Event:2".to_owned()))?;
        if run.resumed_at > 0 {
            // TensorBoard drops this step and later ones.
            self.write(run.resumed_at + 1, EventKind::SessionLog(proto::SessionLog { status: proto::SESSION_START }))?;
            return Ok(());
        }
        self.write(0, EventKind::Summary(Summary::text("options", &options_table(run))))?;
        self.write(0, EventKind::Summary(Summary::hparams(run)))
    }

    fn step(&mut self, record: &StepRecord) -> Result<(), TrackError> {
        self.write(record.step, EventKind::Summary(Summary::scalars(step_scalars(record))))
    }

    fn evaluation(&mut self, record: &EvaluationRecord) -> Result<(), TrackError> {
        self.write(record.step, EventKind::Summary(Summary::scalars(evaluation_scalars(record))))
    }

    fn finish(&mut self, manifest: &Manifest) -> Result<(), TrackError> {
        let is_success = manifest.status == Status::Finished;
        self.write(manifest.steps, EventKind::Summary(Summary::end_hparams(is_success)))?;
        self.file = None;
        Ok(())
    }
}

fn options_table(run: &RunInfo) -> String {
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
