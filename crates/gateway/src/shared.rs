//! Models of a gateway by name, which the workers' threads and the HTTP thread share.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::metrics::GatewayMetrics;
use crate::model::{Description, Health, LoadResult, Model, OpenError, OpenRequest};
use crate::models::{AddError, LoadRequest};
use crate::name::ModelName;
use crate::options::Options;

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) options: Options,
    pub(crate) metrics: GatewayMetrics,
    /// Always locked before the state of a model.
    entries: Mutex<Entries>,
    /// None after the stop.
    loads: Mutex<Option<mpsc::Sender<LoadRequest>>>,
}

#[derive(Debug)]
struct Entries {
    models: BTreeMap<ModelName, Arc<Model>>,
    /// Models that replace one of their name once they are ready.
    replacements: BTreeMap<ModelName, Arc<Model>>,
    /// Number of models whose workers have not ended, those that are being replaced or unloaded included.
    n_workers: usize,
    /// Time of the start, or of the last removal.
    since: Instant,
    is_stopping: bool,
    is_closed: bool,
}

/// Model that a request cannot have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ChoiceError {
    /// No model has this name. The names of the others are sorted.
    Unknown {
        name: String,
        known: Vec<String>,
    },
    /// No name, and several models.
    Unnamed {
        known: Vec<String>,
    },
    /// No model at all.
    Empty,
    Unavailable(Health),
    Full(Duration),
}

