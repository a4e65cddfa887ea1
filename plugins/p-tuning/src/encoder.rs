//! The prompt encoder: trained inputs and the network that turns them into prompts.

use std::path::Path;

use sepal_nn::init::{normal, rng, uniform};
use sepal_options::{EncoderShape, PTuningConfig};
use sepal_plugin::{BuildError, TrainedTensor, TuningContext, saved_tensor};
use tch::{Device, Kind, TchError, Tensor};

const LSTM_LAYERS: i64 = PTuningConfig::LSTM_LAYERS as i64;

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
struct Source<'a, 'c> {
    adapter: Option<&'a Path>,
    cx: &'a mut TuningContext<'c>,
}

/// Distribution of initial values.
#[derive(Clone, Copy)]
enum Draw {
    /// N(0, 1).
    Normal,
    /// U(-1 / sqrt(n), 1 / sqrt(n)).
    Uniform(usize),
}

impl Source<'_, '_> {
    fn add(&mut self, tensor: &TrainedTensor, draw: Draw) -> Result<Tensor, BuildError> {
        let (name, shape) = (tensor.name.as_str(), tensor.signed_shape());
        let mut rng = rng(self.cx.seed, name);
        let init = match (self.adapter, draw) {
            (Some(path), _) => saved_tensor("init", path, name, &shape, self.cx)?,
            (None, Draw::Normal) => normal(&shape, 1.0, &mut rng)?,
            (None, Draw::Uniform(n)) => uniform(&shape, 1.0 / (n as f64).sqrt(), &mut rng)?,
        };
        Ok(self.cx.params.add(name, &init)?)
    }

    fn linear(&mut self, [weight, bias]: &[TrainedTensor; 2]) -> Result<Linear, BuildError> {
        let draw = Draw::Uniform(weight.shape.last().copied().unwrap_or(1));
        Ok(Linear { weight: self.add(weight, draw)?, bias: self.add(bias, draw)? })
    }
}

impl Encoder {
    /// Adds inputs and a network of this shape with `hidden` values, from `adapter` or drawn.
    pub(crate) fn new(
        shape: &EncoderShape,
        hidden: usize,
        adapter: Option<&Path>,
        cx: &mut TuningContext<'_>,
    ) -> Result<Self, BuildError> {
        let mut source = Source { adapter, cx };
        let inputs = source.add(&shape.inputs, Draw::Normal)?;
        let params = shape.lstm.iter().map(|tensor| source.add(tensor, Draw::Uniform(hidden)));
        let params = params.collect::<Result<Vec<_>, BuildError>>()?;
        let lstm = (!params.is_empty()).then_some(Lstm { params, hidden: hidden as i64 });
        let mlp = shape.mlp.iter().map(|layer| source.linear(layer)).collect::<Result<_, BuildError>>()?;
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

impl Lstm {
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
