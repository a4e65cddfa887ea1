//! State of one model, which its worker and the HTTP thread share.

use std::net::IpAddr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::sync::oneshot;

use crate::classifier::{Answer, ClassifierInfo, Row};
use crate::metrics::ModelMetrics;
use crate::name::ModelName;
use crate::queue::{JobId, JobResult, Queue, Refusal};
use crate::returning::ReturningClients;
use crate::shares::Shares;

/// Weight of the newest batch in the mean time of a row.
const WEIGHT: f64 = 0.2;

/// Availability, from the worst to the best, and the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Health {
    Loading,
    Unavailable,
    Ready,
    Stopping,
}

/// Public description of a model that has answered once.
#[derive(Debug)]
pub(crate) struct Description {
    pub(crate) info: ClassifierInfo,
    /// Answer to the example of the description.
    pub(crate) example: Answer,
}

/// Outcome of loading: the reason of a failure.
pub(crate) type LoadResult = Result<(), String>;

#[derive(Debug)]
pub(crate) struct Model {
    pub(crate) name: ModelName,
    /// True for a model without which the gateway is not healthy before it is ready.
    pub(crate) is_initial: bool,
    pub(crate) metrics: ModelMetrics,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
pub(crate) struct State {
    pub(crate) queue: Queue,
    health: Health,
    since: Instant,
    description: Option<Arc<Description>>,
    loaded_at: Option<Instant>,
    served_rows: u64,
    /// Requests that have chosen this model and are not answered yet.
    open_requests: Shares,
    is_unloading: bool,
    is_stopping: bool,
    /// True once the HTTP thread has ended.
    pub(crate) is_closed: bool,
    /// Mean seconds of a row; 0 before the first.
    row_seconds: f64,
    /// Clients that the next batch waits for; none before the first.
    returning: Option<ReturningClients>,
    outcome: Option<oneshot::Sender<LoadResult>>,
}

/// Request that has chosen a model. The model's worker does not end before all of them are dropped.
#[derive(Debug)]
pub(crate) struct OpenRequest {
    pub(crate) model: Arc<Model>,
    pub(crate) description: Arc<Description>,
    address: Option<IpAddr>,
}

/// Facts of a model for its clients.
#[derive(Debug)]
pub(crate) struct ModelStatus {
    pub(crate) health: Health,
    pub(crate) description: Option<Arc<Description>>,
    pub(crate) loaded: Option<Duration>,
    pub(crate) served_rows: u64,
    pub(crate) open_requests: usize,
    pub(crate) waiting_rows: usize,
}

impl Model {
    /// Creates a model that is being loaded. `outcome` receives the end of loading.
    pub(crate) fn new(
        name: ModelName,
        is_initial: bool,
        metrics: ModelMetrics,
        outcome: Option<oneshot::Sender<LoadResult>>,
    ) -> Self {
        let state = State {
            queue: Queue::default(),
            health: Health::Loading,
            since: Instant::now(),
            description: None,
            loaded_at: None,
            served_rows: 0,
            open_requests: Shares::default(),
            is_unloading: false,
            is_stopping: false,
            is_closed: false,
            row_seconds: 0.0,
            returning: None,
            outcome,
        };
        Self { name, is_initial, metrics, state: Mutex::new(state), changed: Condvar::new() }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        // Every change is atomic, so a panic elsewhere leaves the state usable.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn wait<'a>(&self, state: MutexGuard<'a, State>, timeout: Option<Duration>) -> MutexGuard<'a, State> {
        match timeout {
            None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            Some(timeout) => self.changed.wait_timeout(state, timeout).unwrap_or_else(PoisonError::into_inner).0,
        }
    }

    pub(crate) fn health(&self) -> (Health, Duration) {
        let state = self.lock();
        (state.current_health(), state.since.elapsed())
    }

    /// True if requests without a name, or for all models, count on it. A model that a client asks to load does not affect
    /// the others before it is ready.
    pub(crate) fn is_offered(&self) -> bool {
        self.is_initial || self.lock().description.is_some()
    }

    pub(crate) fn status(&self) -> ModelStatus {
        let state = self.lock();
        ModelStatus {
            health: state.current_health(),
            description: state.description.clone(),
            loaded: state.loaded_at.map(|loaded_at| loaded_at.elapsed()),
            served_rows: state.served_rows,
            open_requests: state.open_requests.total(),
            waiting_rows: state.queue.waiting_rows(),
        }
    }

    /// Describes the model after its first answer.
    pub(crate) fn describe(&self, description: Description) {
        let mut state = self.lock();
        state.description = Some(Arc::new(description));
        state.loaded_at = Some(Instant::now());
        drop(state);
        self.set_health(Health::Ready);
    }