impl Shared {
    pub(crate) fn new(options: Options, loads: mpsc::Sender<LoadRequest>) -> Self {
        let entries = Entries {
            models: BTreeMap::new(),
            replacements: BTreeMap::new(),
            n_workers: 0,
            since: Instant::now(),
            is_stopping: false,
            is_closed: false,
        };
        let (entries, loads) = (Mutex::new(entries), Mutex::new(Some(loads)));
        Self { options, metrics: GatewayMetrics::default(), entries, loads }
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        // Every change is atomic, so a panic elsewhere leaves the entries usable.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a model that is being loaded. If another of its name is ready, that one answers until the new one is ready, too.
    pub(crate) fn add(
        &self,
        name: ModelName,
        is_initial: bool,
        outcome: Option<oneshot::Sender<LoadResult>>,
    ) -> Result<Arc<Model>, AddError> {
        let mut entries = self.lock();
        let existing = entries.models.get(&name).map(|model| model.status().description.is_some());
        if existing == Some(false) || entries.replacements.contains_key(&name) {
            return Err(AddError::Loading { name });
        }
        if existing == Some(true) && is_initial {
            return Err(AddError::Exists { name });
        }
        let max = self.options.max_models;
        if existing.is_none() && entries.models.len() >= max {
            return Err(AddError::Full { name, max });
        }
        // A model that is being loaded or answers its last requests takes memory after it was replaced or unloaded.
        let n_models = entries.n_workers;
        if n_models >= max.saturating_mul(2) {
            return Err(AddError::Busy { name, n_models });
        }
        entries.n_workers += 1;
        let model = Arc::new(Model::new(name.clone(), is_initial, self.metrics.of_model(&name), outcome));
        let place = if existing.is_some() { &mut entries.replacements } else { &mut entries.models };
        place.insert(name, Arc::clone(&model));
        if entries.is_stopping {
            model.stop();
        }
        if entries.is_closed {
            model.close();
        }
        Ok(model)
    }

    /// Lets a model that has answered once serve requests, in place of the one of its name. False if it was unloaded before.
    pub(crate) fn publish(&self, model: &Arc<Model>, description: Description) -> bool {
        let replaced = {
            let mut entries = self.lock();
            let is_added = entries.models.get(&model.name).is_some_and(|other| Arc::ptr_eq(other, model));
            let is_replacement = entries.replacements.get(&model.name).is_some_and(|other| Arc::ptr_eq(other, model));
            if !is_added && !is_replacement {
                return false;
            }
            model.describe(description);
            if is_replacement {
                entries.replacements.remove(&model.name);
                entries.models.insert(model.name.clone(), Arc::clone(model))
            } else {
                None
            }
        };
        if let Some(replaced) = replaced {
            replaced.unload();
        }
        model.finish_loading(Ok(()));
        true
    }

    /// Removes the model of this name, after which its worker answers the open requests and ends. False if there is none.
    pub(crate) fn unload(&self, name: &str) -> bool {
        let mut entries = self.lock();
        let Some(name) = entries.models.keys().find(|known| known.as_str() == name).cloned() else { return false };
        let replacement = entries.replacements.remove(&name);
        let model = entries.models.remove(&name);
        for model in model.into_iter().chain(replacement) {
            model.metrics.remove_gauges();
            model.unload();
        }
        entries.since = Instant::now();
        true
    }

    /// Refuses the requests of a model whose worker has ended, and forgets it.
    pub(crate) fn end_worker(&self, model: &Arc<Model>) {
        let mut entries = self.lock();
        entries.n_workers = entries.n_workers.saturating_sub(1);
        let is_model = |other: &Arc<Model>| Arc::ptr_eq(other, model);
        if entries.replacements.get(&model.name).is_some_and(is_model) {
            entries.replacements.remove(&model.name);
        }
        if entries.models.get(&model.name).is_some_and(is_model) {
            entries.models.remove(&model.name);
            entries.since = Instant::now();
            model.metrics.remove_gauges();
        }
        drop(entries);
        if model.is_awaited() {
            self.metrics.record_refused_load();
        }
        model.end_worker();
    }

    /// Registers a request from `address` of the model of this name, or of the only one.
    pub(crate) fn open(&self, name: Option<&str>, address: Option<IpAddr>) -> Result<OpenRequest, ChoiceError> {
        // The lock is held so that the model cannot be unloaded in between.
        let entries = self.lock();
        let model = entries.choose(name)?;
        model.open(self.options.model_requests(entries.models.len()), address).map_err(|error| match error {
            OpenError::Unavailable(health) => ChoiceError::Unavailable(health),
            OpenError::Full => ChoiceError::Full(model.backlog()),
        })
    }

    /// Models of the gateway, sorted by name.
    pub(crate) fn models(&self) -> Vec<Arc<Model>> {
        self.lock().models.values().cloned().collect()
    }

    pub(crate) fn model_named(&self, name: &str) -> Result<Arc<Model>, ChoiceError> {
        self.lock().choose(Some(name)).cloned()
    }

    /// Worst availability of the models, except for models that are being added to a running gateway.
    pub(crate) fn health(&self) -> (Health, Duration) {
        let entries = self.lock();
        let counted = entries.models.values().filter_map(|model| {
            let (health, since) = model.health();
            (model.is_initial || health != Health::Loading).then_some((health, since))
        });
        match counted.min_by_key(|(health, _)| *health) {
            _ if entries.is_stopping => (Health::Stopping, entries.since.elapsed()),
            Some(worst) => worst,
            None if entries.models.is_empty() => (Health::Unavailable, entries.since.elapsed()),
            None => (Health::Loading, entries.since.elapsed()),
        }
    }

    /// Returns the text format of OpenMetrics.
    pub(crate) fn metrics_text(&self) -> String {
        // The lock is held so that no removed model gets values again.
        let entries = self.lock();
        for model in entries.models.values() {
            let status = model.status();
            model.metrics.set_gauges(status.health == Health::Ready, status.waiting_rows, status.open_requests);
        }
        self.metrics.set_models(entries.models.len());
        self.metrics.to_text()
    }

    /// Hands a model to the owner of the gateway for loading; false if the gateway is stopping.
    pub(crate) fn request_load(&self, request: LoadRequest) -> bool {
        let loads = self.loads.lock().unwrap_or_else(PoisonError::into_inner);
        let sent = loads.as_ref().map(|loads| loads.send(request));
        drop(loads);
        sent.is_some_and(|sent| sent.is_ok())
    }

    pub(crate) fn stop(&self) {
        drop(self.loads.lock().unwrap_or_else(PoisonError::into_inner).take());
        let mut entries = self.lock();
        entries.is_stopping = true;
        entries.all().for_each(|model| model.stop());
    }

    /// Ends the queues after the HTTP thread has ended.
    pub(crate) fn close(&self) {
        self.stop();
        let mut entries = self.lock();
        entries.is_closed = true;
        entries.all().for_each(|model| model.close());
    }
}

impl Entries {
    fn choose(&self, name: Option<&str>) -> Result<&Arc<Model>, ChoiceError> {
        let known = || self.models.keys().map(ModelName::to_string).collect();
        match name {
            Some(name) => {
                let found = self.models.iter().find(|(known, _)| known.as_str() == name).map(|(_, model)| model);
                found.ok_or_else(|| ChoiceError::Unknown { name: name.to_owned(), known: known() })
            }
            None => {
                let mut offered = self.models.values().filter(|model| model.is_offered());
                match (offered.next(), offered.next()) {
                    (Some(_), Some(_)) => Err(ChoiceError::Unnamed { known: known() }),
                    (Some(only), None) => Ok(only),
                    (None, _) => self.models.values().next().ok_or(ChoiceError::Empty),
                }
            }
        }
    }

