use sepal_checkpoint::Checkpoint;
use sepal_core::{HostTensor, ModelConfig, Span};
use sepal_nn::HostError;
use tch::{Device, TchError, Tensor};

use crate::layers::linear::{Layer, Linear};
use crate::layers::norm::NormWeights;
use sepal_core::WeightFormat;

/// Any error, as a source of weights gives it.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Where the weights of a frozen model come from, under their Hugging Face names.
pub trait Weights: Sync {
    /// The shape of the model.
    fn config(&self) -> &ModelConfig;

    /// The numbers of the tensor `name`, for example `model.norm.weight`.
    ///
    /// # Errors
    /// Any, if there is no such tensor or it cannot be read.
    fn tensor(&self, name: &str) -> Result<HostTensor, BoxError>;

    /// Whether there is a tensor `name`.
    fn has(&self, name: &str) -> bool;
}

impl Weights for Checkpoint {
    fn config(&self) -> &ModelConfig {
        self.config()
    }

    fn tensor(&self, name: &str) -> Result<HostTensor, BoxError> {
        Ok(self.tensor(name)?)
    }

    fn has(&self, name: &str) -> bool {
        self.has(name)
    }
}

/// How and where blocks are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placement {
    /// Of the linear layers.
    pub format: WeightFormat,
    /// Where they lie and compute.
    pub device: Device,
}

impl Placement {
    /// On a device that this machine must have.
    ///
    /// # Errors
    /// [`LoadError::Device`] if it has not.
    pub fn on(device: sepal_core::Device, format: WeightFormat) -> Result<Self, LoadError> {
        let there = usize::try_from(tch::Cuda::device_count()).unwrap_or(0);
        match device {
            sepal_core::Device::Cpu => Ok(format.into()),
            sepal_core::Device::Cuda(index) if index < there => Ok(Self { format, device: Device::Cuda(index) }),
            sepal_core::Device::Cuda(_) => Err(LoadError::Device { device, there }),
        }
    }
}

impl Default for Placement {
    fn default() -> Self {
        WeightFormat::F32.into()
    }
}

impl From<WeightFormat> for Placement {
    fn from(format: WeightFormat) -> Self {
        Self { format, device: Device::Cpu }
    }
}

/// Weights that could not be loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The span goes past the model's last block.
    #[error("load blocks {span}: the model has {n_blocks}")]
    Span {
        /// The span asked for.
        span: Span,
        /// Blocks of the model.
        n_blocks: usize,
    },
    /// A configuration that no block can be built from.
    #[error("build blocks: {problem}")]
    Config {
        /// What is wrong with it.
        problem: String,
    },
    /// A device that is not there.
    #[error(
        "use {device}: libtorch sees {there} CUDA devices here; where there is a GPU, `SEPAL_CUDA=1 just setup` brings a \
         libtorch that uses it"
    )]
    Device {
        /// The device asked for.
        device: sepal_core::Device,
        /// CUDA devices that there are.
        there: usize,
    },
    /// The checkpoint holds a tensor that the family does not use: it is another architecture.
    #[error("build a {family} block: `{name}` belongs to another architecture")]
    Unsupported {
        /// The family that the configuration names.
        family: &'static str,
        /// The tensor.
        name: String,
    },
    /// A tensor is missing or unreadable.
    #[error("read `{name}`")]
    Read {
        /// The tensor.
        name: String,
        /// Why.
        #[source]
        source: BoxError,
    },
    /// A tensor has another shape than the configuration says.
    #[error("load `{name}`: expected shape {expected:?}, found {found:?}")]
    Shape {
        /// The tensor.
        name: String,
        /// The shape by the configuration.
        expected: Vec<usize>,
        /// The shape in the checkpoint.
        found: Vec<usize>,
    },
    /// The numbers could not be made a tensor.
    #[error("load `{name}`")]
    Host {
        /// The tensor.
        name: String,
        /// Why.
        #[source]
        source: HostError,
    },
    /// libtorch refused, for example for want of memory.
    #[error("lay out the weights")]
    Torch(#[from] TchError),
}

/// The tensors whose names begin with `prefix`, checked against the shapes they must have, and how and where they
/// are kept.
pub(crate) struct Reader<'a> {
    weights: &'a dyn Weights,
    prefix: String,
    placement: Placement,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(weights: &'a dyn Weights, prefix: impl Into<String>, placement: Placement) -> Self {
        Self { weights, prefix: prefix.into(), placement }
    }

    /// fp32, of exactly this shape.
    pub(crate) fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor, LoadError> {
        let name = format!("{}{name}", self.prefix);
        let host = match self.weights.tensor(&name) {
            Ok(host) => host,
            Err(source) => return Err(LoadError::Read { name, source }),
        };
        if host.shape() != shape {
            return Err(LoadError::Shape { name, expected: shape.to_vec(), found: host.shape().to_vec() });
        }
        let tensor = sepal_nn::from_host(&host).map_err(|source| LoadError::Host { name, source })?;
        Ok(tensor.f_to_device(self.placement.device)?)
    }

    /// Whether there is a tensor of this name.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.weights.has(&format!("{}{name}", self.prefix))
    }

    /// As [`tensor`](Self::tensor), if it is there.
    pub(crate) fn optional(&self, name: &str, shape: &[usize]) -> Result<Option<Tensor>, LoadError> {
        if self.has(name) { self.tensor(name, shape).map(Some) } else { Ok(None) }
    }

    /// The linear layer `name`, with its bias if it has one.
    pub(crate) fn layer(&self, name: &str, out: usize, inner: usize) -> Result<Layer, LoadError> {
        let weight = self.tensor(&format!("{name}.weight"), &[out, inner])?;
        Ok(Layer { weight, bias: self.optional(&format!("{name}.bias"), &[out])?, inputs: None })
    }

    /// The layer in the format in which layers are kept.
    pub(crate) fn frozen(&self, layer: Layer) -> Result<Linear, LoadError> {
        Ok(layer.frozen(self.placement.format)?)
    }

    /// The layer in fp32: one that is small, and decides much.
    pub(crate) fn exact(&self, layer: Layer) -> Result<Linear, LoadError> {
        Ok(layer.frozen(WeightFormat::F32)?)
    }

    /// The RMSNorm `name`.
    pub(crate) fn rms(&self, name: &str, hidden: usize) -> Result<NormWeights, LoadError> {
        Ok(NormWeights { scale: self.tensor(&format!("{name}.weight"), &[hidden])?, shift: None })
    }

    /// The RMSNorm `name` of which the file has what its weight exceeds 1 by.
    pub(crate) fn rms_from_one(&self, name: &str, hidden: usize) -> Result<NormWeights, LoadError> {
        let NormWeights { scale, shift } = self.rms(name, hidden)?;
        Ok(NormWeights { scale: scale.f_add_scalar(1.0)?, shift })
    }

    /// The LayerNorm `name`.
    pub(crate) fn layer_norm(&self, name: &str, hidden: usize) -> Result<NormWeights, LoadError> {
        let scale = self.tensor(&format!("{name}.weight"), &[hidden])?;
        Ok(NormWeights { scale, shift: Some(self.tensor(&format!("{name}.bias"), &[hidden])?) })
    }

    /// Refuses a tensor that the family would silently leave out.
    pub(crate) fn refuse(&self, name: &str) -> Result<(), LoadError> {
        let name = format!("{}{name}", self.prefix);
        if self.weights.has(&name) {
            return Err(LoadError::Unsupported { family: self.weights.config().family.name(), name });
        }
        Ok(())
    }
}
