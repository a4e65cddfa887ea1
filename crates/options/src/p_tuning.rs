use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use sepal_catalog::{Options, PluginKind};
use sepal_core::TrainedTensor;
use serde::{Deserialize, Serialize};

use crate::{ModelShape, OptionError, TuningOptions};

/// Beginning of the names of all parameters.
const PREFIX: &str = "p_tuning.";

/// Trains soft prompts before every row as the outputs of a small network, like PEFT's P_TUNING.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PTuningConfig {
    /// Number of prompts, each of the hidden size.
    pub pre_seq_len: NonZeroUsize,
    /// Network that computes the prompts.
    pub encoder: EncoderKind,
    /// Hidden size of the network; that of the model if not given.
    pub hidden: Option<NonZeroUsize>,
    /// Initial parameters of the network, and its inputs.
    pub init: PTuningInit,
}

impl Default for PTuningConfig {
    /// 16 prompts and an MLP of the model's hidden size.
    fn default() -> Self {
        Self {
            pre_seq_len: NonZeroUsize::MIN.saturating_add(15),
            encoder: EncoderKind::Mlp,
            hidden: None,
            init: PTuningInit::Random,
        }
    }
}

/// Network that computes soft prompts from as many trained inputs of the hidden size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum EncoderKind {
    /// Three linear layers with ReLU between them, for each prompt by itself.
    Mlp,
    /// A bidirectional LSTM of two layers over all prompts, then two linear layers with ReLU between them.
    Lstm,
}

/// Initialisation of the network and its inputs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum PTuningInit {
    /// Inputs from N(0, 1), and layers as PyTorch initialises them.
    Random,
    /// Parameters of an earlier run with the same options and the same hidden size. A task with the same labels also
    /// starts with its head.
    Adapter(
        /// Folder of the run, or its `adapter.safetensors`.
        #[schemars(with = "String")]
        PathBuf,
    ),
}

impl PTuningInit {
    /// Adapter of the parameters, if they are from one.
    pub fn adapter(&self) -> Option<&Path> {
        match self {
            PTuningInit::Adapter(path) => Some(path),
            PTuningInit::Random => None,
        }
    }
}

impl Options for PTuningConfig {
    const KIND: PluginKind = PluginKind::Tuning;
    const NAME: &'static str = "p-tuning";

    fn example() -> Self {
        Self::default()
    }
}

/// Shapes of the prompt encoder's parameters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncoderShape {
    /// Inputs of the network, `[pre_seq_len, size]`.
    pub inputs: TrainedTensor,
    /// For each layer and direction of the LSTM the weights of inputs and of states, and their biases; none of an MLP.
    pub lstm: Vec<TrainedTensor>,
    /// Weights `[outputs, inputs]` and biases `[outputs]` of the linear layers.
    pub mlp: Vec<[TrainedTensor; 2]>,
}

impl PTuningConfig {
    /// Number of layers of the LSTM.
    pub const LSTM_LAYERS: usize = 2;

    /// Hidden size of the network for prompts of `size` values.
    pub fn encoder_hidden(&self, size: usize) -> usize {
        self.hidden.map_or(size, NonZeroUsize::get)
    }

    /// Returns the shapes of the encoder of prompts of `size` values.
    pub fn encoder_shape(&self, size: usize) -> EncoderShape {
        let hidden = self.encoder_hidden(size);
        let both = hidden.saturating_mul(2);
        let inputs = tensor("embedding.weight", &[self.pre_seq_len.get(), size]);
        match self.encoder {
            EncoderKind::Mlp => {
                EncoderShape { inputs, lstm: Vec::new(), mlp: linear_layers(&[size, hidden, hidden, size]) }
            }
            EncoderKind::Lstm => {
                EncoderShape { inputs, lstm: lstm_layers(size, hidden), mlp: linear_layers(&[both, both, size]) }
            }
        }
    }
}

fn tensor(name: &str, shape: &[usize]) -> TrainedTensor {
    TrainedTensor::new(format!("{PREFIX}{name}"), shape)
}

/// Linear layers between these sizes. Activations between them count in their names, as in `nn.Sequential`.
fn linear_layers(sizes: &[usize]) -> Vec<[TrainedTensor; 2]> {
    let layer = |(index, pair): (usize, &[usize])| {
        let (inputs, outputs) = (pair[0], pair[1]);
        let name = format!("mlp_head.{}", 2 * index);
        [tensor(&format!("{name}.weight"), &[outputs, inputs]), tensor(&format!("{name}.bias"), &[outputs])]
    };
    sizes.windows(2).enumerate().map(layer).collect()
}

/// Parameters of a bidirectional LSTM, in the order and with the names of PyTorch.
fn lstm_layers(size: usize, hidden: usize) -> Vec<TrainedTensor> {
    let (gates, both) = (hidden.saturating_mul(4), hidden.saturating_mul(2));
    let mut tensors = Vec::new();
    for layer in 0..PTuningConfig::LSTM_LAYERS {
        let inputs = if layer == 0 { size } else { both };
        for direction in ["", "_reverse"] {
            for (part, shape) in [
                ("weight_ih", &[gates, inputs][..]),
                ("weight_hh", &[gates, hidden]),
                ("bias_ih", &[gates]),
                ("bias_hh", &[gates]),
            ] {
                tensors.push(tensor(&format!("lstm_head.{part}_l{layer}{direction}"), shape));
            }
        }
    }
    tensors
}

impl TuningOptions for PTuningConfig {
    fn tensors(&self, model: &ModelShape<'_>) -> Result<Vec<TrainedTensor>, OptionError> {
        let EncoderShape { inputs, lstm, mlp } = self.encoder_shape(model.hidden);
        Ok(std::iter::once(inputs).chain(lstm).chain(mlp.into_iter().flatten()).collect())
    }

    fn pre_seq_len(&self) -> usize {
        self.pre_seq_len.get()
    }

    fn adapter(&self) -> Option<&Path> {
        self.init.adapter()
    }
}
