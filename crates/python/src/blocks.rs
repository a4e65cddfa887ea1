//! Frozen blocks for training loops of PyTorch.

use std::sync::atomic::AtomicBool;
use std::sync::{Mutex, PoisonError};

use pyo3::prelude::*;
use pyo3::types::PyCapsule;
use sepal_core::{Ragged, Want};
use sepal_nn::Tunable;
use sepal_pipeline::{FrozenBlocks, Observer};
use serde_json::json;
use tch::{Kind, Tensor};

use crate::failure::{Failure, exception};
use crate::pipeline_text::load;
use crate::tensors::{from_capsule, to_capsule};
use crate::worker::{SecondInterrupt, Worker};

/// Name and capsule of a tensor, its first block if it is a tunable, and true if its gradient is needed.
type Input<'py> = (String, usize, Bound<'py, PyCapsule>, bool);

/// Names of inputs that are no tunables.
const TOKENS: &str = "tokens";
const PREFIX: &str = "prefix";

/// Frozen blocks of a model with its embeddings, final norm and tokenizer.
#[pyclass(frozen, module = "sepal._sepal")]
pub(crate) struct Blocks {
    worker: Worker<FrozenBlocks>,
    facts: String,
}

/// Graph of one call, for one backward pass.
#[pyclass(frozen, module = "sepal._sepal")]
pub(crate) struct Graph(Mutex<Option<Computed>>);

/// Output of a call with the inputs that it is differentiable in.
struct Computed {
    output: Tensor,
    /// Leaves of the graph, in the order of the call.
    inputs: Vec<Tensor>,
}

/// An input of a call.
struct NamedInput {
    name: String,
    first_block: usize,
    tensor: Tensor,
}

#[pymethods]
impl Blocks {
    /// Loads or connects to the blocks of the pipeline `text`.
    #[new]
    #[pyo3(signature = (text, progress))]
    fn new(py: Python<'_>, text: String, progress: Option<Bound<'_, PyAny>>) -> PyResult<Self> {
        let (worker, facts) = Worker::start(py, progress.as_ref(), SecondInterrupt::Leave, move |observer, stop| {
            open(&text, observer, stop)
        })?;
        Ok(Self { worker, facts })
    }

    /// Shape of the model and places of its blocks as JSON.
    #[getter]
    fn facts(&self) -> &str {
        &self.facts
    }

    /// Runs the blocks on rows of `lengths` tokens. `select` is `all`, `last` or `mean`. Returns the output and, if a gradient
    /// is needed, its graph.
    fn forward<'py>(
        &self,
        py: Python<'py>,
        inputs: Vec<Input<'py>>,
        lengths: Vec<usize>,
        select: &str,
    ) -> PyResult<(Bound<'py, PyCapsule>, Option<Graph>)> {
        let want = match select {
            "all" => Want::Tokens,
            "last" => Want::LastOfRows,
            "mean" => Want::MeanOfRows,
            other => return Err(exception(py, &format!("failed to select `{other}`: expected all, last or mean"))),
        };
        self.compute(py, inputs, move |blocks, inputs| run_blocks(blocks, inputs, lengths, want))
    }

    /// Applies the final norm to hidden states `[.., hidden]`.
    fn final_norm<'py>(&self, py: Python<'py>, input: Input<'py>) -> PyResult<(Bound<'py, PyCapsule>, Option<Graph>)> {
        self.compute(py, vec![input], |blocks, inputs| Ok(blocks.ends.final_norm(&only(inputs)?.tensor)?))
    }

    /// Turns soft prompts `[prefix_len, hidden]` into the input of the first block.
    fn embed_prompts<'py>(
        &self,
        py: Python<'py>,
        input: Input<'py>,
    ) -> PyResult<(Bound<'py, PyCapsule>, Option<Graph>)> {
        self.compute(py, vec![input], |blocks, inputs| Ok(blocks.ends.embed_prompts(&only(inputs)?.tensor)?))
    }

    /// Returns the embeddings of the tokens `ids [n]`, int64: `[n, hidden]`.
    fn embed<'py>(&self, py: Python<'py>, ids: &Bound<'py, PyCapsule>) -> PyResult<Bound<'py, PyCapsule>> {
        let ids = from_capsule(ids)?;
        let embedded = self.worker.call(py, move |blocks| Ok(tch::no_grad(|| blocks.ends.embed(&ids))?))?;
        to_capsule(py, &embedded)
    }

    /// Runs a graph backward from the gradient of its output. Returns the gradients of the inputs in their order.
    fn backward<'py>(
        &self,
        py: Python<'py>,
        graph: &Graph,
        gradient: &Bound<'py, PyCapsule>,
    ) -> PyResult<Vec<Option<Bound<'py, PyCapsule>>>> {
        let Some(computed) = graph.0.lock().unwrap_or_else(PoisonError::into_inner).take() else {
            return Err(exception(
                py,
                "failed to run backward a second time: the graph of a call serves one backward pass",
            ));
        };
        let gradient = from_capsule(gradient)?;
        let gradients = self.worker.call(py, move |blocks| run_backward(blocks, &computed, &gradient))?;
        gradients
            .iter()
            .map(|gradient| gradient.as_ref().map(|gradient| to_capsule(py, gradient)).transpose())
            .collect()
    }

    /// Returns the token ids of each text, special tokens included, at most `max_length`.
    fn tokenize(&self, py: Python<'_>, texts: Vec<String>, max_length: usize) -> PyResult<Vec<Vec<u32>>> {
        self.worker.call(py, move |blocks| {
            let encode = |text: &String| blocks.tokenizer.encode(text, None, max_length).map(|encoding| encoding.ids);
            Ok(texts.iter().map(encode).collect::<Result<Vec<_>, _>>()?)
        })
    }

    /// Bytes sent to servers and received from them so far.
    fn traffic(&self, py: Python<'_>) -> PyResult<(u64, u64)> {
        self.worker.call(py, |blocks| {
            let traffic = blocks.blocks.traffic();
            Ok((traffic.up(), traffic.down()))
        })
    }

    /// Frees the blocks and leaves their servers.
    fn close(&self, py: Python<'_>) {
        self.worker.close(py);
    }
}