    /// Reports the end of loading to the client that asked for it, if there is one.
    pub(crate) fn finish_loading(&self, result: LoadResult) {
        if let Some(outcome) = self.take_outcome() {
            // Fails if the client has disconnected.
            let _ = outcome.send(result);
        }
    }

    /// Channel to the client that asked for the model, if there is one and it has no answer yet.
    pub(crate) fn take_outcome(&self) -> Option<oneshot::Sender<LoadResult>> {
        self.lock().outcome.take()
    }

    /// True if a client waits for the model to be loaded.
    pub(crate) fn is_awaited(&self) -> bool {
        self.lock().outcome.is_some()
    }

    /// Sets the availability. Unavailability refuses all waiting requests.
    pub(crate) fn set_health(&self, health: Health) {
        let mut state = self.lock();
        if state.health != health {
            (state.health, state.since) = (health, Instant::now());
        }
        if health != Health::Ready {
            state.queue.refuse_all(Refusal::Unavailable);
        }
    }

    /// Registers a request of this model; none if `max_requests` others are open, and the address has its share of them. The
    /// caller makes sure that the model is not unloaded in the meantime.
    pub(crate) fn open(
        self: &Arc<Self>,
        max_requests: usize,
        address: Option<IpAddr>,
    ) -> Result<OpenRequest, OpenError> {
        let mut state = self.lock();
        let health = state.current_health();
        // Requests on open connections are answered during the stop.
        let Some(description) =
            state.description.clone().filter(|_| matches!(health, Health::Ready | Health::Stopping))
        else {
            return Err(OpenError::Unavailable(health));
        };
        if !state.open_requests.has_room(address, 1, max_requests) {
            return Err(OpenError::Full);
        }
        state.open_requests.add(address, 1);
        Ok(OpenRequest { model: Arc::clone(self), description, address })
    }

    pub(crate) fn backlog(&self) -> Duration {
        let state = self.lock();
        let seconds = state.row_seconds * state.queue.waiting_rows() as f64;
        Duration::from_secs_f64(seconds.clamp(1.0, 60.0))
    }

    pub(crate) fn record_batch(&self, rows: usize, duration: Duration) {
        self.metrics.record_batch(rows, duration);
        let mut state = self.lock();
        state.served_rows += rows as u64;
        let current = duration.as_secs_f64() / rows.max(1) as f64;
        state.row_seconds =
            if state.row_seconds == 0.0 { current } else { state.row_seconds + WEIGHT * (current - state.row_seconds) };
    }

    /// Answers the rows of a batch that took `duration`.
    pub(crate) fn answer(&self, answers: impl Iterator<Item = (JobId, Answer)>, duration: Duration) {
        let mut state = self.lock();
        let n_unanswered = state.queue.n_unanswered();
        answers.for_each(|(id, answer)| state.queue.answer(id, answer));
        let n_answered = n_unanswered - state.queue.n_unanswered();
        let n_requests = state.queue.n_requests();
        state.returning = Some(ReturningClients::new(n_answered, n_requests, duration, Instant::now()));
    }

    /// Ends the worker once all open requests are answered. No request may be opened afterwards.
    pub(crate) fn unload(&self) {
        self.lock().is_unloading = true;
        self.changed.notify_all();
    }

    pub(crate) fn stop(&self) {
        self.lock().is_stopping = true;
        self.changed.notify_all();
    }

    /// Ends the queue after the HTTP thread has ended.
    pub(crate) fn close(&self) {
        let mut state = self.lock();
        (state.is_stopping, state.is_closed) = (true, true);
        state.queue.refuse_all(Refusal::Unavailable);
        self.changed.notify_all();
    }

    /// Refuses all requests after the worker has ended.
    pub(crate) fn end_worker(&self) {
        self.set_health(Health::Stopping);
        self.finish_loading(Err("loading ended before the model was ready; the log says why".into()));
    }
}

/// Request that cannot be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OpenError {
    Unavailable(Health),
    Full,
}

impl OpenRequest {
    /// Adds rows to the queue, unless predictions are unavailable, or `max_rows` rows would wait and those of the address exceed
    /// its share.
    pub(crate) fn push(&self, rows: Vec<Row>, max_rows: usize) -> Result<oneshot::Receiver<JobResult>, Refusal> {
        let mut state = self.model.lock();
        if state.health != Health::Ready || state.is_closed {
            return Err(Refusal::Unavailable);
        }
        let waiting = state.queue.waiting_rows();
        let is_beyond_limit = waiting > 0 && waiting + rows.len() > max_rows;
        // Counted by address only where the limit is reached.
        if is_beyond_limit && !state.queue.waiting_by_address().has_room(self.address, rows.len(), max_rows) {
            return Err(Refusal::Full);
        }
        let receiver = state.queue.push(rows, self.address);
        self.model.changed.notify_all();
        Ok(receiver)
    }
}