    fn all(&self) -> impl Iterator<Item = &Arc<Model>> {
        self.models.values().chain(self.replacements.values())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::classifier::{Answer, AnswerKind, ClassifierInfo};

    fn shared(options: Options) -> Shared {
        Shared::new(options, mpsc::channel().0)
    }

    fn name(text: &str) -> ModelName {
        text.parse().expect("a name")
    }

    fn description(label: &str) -> Description {
        Description { info: ClassifierInfo::new("a", AnswerKind::Value, &[label]), example: Answer::Value(1.0) }
    }

    fn add(shared: &Shared, text: &str) -> Arc<Model> {
        let model = shared.add(name(text), true, None).expect("added");
        assert!(shared.publish(&model, description("first")));
        model
    }

    #[test]
    fn only_model_is_the_default() {
        let shared = shared(Options::default());
        assert_eq!(shared.open(None, None).expect_err("no model"), ChoiceError::Empty);
        add(&shared, "films");
        assert!(shared.open(None, None).is_ok() && shared.open(Some("films"), None).is_ok());
        add(&shared, "books");
        let known = vec!["books".to_owned(), "films".to_owned()];
        assert_eq!(shared.open(None, None).expect_err("two"), ChoiceError::Unnamed { known: known.clone() });
        let unknown = ChoiceError::Unknown { name: "film".into(), known };
        assert_eq!(shared.open(Some("film"), None).expect_err("unknown"), unknown);
    }

    #[test]
    fn model_beyond_maximum_is_refused_and_a_replacement_is_not() {
        let shared = shared(Options { max_models: 2, ..Options::default() });
        add(&shared, "films");
        add(&shared, "books");
        let full = shared.add(name("songs"), false, None).err();
        assert_eq!(full, Some(AddError::Full { name: name("songs"), max: 2 }));
        assert!(shared.add(name("films"), false, None).is_ok());
        shared.unload("books");
        assert!(shared.add(name("songs"), false, None).is_ok());
    }

    #[test]
    fn models_that_end_count_until_their_workers_have_ended() {
        let shared = shared(Options { max_models: 1, ..Options::default() });
        let load = || shared.add(name("films"), false, None);
        let first = load().expect("added");
        assert!(shared.unload("films"));
        assert!(load().is_ok() && shared.unload("films"));
        assert_eq!(load().err(), Some(AddError::Busy { name: name("films"), n_models: 2 }));
        shared.end_worker(&first);
        assert!(load().is_ok());
    }

    #[test]
    fn replacement_takes_requests_once_it_is_ready() {
        let shared = shared(Options::default());
        let old = add(&shared, "films");
        assert!(matches!(shared.add(name("films"), true, None), Err(AddError::Exists { .. })));
        let new = shared.add(name("films"), false, None).expect("added");
        assert!(matches!(shared.add(name("films"), false, None), Err(AddError::Loading { .. })));
        let open = shared.open(Some("films"), None).expect("opened");
        assert!(Arc::ptr_eq(&open.model, &old) && shared.health().0 == Health::Ready);
        assert!(shared.publish(&new, description("second")));
        assert!(!old.lock().is_finished(), "a request is open");
        let next = shared.open(Some("films"), None).expect("opened");
        assert!(Arc::ptr_eq(&next.model, &new));
        assert_eq!(next.description.info.labels, ["second"]);
        drop(open);
        assert!(old.lock().is_finished());
        shared.end_worker(&old);
        assert!(shared.open(Some("films"), None).is_ok(), "the end of the old worker removes only the old model");
    }

    #[test]
    fn failed_replacement_leaves_the_model() {
        let shared = shared(Options::default());
        let old = add(&shared, "films");
        let new = shared.add(name("films"), false, None).expect("added");
        shared.end_worker(&new);
        let open = shared.open(Some("films"), None).expect("opened");
        assert!(Arc::ptr_eq(&open.model, &old) && !old.lock().is_cancelled());
        assert!(shared.add(name("films"), false, None).is_ok(), "it may be tried again");
    }

    #[test]
    fn model_unloaded_while_it_loads_is_not_published() {
        let shared = shared(Options::default());
        let model = shared.add(name("films"), true, None).expect("added");
        assert_eq!(shared.health().0, Health::Loading);
        assert!(shared.unload("films") && !shared.unload("films"));
        assert!(model.lock().is_cancelled());
        assert!(!shared.publish(&model, description("first")));
        assert_eq!(shared.health().0, Health::Unavailable);
    }

    #[test]
    fn worst_model_decides_the_health_of_the_gateway() {
        let shared = shared(Options::default());
        let films = add(&shared, "films");
        shared.add(name("later"), false, None).expect("added");
        assert_eq!(shared.health().0, Health::Ready, "a model that is added later does not count before it is ready");
        films.set_health(Health::Unavailable);
        add(&shared, "books");
        assert_eq!(shared.health().0, Health::Unavailable);
        shared.stop();
        assert_eq!(shared.health().0, Health::Stopping);
    }

    #[test]
    fn one_of_several_models_has_half_of_the_requests() {
        let shared = shared(Options { max_requests: 4, ..Options::default() });
        add(&shared, "films");
        let mut open: Vec<_> = (0..3).map(|_| shared.open(Some("films"), None).expect("opened")).collect();
        open.pop();
        add(&shared, "books");
        assert!(matches!(shared.open(Some("films"), None), Err(ChoiceError::Full(_))));
        assert!(shared.open(Some("books"), None).is_ok());
    }
}
