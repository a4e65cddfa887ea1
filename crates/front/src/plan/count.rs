//! Plan of a run from options and shapes alone.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use sepal_assets::Assets;
use sepal_catalog::{Catalog, PluginKind};
use sepal_checkpoint::linear_sites;
use sepal_config::{Loaded, Spec};
use sepal_core::{ModelConfig, TrainedTensor};
use sepal_options::{HeadOptions, ModelShape, OptionError, Tokenize, TuningOptions, head_options, tuning_options};
use sepal_prepare::plan::{Plan, Trained, counted};
use sepal_prepare::{Fetcher, ModelFiles, Observer, prepare_rows, read_rows, token_ids, watched};

use super::print_plan;
use crate::args::{PipelineArgs, PlanArgs};
use crate::console::Console;
use crate::output::{Failure, print_progress};
use crate::pipeline_file;

/// Prints the plan of a pipeline without a probe. `None` for another plan, and for a pipeline whose tensors only its plugins
/// know: they are not the shipped ones, start from an adapter, or do not go together. `None` also for a pipeline that comes by a
/// pipe, which nothing could read again.
pub fn count(catalog: &Catalog, args: &PlanArgs) -> Option<Result<(), Failure>> {
    let file = args.file.clone().filter(|file| args.probe_steps == 0 && !is_pipe(file))?;
    let Loaded { spec, notices } = match pipeline_file::read(catalog, &PipelineArgs { file, set: args.set.clone() }) {
        Ok(loaded) => loaded,
        Err(error) => return Some(Err(error)),
    };
    let plugins = Plugins::new(&spec, catalog)?;
    notices.iter().for_each(|notice| print_progress(notice));
    let plan = plan(&spec, &plugins, &mut Console::default());
    Some(plan.and_then(|plan| print_plan(&plan, args, false)))
}

fn is_pipe(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|metadata| !metadata.is_file() && !metadata.is_dir())
}

/// A plugin that cannot be built with these options.
#[derive(Debug, thiserror::Error)]
enum PluginError {
    /// Key of the pipeline file, or one of several modes.
    #[error("build `{name}`")]
    Build { name: String, source: Box<PluginError> },
    #[error(transparent)]
    Option(#[from] OptionError),
    /// Tensor that no machine holds.
    #[error(
        "train `{name}` of the shape {shape:?}: it would have more than {MAX_NUMBERS} numbers; use smaller options"
    )]
    TooLarge { name: String, shape: Vec<usize> },
}

/// The most numbers of a trained tensor, of which sums do not overflow.
const MAX_NUMBERS: u64 = 1 << 40;

impl PluginError {
    fn within(self, name: &str) -> Self {
        Self::Build { name: name.to_owned(), source: Box::new(self) }
    }
}

/// Options of the head and of the tuning modes.
struct Plugins {
    head: Box<dyn HeadOptions>,
    /// Names in the pipeline file, and options.
    modes: Vec<(String, Box<dyn TuningOptions>)>,
}

impl Plugins {
    /// `None` if the shapes of the tensors do not follow from the options alone.
    fn new(spec: &Spec, catalog: &Catalog) -> Option<Self> {
        let head = catalog.find(PluginKind::Head, &spec.task.name).ok()?;
        let head = head_options(head, &spec.task.options())?;
        let (mut modes, mut names) = (Vec::new(), Vec::new());
        for mode in spec.tuning.modes() {
            let entry = catalog.find(PluginKind::Tuning, &mode.name).ok()?;
            let options = tuning_options(entry, &mode.options())?;
            if options.adapter().is_some() || names.contains(&entry.name) {
                return None;
            }
            names.push(entry.name);
            modes.push((mode.name.clone(), options));
        }
        let n_prefixes = modes.iter().filter(|(_, mode)| mode.pre_seq_len() > 0).count();
        (n_prefixes <= 1).then_some(Self { head, modes })
    }

    fn trained(&self, config: &ModelConfig, tokenize: &Tokenize<'_>) -> Result<Trained, PluginError> {
        let mut tensors = self.head.tensors(config.hidden);
        for (name, mode) in &self.modes {
            let found = self.of_mode(&**mode, config, tokenize).map_err(|error| match self.modes.len() {
                1 => PluginError::from(error),
                _ => PluginError::from(error).within(name),
            });
            tensors.extend(found.map_err(|error| error.within("tuning"))?);
        }
        if let Some(tensor) = tensors.iter().find(|tensor| tensor.numbers() > MAX_NUMBERS) {
            return Err(PluginError::TooLarge { name: tensor.name.clone(), shape: tensor.shape.clone() });
        }
        let prompts = self.modes.iter().map(|(_, mode)| mode.pre_seq_len()).sum();
        Ok(Trained { tunables: tensors.clone(), params: tensors, prompts })
    }

    fn of_mode(
        &self,
        mode: &dyn TuningOptions,
        config: &ModelConfig,
        tokenize: &Tokenize<'_>,
    ) -> Result<Vec<TrainedTensor>, OptionError> {
        mode.check_words(self.head.task()?.labels(), tokenize)?;
        let sites = linear_sites(config);
        let &ModelConfig { n_blocks, hidden, .. } = config;
        mode.tensors(&ModelShape { n_blocks, hidden, kv_size: config.kv_size(), sites: &sites })
    }
}

/// Counts what a run needs. No shards and no large files of the model are fetched.
fn plan(spec: &Spec, plugins: &Plugins, observer: &mut dyn Observer) -> Result<Plan, Failure> {
    let (assets, never) = (Assets::from_env(), AtomicBool::new(false));
    let mut fetcher = Fetcher { assets: &assets, observer: &mut *observer, stop: &never };
    let rows = read_rows(spec, &mut fetcher)?;
    let files = ModelFiles::open(&assets, &spec.model.source, &mut watched("model", fetcher.observer, &never))?;
    let tokenizer = files.tokenizer()?;
    let tokenize = |text: &str| token_ids(&tokenizer, text);
    let of_task = |error: OptionError| PluginError::from(error).within("task");
    let task = plugins.head.task().map_err(of_task)?;
    plugins.head.check_words(&tokenize).map_err(of_task)?;
    spec.calibrate.check(&task)?;
    let prepared = prepare_rows(spec, rows, &assets, &tokenizer, &task, observer)?;
    let trained = plugins.trained(files.checkpoint.config(), &tokenize)?;
    Ok(counted(spec, &files, &prepared, &trained))
}
