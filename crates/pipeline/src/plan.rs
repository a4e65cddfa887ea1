//! Plan of a run with the tensors of its plugins, and with measurements.

use std::sync::atomic::AtomicBool;

use sepal_assets::Assets;
use sepal_checkpoint::Part;
use sepal_config::spec::{RunLength, Spec};
use sepal_core::TrainedTensor;
use sepal_nn::Parameters;
use sepal_plugin::{Registry, TuningMode};
use sepal_prepare::plan::{Plan, Step, Trained, counted};
use sepal_prepare::{Fetcher, ModelFiles, check_types, prepare_rows, read_rows, watched};
use tch::Tensor;

use crate::error::{AssembleError, CalibrateError, RunError};
use crate::frozen_model::{BuiltHead, FrozenModel, assemble};
use crate::plan::probe::Probe;
use crate::progress::Observer;
use crate::run::set_threads;

mod probe;
mod route;
mod servers;

pub use self::probe::ProbeSpec;
pub use self::servers::{FormatPlan, ServerGroup, ServersPlan, ServersSpec, plan_servers};

/// Plans the run of `spec`. With a probe, the blocks are loaded or connected to, and `probe.steps` steps are measured
/// on the run's first batches after a warm-up; parameters and files stay unchanged. Without steps, the plan connects to
/// nothing and fetches only embeddings and norm. When `stop` is set, the plan has the measurements so far.
///
/// # Errors
/// [`RunError`] like the run, if a part is not available.
pub fn plan(
    spec: &Spec,
    registry: &Registry,
    probe: ProbeSpec,
    observer: &mut dyn Observer,
    stop: &AtomicBool,
) -> Result<Plan, RunError> {
    set_threads(spec);
    let assets = Assets::from_env();
    let mut fetcher = Fetcher { assets: &assets, observer: &mut *observer, stop };
    let rows = read_rows(spec, &mut fetcher)?;
    let frozen = match probe.steps {
        0 => {
            let mut watch = watched("model", fetcher.observer, stop);
            let files = ModelFiles::open(&assets, &spec.model.source, &mut watch)?;
            check_types(spec, &files)?;
            files.fetch(&assets, Part::Ends, &mut watch)?;
            FrozenModel::new(files)?
        }
        _ => FrozenModel::fetch(spec, &mut fetcher)?,
    };
    let mut built = BuiltHead::new(spec, registry, &frozen, false)?;
    spec.calibrate.check(built.head.task()).map_err(CalibrateError::from).map_err(AssembleError::from)?;
    let prepared = prepare_rows(spec, rows, &assets, &frozen.tokenizer, built.head.task(), observer)?;
    let files = frozen.files();
    if probe.steps == 0 {
        let tuning = built.build_tuning(spec, registry, &frozen, false)?;
        return Ok(counted(spec, &files, &prepared, &trained(&built.params, &*tuning)?));
    }
    let (mut model, handle) = assemble(spec, registry, &frozen, built, prepared.longest_row(), false, observer)?;
    let trained = trained(&model.params, &*model.tuning)?;
    let mut plan = counted(spec, &files, &prepared, &trained);
    let step = Step::new(spec, files.checkpoint.config(), &trained, &plan.data);
    let (route, servers) = route::plan_route(spec, &frozen, &handle, step.positions())?;
    let length = RunLength::new(&spec.train, prepared.train.batches_per_epoch());
    let probe = Probe { spec, prepared: &prepared, length, probe, observer, stop };
    plan.time = probe.run(&mut model, &plan.data, &plan.steps)?;
    drop(model);
    drop(handle);
    let spans = route.iter().filter(|hop| hop.server.is_some()).map(|hop| hop.blocks).collect();
    plan.bytes = step.bytes(spec, Some(spans), plan.time.as_ref());
    (plan.route, plan.servers) = (Some(route), servers);
    Ok(plan)
}

/// Shapes of the parameters of a head and a tuning mode, and of the tunables.
fn trained(params: &Parameters, tuning: &dyn TuningMode) -> Result<Trained, AssembleError> {
    let shape = |tensor: &Tensor| tensor.size().iter().map(|&dim| dim.unsigned_abs() as usize).collect::<Vec<_>>();
    let tunables = tuning.tunables().map_err(AssembleError::Tuning)?;
    let tunables = tunables.into_iter().map(|tunable| TrainedTensor {
        shape: shape(&tunable.tensor),
        first_block: Some(tunable.first_block),
        name: tunable.name,
    });
    Ok(Trained {
        params: params.iter().map(|(name, tensor)| TrainedTensor::new(name, shape(tensor))).collect(),
        tunables: tunables.collect(),
        prompts: tuning.pre_seq_len(),
    })
}
