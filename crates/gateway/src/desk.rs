//! Where rows are computed: takes what waits, and notices when nothing can be computed any more.

use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::about::{About, Answer, Row};
use crate::openapi::openapi;
use crate::page::page;
use crate::queue::{JobId, Refusal};
use crate::shared::{Health, Shared, Shown};

/// Predicts rows.
pub trait Classify {
    /// One answer for each row, in their order; `pairs` are the second texts, as many as first ones.
    ///
    /// # Errors
    /// [`ClassifyError`], which says whether the same may do later.
    fn classify(&mut self, texts: &[&str], pairs: Option<&[&str]>) -> Result<Vec<Answer>, ClassifyError>;

    /// Whether it needs others, so that it may become unavailable while nobody asks.
    fn needs_others(&self) -> bool {
        false
    }
}

/// Rows that were not predicted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClassifyError {
    /// What it takes is not there at the moment; the same may do later.
    #[error("reach what computes")]
    Unavailable(#[source] Box<dyn Error + Send + Sync>),
    /// These rows cannot be computed.
    #[error("compute the rows")]
    Failed(#[source] Box<dyn Error + Send + Sync>),
    /// A text yields no token, so that there is nothing to compute with.
    #[error("compute a row whose text yields no token")]
    NoToken,
}

/// A classifier that cannot be served at all.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeskError {
    /// It fails with the first text.
    #[error("try the classifier with a text")]
    Trial(#[source] Box<dyn Error + Send + Sync>),
    /// Its answers are none of what it is said to answer.
    #[error("use the classifier's answer: expected one of {expected} labels or a finite number, found {found:?}")]
    Answer {
        /// How many labels there are.
        expected: usize,
        /// What came.
        found: Vec<Answer>,
    },
}

/// The place at which a gateway's rows are computed. Dropping it answers whoever waits with an error.
#[derive(Debug)]
pub struct Desk {
    pub(crate) shared: Arc<Shared>,
}

/// What is to be done.
enum Next {
    Batch(Vec<(JobId, Row)>),
    /// See whether it still works.
    Check,
    Closed,
}

impl Desk {
    /// Predicts what clients ask, until the gateway was stopped and all that waited is done.
    ///
    /// The classifier is tried with a text first; clients are told to come back until that was answered. Then `ready` is
    /// called, once.
    ///
    /// # Errors
    /// [`DeskError`] if that fails for good.
    pub fn serve(&self, about: About, classifier: &mut dyn Classify, ready: impl FnOnce()) -> Result<(), DeskError> {
        let example = about.example();
        let Some(answers) = self.first_answer(&example, classifier)? else { return Ok(()) };
        if answers.len() != 1 || !answers[0].fits(&about) {
            return Err(DeskError::Answer { expected: about.labels.len(), found: answers });
        }
        let options = &self.shared.options;
        let shown = Shown {
            openapi: openapi(&about, options, &answers[0]).to_string(),
            page: page(&about, options),
            about: about.clone(),
        };
        self.shared.show(shown);
        ready();
        let mut last = Instant::now();
        loop {
            match self.next(last, classifier.needs_others()) {
                Next::Batch(batch) => self.compute(batch, &about, &example, classifier),
                Next::Check => self.check(&example, classifier),
                Next::Closed => return Ok(()),
            }
            last = Instant::now();
        }
    }

    /// Clients are told that predictions cannot be had at the moment.
    pub fn unavailable(&self) {
        self.shared.set(Health::Unavailable);
    }

    /// Waits for so long, or until the gateway is stopped: then it is false.
    pub fn pause(&self, pause: Duration) -> bool {
        let until = Instant::now() + pause;
        let mut state = self.shared.lock();
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if state.is_stopping() || left.is_zero() {
                return !state.is_stopping();
            }
            state = self.shared.wait(state, Some(left));
        }
    }

    /// The answer to the first text, once there is one; nothing if the gateway was stopped before.
    fn first_answer(&self, row: &Row, classifier: &mut dyn Classify) -> Result<Option<Vec<Answer>>, DeskError> {
        loop {
            match ask(classifier, &[row]) {
                Ok(answers) => return Ok(Some(answers)),
                Err(ClassifyError::Failed(source)) => return Err(DeskError::Trial(source)),
                Err(error @ ClassifyError::NoToken) => return Err(DeskError::Trial(error.into())),
                Err(error) => {
                    warn("not ready yet", &error);
                    self.unavailable();
                }
            }
            if !self.pause(self.shared.options.retry) {
                return Ok(None);
            }
        }
    }

    /// Waits for something to do. `last` is when something was computed last.
    fn next(&self, last: Instant, needs_others: bool) -> Next {
        let options = &self.shared.options;
        let mut state = self.shared.lock();
        loop {
            if state.closed {
                return Next::Closed;
            }
            let batch = state.queue.take(options.batch_rows, options.batch_bytes);
            if !batch.is_empty() {
                return Next::Batch(batch);
            }
            let pause = match state.is_ready() {
                false => Some(options.retry),
                true => options.check.filter(|_| needs_others),
            };
            let left = pause.map(|pause| pause.saturating_sub(last.elapsed()));
            if left == Some(Duration::ZERO) {
                return Next::Check;
            }
            state = self.shared.wait(state, left);
        }
    }

    /// Answers the rows of a batch. Where they fail together, those of each request are computed alone, so that no
    /// request fails for another one's rows.
    fn compute(&self, batch: Vec<(JobId, Row)>, about: &About, example: &Row, classifier: &mut dyn Classify) {
        let Err(error) = self.try_compute(&batch, about, classifier) else { return };
        let is_text = matches!(error, ClassifyError::NoToken);
        if !is_text {
            self.shared.counts.failed();
        }
        if let ClassifyError::Unavailable(_) = error {
            return self.lost(&error);
        }
        let mut by_job = std::collections::BTreeMap::<JobId, Vec<(JobId, Row)>>::new();
        batch.into_iter().for_each(|(id, row)| by_job.entry(id).or_default().push((id, row)));
        let is_alone = by_job.len() == 1;
        for (id, rows) in by_job {
            // What failed alone already is not computed once more.
            let result = if is_alone { None } else { Some(self.try_compute(&rows, about, classifier)) };
            match result {
                Some(Ok(())) => {}
                Some(Err(error @ ClassifyError::Unavailable(_))) => return self.lost(&error),
                Some(Err(error)) => self.failed(id, &error),
                None => self.failed(id, &error),
            }
        }
        // Perhaps it is not the rows.
        if !is_text {
            self.check(example, classifier);
        }
    }

    fn failed(&self, id: JobId, error: &ClassifyError) {
        let refusal = match error {
            ClassifyError::NoToken => Refusal::NoToken,
            error => {
                warn("a request failed", error);
                Refusal::Failed
            }
        };
        self.shared.lock().queue.refuse(id, refusal);
    }

    fn try_compute(
        &self,
        batch: &[(JobId, Row)],
        about: &About,
        classifier: &mut dyn Classify,
    ) -> Result<(), ClassifyError> {
        let begun = Instant::now();
        let rows: Vec<&Row> = batch.iter().map(|(_, row)| row).collect();
        let answers = ask(classifier, &rows)?;
        if answers.len() != batch.len() || !answers.iter().all(|answer| answer.fits(about)) {
            let found = format!("{} answers for {} rows, or numbers that are not finite", answers.len(), batch.len());
            return Err(ClassifyError::Failed(found.into()));
        }
        self.shared.computed(batch.len(), begun.elapsed());
        let mut state = self.shared.lock();
        batch.iter().zip(answers).for_each(|((id, _), answer)| state.queue.answer(*id, answer));
        Ok(())
    }

    /// Sees whether a text can be predicted.
    fn check(&self, example: &Row, classifier: &mut dyn Classify) {
        match ask(classifier, &[example]) {
            Ok(_) if !self.shared.lock().is_ready() => {
                tracing::warn!("ready again");
                self.shared.set(Health::Ready);
            }
            Ok(_) => {}
            Err(error) => self.lost(&error),
        }
    }

    /// Nothing can be computed at the moment.
    fn lost(&self, error: &ClassifyError) {
        if self.shared.lock().is_ready() {
            warn("not ready any more; trying again", error);
        }
        self.shared.set(Health::Unavailable);
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        self.shared.leave();
    }
}

fn ask(classifier: &mut dyn Classify, rows: &[&Row]) -> Result<Vec<Answer>, ClassifyError> {
    let texts: Vec<&str> = rows.iter().map(|row| row.text.as_str()).collect();
    let pairs: Option<Vec<&str>> = rows.iter().map(|row| row.pair.as_deref()).collect();
    classifier.classify(&texts, pairs.as_deref())
}

/// A warning with all causes of an error.
fn warn(what: &str, error: &dyn Error) {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    tracing::warn!("{what}: {text}");
}