impl Blocks {
    /// Runs `compute` on the inputs, with a graph if one of them needs a gradient.
    fn compute<'py>(
        &self,
        py: Python<'py>,
        inputs: Vec<Input<'py>>,
        compute: impl FnOnce(&FrozenBlocks, &[NamedInput]) -> Result<Tensor, Failure> + Send + 'static,
    ) -> PyResult<(Bound<'py, PyCapsule>, Option<Graph>)> {
        let mut named = Vec::with_capacity(inputs.len());
        let mut needs_graph = false;
        for (name, first_block, capsule, requires_grad) in inputs {
            let tensor = from_capsule(&capsule)?.f_set_requires_grad(requires_grad);
            let tensor = tensor.map_err(|error| exception(py, &format!("failed to take `{name}`: {error}")))?;
            named.push(NamedInput { name, first_block, tensor });
            needs_graph |= requires_grad;
        }
        let computed = self.worker.call(py, move |blocks| {
            let output = match needs_graph {
                true => compute(blocks, &named)?,
                false => tch::no_grad(|| compute(blocks, &named))?,
            };
            Ok(Computed { output, inputs: named.into_iter().map(|input| input.tensor).collect() })
        })?;
        let output = to_capsule(py, &computed.output)?;
        Ok((output, needs_graph.then(|| Graph(Mutex::new(Some(computed))))))
    }
}

fn open(text: &str, observer: &mut dyn Observer, stop: &AtomicBool) -> Result<(FrozenBlocks, String), Failure> {
    let registry = sepal_cli::plugins()?;
    let spec = load(&registry, "RemoteBlocks", text, Vec::new())?.spec;
    let frozen = FrozenBlocks::open(&spec, observer, stop)?;
    let facts = json!({
        "n_blocks": frozen.config.n_blocks,
        "hidden": frozen.config.hidden,
        "vocab_size": frozen.config.vocab_size,
        "initializer_range": frozen.config.initializer_range,
        "max_positions": frozen.config.max_positions,
        "description": frozen.blocks.description(),
        "n_servers": frozen.blocks.n_servers(),
    });
    Ok((frozen, facts.to_string()))
}

fn run_blocks(
    frozen: &FrozenBlocks,
    inputs: &[NamedInput],
    lengths: Vec<usize>,
    want: Want,
) -> Result<Tensor, Failure> {
    let tensor = |name: &str| inputs.iter().find(|input| input.name == name).map(|input| &input.tensor);
    let tokens = tensor(TOKENS).ok_or("run the blocks: there are no tokens")?;
    let tunables = inputs.iter().filter(|input| input.name != TOKENS && input.name != PREFIX).map(|input| Tunable {
        name: input.name.clone(),
        first_block: input.first_block,
        tensor: input.tensor.shallow_clone(),
    });
    let session = frozen.blocks.tune(tunables.collect())?;
    Ok(session.forward(tensor(PREFIX), tokens, &Ragged::from_lengths(lengths)?, want)?)
}

fn run_backward(frozen: &FrozenBlocks, computed: &Computed, gradient: &Tensor) -> Result<Vec<Option<Tensor>>, Failure> {
    // Its gradient by the output is `gradient`.
    let loss = computed.output.f_mul(gradient)?.f_sum(Kind::Float)?;
    frozen.blocks.backward(&loss)?;
    let gradient_of = |input: &Tensor| -> Result<Option<Tensor>, Failure> {
        let gradient = input.f_grad()?;
        Ok((input.requires_grad() && gradient.defined()).then_some(gradient))
    };
    computed.inputs.iter().map(gradient_of).collect()
}

fn only(inputs: &[NamedInput]) -> Result<&NamedInput, Failure> {
    inputs.first().ok_or_else(|| "compute without an input".into())
}