impl Drop for OpenRequest {
    fn drop(&mut self) {
        let mut state = self.model.lock();
        state.open_requests.remove(self.address, 1);
        // The worker of a model that is unloaded waits for the last one.
        self.model.changed.notify_all();
    }
}

impl State {
    pub(crate) fn is_ready(&self) -> bool {
        self.health == Health::Ready
    }

    /// True if the worker is to end before the model is ready.
    pub(crate) fn is_cancelled(&self) -> bool {
        self.is_stopping || self.is_unloading
    }

    /// Time for which a batch of at most `max_rows` rows waits for further requests; none if it starts at once.
    pub(crate) fn pause(&self, max_rows: usize) -> Option<Duration> {
        let is_part = (1..max_rows).contains(&self.queue.waiting_rows());
        let returning = self.returning.filter(|_| is_part && !self.is_cancelled())?;
        returning.pause(self.queue.n_requests(), Instant::now())
    }

    /// True if no further request can arrive.
    pub(crate) fn is_finished(&self) -> bool {
        self.is_closed || (self.is_unloading && self.open_requests.total() == 0)
    }

    fn current_health(&self) -> Health {
        if self.is_stopping { Health::Stopping } else { self.health }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::classifier::AnswerKind;
    use crate::metrics::GatewayMetrics;

    fn model() -> Arc<Model> {
        let name: ModelName = "a".parse().expect("a name");
        let metrics = GatewayMetrics::default().of_model(&name);
        Arc::new(Model::new(name, true, metrics, None))
    }

    fn describe(model: &Model) {
        let info = ClassifierInfo::new("a", AnswerKind::Value, &["x"]);
        model.describe(Description { info, example: Answer::Value(1.0) });
    }

    fn rows(n: usize) -> Vec<Row> {
        vec![Row { text: "text".into(), pair: None }; n]
    }

    #[test]
    fn model_being_loaded_takes_no_request() {
        let model = model();
        assert_eq!(model.open(9, None).expect_err("not loaded"), OpenError::Unavailable(Health::Loading));
        describe(&model);
        assert!(model.open(9, None).is_ok());
        model.set_health(Health::Unavailable);
        assert_eq!(model.open(9, None).expect_err("no servers"), OpenError::Unavailable(Health::Unavailable));
    }

    #[test]
    fn limits_of_a_model_refuse_further_requests_and_rows() {
        let model = model();
        describe(&model);
        let first = model.open(2, None).expect("opened");
        let second = model.open(2, None).expect("opened");
        assert_eq!(model.open(2, None).expect_err("two are open"), OpenError::Full);
        let _large = first.push(rows(9), 4).expect("an empty queue takes any request");
        assert_eq!(second.push(rows(1), 4).expect_err("9 rows wait"), Refusal::Full);
        assert!(second.push(rows(1), 10).is_ok());
        drop(first);
        assert!(model.open(2, None).is_ok());
    }

    #[test]
    fn rows_of_one_address_do_not_keep_out_another() {
        let model = model();
        describe(&model);
        let [first, second] = [1, 2].map(|last| model.open(9, Some(IpAddr::from([10, 0, 0, last]))).expect("opened"));
        let _large = first.push(rows(9), 8).expect("an empty queue takes any request");
        assert_eq!(first.push(rows(1), 8).expect_err("all rows"), Refusal::Full);
        assert_eq!(second.push(rows(5), 8).expect_err("more than a half"), Refusal::Full);
        assert!(second.push(rows(4), 8).is_ok());
    }

    #[test]
    fn unloaded_model_is_finished_after_its_last_open_request() {
        let model = model();
        describe(&model);
        let open = model.open(2, None).expect("opened");
        model.unload();
        assert!(!model.lock().is_finished() && model.lock().is_cancelled());
        assert!(open.push(rows(1), 4).is_ok(), "an open request is still answered");
        drop(open);
        assert!(model.lock().is_finished());
    }

    #[test]
    fn end_before_readiness_is_reported_to_the_client() {
        let (sender, mut receiver) = oneshot::channel();
        let name: ModelName = "a".parse().expect("a name");
        let metrics = GatewayMetrics::default().of_model(&name);
        let model = Model::new(name, false, metrics, Some(sender));
        model.finish_loading(Err("no such run".into()));
        model.end_worker();
        assert_eq!(receiver.try_recv().expect("the first outcome"), Err("no such run".to_owned()));
    }
}
