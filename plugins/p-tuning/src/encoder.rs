//! The prompt encoder: trained inputs and the network that turns them into prompts.

use std::path::Path;

use sepal_nn::init::{normal, rng, uniform};
use sepal_plugin::{BuildError, TuningContext, saved_tensor};
use tch::{Device, Kind, TchError, Tensor};

/// Beginning of the names of all parameters.
const PREFIX: &str = "p_tuning.";

/// Number of layers of the LSTM.
const LSTM_LAYERS: i64 = 2;

/// Trained inputs, one for each prompt, and the network over them.
#[derive(Debug)]
pub(crate) struct Encoder {
    inputs: Tensor, // [pre_seq_len, size]
    lstm: Option<Lstm>,
    mlp: Vec<Linear>,
}

/// Fully connected layer of PyTorch.
#[derive(Debug)]
struct Linear {
    weight: Tensor, // [outputs, inputs]
    bias: Tensor,   // [outputs]
}

/// Bidirectional LSTM of PyTorch.
#[derive(Debug)]
struct Lstm {
    /// For each layer and direction the weights of inputs and of states, and their biases.
    params: Vec<Tensor>,
    hidden: i64,
}

/// Source of initial parameters, which are added to the store.
pub(crate) struct Source<'a, 'c> {
    adapter: Option<&'a Path>,
    cx: &'a mut TuningContext<'c>,
}

/// Distribution of initial values.
#[derive(Clone, Copy)]
enum Draw {
    /// N(0, 1).
    Normal,
    /// U(-1 / sqrt(n), 1 / sqrt(n)).
    Uniform(i64),
}

impl<'a, 'c> Source<'a, 'c> {
    /// Takes the parameters from `adapter`, or draws them.
    pub(crate) fn new(adapter: Option<&'a Path>, cx: &'a mut TuningContext<'c>) -> Self {
        Self { adapter, cx }
    }

    fn add(&mut self, name: &str, shape: &[i64], draw: Draw) -> Result<Tensor, BuildError> {
        let name = format!("{PREFIX}{name}");
        let mut rng = rng(self.cx.seed, &name);
        let init = match (self.adapter, draw) {
            (Some(path), _) => saved_tensor("init", path, &name, shape, self.cx)?,
            (None, Draw::Normal) => normal(shape, 1.0, &mut rng)?,
            (None, Draw::Uniform(n)) => uniform(shape, 1.0 / (n as f64).sqrt(), &mut rng)?,
        };
        Ok(self.cx.params.add(name, &init)?)
    }
}

impl Encoder {
    /// Adds `pre_seq_len` inputs of `size` values and an MLP of three layers, with `hidden` values between them.
    pub(crate) fn mlp(
        source: &mut Source<'_, '_>,
        pre_seq_len: i64,
        size: i64,
        hidden: i64,
    ) -> Result<Self, BuildError> {
        let inputs = source.add("embedding.weight", &[pre_seq_len, size], Draw::Normal)?;
        let mlp = linears(source, &[size, hidden, hidden, size])?;
        Ok(Self { inputs, lstm: None, mlp })
    }

    /// Adds `pre_seq_len` inputs of `size` values, a bidirectional LSTM with `hidden` values for each direction, and an
    /// MLP of two layers.
    pub(crate) fn lstm(
        source: &mut Source<'_, '_>,
        pre_seq_len: i64,
        size: i64,
        hidden: i64,
    ) -> Result<Self, BuildError> {
        let inputs = source.add("embedding.weight", &[pre_seq_len, size], Draw::Normal)?;
        let lstm = Some(Lstm::new(source, size, hidden)?);
        let mlp = linears(source, &[2 * hidden, 2 * hidden, size])?;
        Ok(Self { inputs, lstm, mlp })
    }

    /// Returns the prompts `[pre_seq_len, size]`, attached to the graph of the parameters.
    pub(crate) fn forward(&self) -> Result<Tensor, TchError> {
        let mut states = match &self.lstm {
            Some(lstm) => lstm.forward(&self.inputs)?, // [pre_seq_len, 2 * hidden]
            None => self.inputs.shallow_clone(),       // [pre_seq_len, size]
        };
        for (i, Linear { weight, bias }) in self.mlp.iter().enumerate() {
            if i > 0 {
                states = states.f_relu()?;
            }
            states = states.f_linear(weight, Some(bias))?;
        }
        Ok(states)
    }
}

/// Adds the linear layers between these sizes. Activations between them count in their names, as in `nn.Sequential`.
fn linears(source: &mut Source<'_, '_>, sizes: &[i64]) -> Result<Vec<Linear>, BuildError> {
    let mut layers = Vec::new();
    for (i, pair) in sizes.windows(2).enumerate() {
        let (inputs, outputs) = (pair[0], pair[1]);
        let name = format!("mlp_head.{}", 2 * i);
        layers.push(Linear {
            weight: source.add(&format!("{name}.weight"), &[outputs, inputs], Draw::Uniform(inputs))?,
            bias: source.add(&format!("{name}.bias"), &[outputs], Draw::Uniform(inputs))?,
        });
    }
    Ok(layers)
}

impl Lstm {
    fn new(source: &mut Source<'_, '_>, size: i64, hidden: i64) -> Result<Self, BuildError> {
        let (mut params, gates) = (Vec::new(), 4 * hidden);
        for layer in 0..LSTM_LAYERS {
            let inputs = if layer == 0 { size } else { 2 * hidden };
            for direction in ["", "_reverse"] {
                for (part, shape) in [
                    ("weight_ih", &[gates, inputs][..]),
                    ("weight_hh", &[gates, hidden]),
                    ("bias_ih", &[gates]),
                    ("bias_hh", &[gates]),
                ] {
                    let name = format!("lstm_head.{part}_l{layer}{direction}");
                    params.push(source.add(&name, shape, Draw::Uniform(hidden))?);
                }
            }
        }
        Ok(Self { params, hidden })
    }

    /// Returns the outputs of both directions for `inputs [pre_seq_len, size]`: `[pre_seq_len, 2 * hidden]`.
    fn forward(&self, inputs: &Tensor) -> Result<Tensor, TchError> {
        let zeros = Tensor::f_zeros([2 * LSTM_LAYERS, 1, self.hidden], (Kind::Float, Device::Cpu))?;
        let batch = inputs.f_unsqueeze(0)?; // [1, pre_seq_len, size]
        let (states, params) = ([&zeros, &zeros], self.params.iter().collect::<Vec<_>>());
        // `train`: libtorch then keeps what the backward pass reads. There is no dropout.
        let (has_biases, dropout, train, is_bidirectional, is_batch_first) = (true, 0.0, true, true, true);
        let (outputs, ..) = batch.f_lstm(
            &states,
            &params,
            has_biases,
            LSTM_LAYERS,
            dropout,
            train,
            is_bidirectional,
            is_batch_first,
        )?;
        outputs.f_squeeze_dim(0) // [pre_seq_len, 2 * hidden]
    }
}
