//! Worker that computes the batches of one model and monitors its availability.

use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::classifier::{Answer, ClassifierInfo, InvalidRow, Row};
use crate::model::{Description, Health, Model};
use crate::name::ModelName;
use crate::queue::{JobId, Refusal};
use crate::shared::Shared;

/// Classifier behind a gateway.
pub trait Classify {
    /// Returns one answer for each row, in order. `pairs` holds the second text of each row.
    ///
    /// # Errors
    /// [`ClassifyError`] if the rows cannot be computed, now or at all.
    fn classify(&mut self, texts: &[&str], pairs: Option<&[&str]>) -> Result<Vec<Answer>, ClassifyError>;

    /// Checks rows without computing them. A request that fails for some of its rows has its further rows checked, so that
    /// its client knows all invalid ones at once.
    ///
    /// # Errors
    /// [`ClassifyError::InvalidRows`] if the classifier does not take some of the rows.
    fn check(&mut self, texts: &[&str], pairs: Option<&[&str]>) -> Result<(), ClassifyError> {
        let _ = (texts, pairs);
        Ok(())
    }

    /// True if the classifier depends on servers, and so may become unavailable while it is idle.
    fn uses_remote_servers(&self) -> bool {
        false
    }
}

/// Error of predicting rows.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClassifyError {
    /// Servers that are unavailable at the moment; a retry may succeed.
    #[error("reach the servers of the model")]
    Unavailable(#[source] Box<dyn Error + Send + Sync>),
    /// Rows that cannot be computed.
    #[error("compute the rows")]
    Failed(#[source] Box<dyn Error + Send + Sync>),
    /// Rows that the classifier does not take, all of those that were given, counted from 0. No row was computed.
    #[error("compute the rows: {}", in_sequence(.0))]
    InvalidRows(Vec<InvalidRow>),
}

fn in_sequence(rows: &[InvalidRow]) -> String {
    let rows: Vec<String> = rows.iter().map(|InvalidRow { row, problem }| format!("row {row}: {problem}")).collect();
    rows.join("; ")
}

/// Error of a classifier that cannot be served.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message names the fields")]
#[non_exhaustive]
pub enum WorkerError {
    /// Failure on the trial text.
    #[error("try the classifier with a text")]
    Trial(#[source] Box<dyn Error + Send + Sync>),
    /// Answer of another kind than described.
    #[error("use the classifier's answer: expected one of {expected} labels or a finite number, found {found:?}")]
    Answer { expected: usize, found: Vec<Answer> },
}

/// Worker of a model, which runs on the thread that computes. Dropping it refuses the model's waiting requests and removes
/// the model from its gateway.
#[derive(Debug)]
pub struct Worker {
    pub(crate) shared: Arc<Shared>,
    pub(crate) model: Arc<Model>,
}

enum Task {
    Batch(Vec<(JobId, Row)>),
    Check,
    End,
}

impl Worker {
    /// Name of the model.
    pub fn name(&self) -> &ModelName {
        &self.model.name
    }

    /// Answers requests until the gateway is stopped or the model is unloaded, and all its requests are finished.
    ///
    /// The first prediction is a trial. Requests are refused with a retry time until it succeeds; then `ready` is called once.
    /// The model has the name of the worker; that of `info` is not used.
    ///
    /// # Errors
    /// [`WorkerError`] if the trial fails permanently.
    pub fn serve(
        &self,
        info: ClassifierInfo,
        classifier: &mut dyn Classify,
        ready: impl FnOnce(),
    ) -> Result<(), WorkerError> {
        let info = ClassifierInfo { name: self.model.name.to_string(), ..info };
        let example = info.example();
        let Some(mut answers) = self.try_classifier(&example, classifier)? else { return Ok(()) };
        if answers.len() != 1 || !answers[0].is_valid_for(&info) {
            return Err(WorkerError::Answer { expected: info.labels.len(), found: answers });
        }
        let example_answer = answers.swap_remove(0);
        let description = Description { info: info.clone(), example: example_answer };
        if !self.shared.publish(&self.model, description) {
            return Ok(());
        }
        ready();
        let mut last_computed_at = Instant::now();
        loop {
            match self.next_task(last_computed_at, classifier.uses_remote_servers()) {
                Task::Batch(batch) => self.compute(batch, &info, &example, classifier),
                Task::Check => self.check(&example, classifier),
                Task::End => return Ok(()),
            }
            last_computed_at = Instant::now();
        }
    }

    /// Ends the worker of a model that cannot be served, and reports the reason to the client that asked for the model.
    pub fn reject(self, reason: &str) {
        let outcome = self.model.take_outcome();
        if outcome.is_some() {
            self.shared.metrics.record_refused_load();
        }
        // The model is forgotten before the client knows, so that its next request does not find it.
        drop(self);
        if let Some(outcome) = outcome {
            // Fails if the client has disconnected.
            let _ = outcome.send(Err(reason.to_owned()));
        }
    }

    /// Marks predictions as unavailable.
    pub fn set_unavailable(&self) {
        self.model.set_health(Health::Unavailable);
    }

    /// Waits for `duration`; false if the gateway is stopped or the model unloaded before.
    pub fn sleep(&self, duration: Duration) -> bool {
        let deadline = Instant::now() + duration;
        let mut state = self.model.lock();
        loop {
            let remaining = deadline.saturating_duration_since(Instant::now());
            if state.is_cancelled() || remaining.is_zero() {
                return !state.is_cancelled();
            }
            state = self.model.wait(state, Some(remaining));
        }
    }

    /// Returns the answer to the trial text; `None` if the gateway is stopped or the model unloaded before.
    fn try_classifier(&self, row: &Row, classifier: &mut dyn Classify) -> Result<Option<Vec<Answer>>, WorkerError> {
        loop {
            match classify(classifier, &[row]) {
                Ok(answers) => return Ok(Some(answers)),
                Err(ClassifyError::Failed(source)) => return Err(WorkerError::Trial(source)),
                Err(error @ ClassifyError::InvalidRows(_)) => return Err(WorkerError::Trial(error.into())),
                Err(error) => {
                    self.warn("not ready yet", &error);
                    self.set_unavailable();
                }
            }
            if !self.sleep(self.shared.options.retry_interval) {
                return Ok(None);
            }
        }
    }

    fn next_task(&self, last_computed_at: Instant, uses_remote_servers: bool) -> Task {
        let options = &self.shared.options;
        let mut state = self.model.lock();
        loop {
            if state.is_closed {
                return Task::End;
            }
            if let Some(pause) = state.pause(options.batch_rows) {
                state = self.model.wait(state, Some(pause));
                continue;
            }
            let batch = state.queue.take(options.batch_rows, options.batch_bytes);
            if !batch.is_empty() {
                return Task::Batch(batch);
            }
            if state.is_finished() {
                return Task::End;
            }
            let interval = match state.is_ready() {
                false => Some(options.retry_interval),
                true => options.check_interval.filter(|_| uses_remote_servers),
            };
            let remaining = interval.map(|interval| interval.saturating_sub(last_computed_at.elapsed()));
            if remaining == Some(Duration::ZERO) {
                return Task::Check;
            }
            state = self.model.wait(state, remaining);
        }
    }

    /// Answers the rows of a batch. After a failure it computes each request separately, so that no request fails for the rows
    /// of another.
    fn compute(&self, batch: Vec<(JobId, Row)>, info: &ClassifierInfo, example: &Row, classifier: &mut dyn Classify) {
        let Err(error) = self.try_compute(&batch, info, classifier) else { return };
        let is_text_error = matches!(error, ClassifyError::InvalidRows(_));
        if !is_text_error {
            self.model.metrics.record_failure();
        }
        if let ClassifyError::Unavailable(_) = error {
            return self.handle_loss(&error);
        }
        let mut by_job = std::collections::BTreeMap::<JobId, Vec<(JobId, Row)>>::new();
        batch.into_iter().for_each(|(id, row)| by_job.entry(id).or_default().push((id, row)));
        let is_single = by_job.len() == 1;
        for (id, rows) in by_job {
            // A single request has already failed on its own.
            let result = if is_single { None } else { Some(self.try_compute(&rows, info, classifier)) };
            match result {
                Some(Ok(())) => {}
                Some(Err(error @ ClassifyError::Unavailable(_))) => return self.handle_loss(&error),
                Some(Err(error)) => self.refuse(id, rows.len(), &error, classifier),
                None => self.refuse(id, rows.len(), &error, classifier),
            }
        }
        // The cause may be the classifier instead of the rows.
        if !is_text_error {
            self.check(example, classifier);
        }
    }

    /// Refuses a request, whose next `n_rows` rows failed.
    fn refuse(&self, id: JobId, n_rows: usize, error: &ClassifyError, classifier: &mut dyn Classify) {
        let refusal = match error {
            ClassifyError::InvalidRows(invalid) => {
                Refusal::InvalidRows(self.invalid_rows(id, n_rows, invalid, classifier))
            }
            error => {
                self.warn("a request failed", error);
                Refusal::Failed
            }
        };
        self.model.lock().queue.refuse(id, refusal);
    }

    /// Returns the invalid rows of a request, whose next `n_rows` rows have `invalid` ones, counted from its first row.
    fn invalid_rows(
        &self,
        id: JobId,
        n_rows: usize,
        invalid: &[InvalidRow],
        classifier: &mut dyn Classify,
    ) -> Vec<InvalidRow> {
        let answered_and_waiting = self.model.lock().queue.take_waiting_rows(id);
        // None if the request was cancelled.
        let Some((n_answered, waiting_rows)) = answered_and_waiting else { return Vec::new() };
        let mut found: Vec<InvalidRow> = invalid.iter().map(|row| row.after(n_answered)).collect();
        if !waiting_rows.is_empty()
            && let Err(ClassifyError::InvalidRows(others)) = check(classifier, &waiting_rows)
        {
            found.extend(others.iter().map(|row| row.after(n_answered + n_rows)));
        }
        found
    }

    fn try_compute(
        &self,
        batch: &[(JobId, Row)],
        info: &ClassifierInfo,
        classifier: &mut dyn Classify,
    ) -> Result<(), ClassifyError> {
        let started_at = Instant::now();
        let rows: Vec<&Row> = batch.iter().map(|(_, row)| row).collect();
        let answers = classify(classifier, &rows)?;
        if answers.len() != batch.len() || !answers.iter().all(|answer| answer.is_valid_for(info)) {
            let found = format!("{} answers for {} rows, or non-finite numbers", answers.len(), batch.len());
            return Err(ClassifyError::Failed(found.into()));
        }
        let duration = started_at.elapsed();
        self.model.record_batch(batch.len(), duration);
        self.model.answer(batch.iter().map(|&(id, _)| id).zip(answers), duration);
        Ok(())
    }

    fn check(&self, example: &Row, classifier: &mut dyn Classify) {
        match classify(classifier, &[example]) {
            Ok(_) if !self.model.lock().is_ready() => {
                tracing::warn!("{}: ready again", self.model.name);
                self.model.set_health(Health::Ready);
            }
            Ok(_) => {}
            Err(error) => self.handle_loss(&error),
        }
    }

    fn handle_loss(&self, error: &ClassifyError) {
        if self.model.lock().is_ready() {
            self.warn("no longer ready; trying again", error);
        }
        self.model.set_health(Health::Unavailable);
    }

    fn warn(&self, message: &str, error: &(dyn Error + 'static)) {
        let causes = std::iter::successors(Some(error), |&error| error.source());
        let texts: Vec<String> = causes.map(|cause| cause.to_string()).collect();
        tracing::warn!("{}: {message}: {}", self.model.name, texts.join(": "));
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.shared.end_worker(&self.model);
    }
}

fn classify(classifier: &mut dyn Classify, rows: &[&Row]) -> Result<Vec<Answer>, ClassifyError> {
    let texts: Vec<&str> = rows.iter().map(|row| row.text.as_str()).collect();
    let pairs: Option<Vec<&str>> = rows.iter().map(|row| row.pair.as_deref()).collect();
    classifier.classify(&texts, pairs.as_deref())
}

fn check(classifier: &mut dyn Classify, rows: &[Row]) -> Result<(), ClassifyError> {
    let texts: Vec<&str> = rows.iter().map(|row| row.text.as_str()).collect();
    let pairs: Option<Vec<&str>> = rows.iter().map(|row| row.pair.as_deref()).collect();
    classifier.check(&texts, pairs.as_deref())
}
