use sepal_checkpoint::Checkpoint;
use sepal_core::{HostTensor, ModelConfig, Span, WeightFormat};
use tch::{Device, TchError, Tensor};

use crate::layers::linear::{Layer, Linear};
use crate::layers::norm::NormWeights;

/// Error of a source of weights.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Source of the weights of a frozen model, by their Hugging Face names.
pub trait Weights: Sync {
    /// Configuration of the model.
    fn config(&self) -> &ModelConfig;

    /// Reads the tensor `name`, for example `model.norm.weight`.
    ///
    /// # Errors
    /// Any error, if the tensor is missing or unreadable.
    fn tensor(&self, name: &str) -> Result<HostTensor, BoxError>;

    /// True if there is a tensor `name`.
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

/// Format and device of the weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placement {
    /// Format of the linear layers.
    pub format: WeightFormat,
    /// Device of the weights and of the computation.
    pub device: Device,
}

impl Placement {
    /// Placement on a device of this machine.
    ///
    /// # Errors
    /// [`LoadError::Device`] if the machine lacks the device.
    pub fn on(device: sepal_core::Device, format: WeightFormat) -> Result<Self, LoadError> {
        let n_devices = usize::try_from(tch::Cuda::device_count()).unwrap_or(0);
        match device {
            sepal_core::Device::Cpu => Ok(format.into()),
            sepal_core::Device::Cuda(index) if index < n_devices => Ok(Self { format, device: Device::Cuda(index) }),
            sepal_core::Device::Cuda(_) => Err(LoadError::Device { device, n_devices }),
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

/// Failure to load weights.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message names the fields")]
#[non_exhaustive]
pub enum LoadError {
    /// Span beyond the model's last block.
    #[error("load blocks {span}: the model has {n_blocks}")]
    Span { span: Span, n_blocks: usize },
    /// Configuration without a matching block.
    #[error("build blocks: {problem}")]
    Config { problem: String },
    /// Device that this machine lacks.
    #[error("use {device}: libtorch finds {n_devices} CUDA devices")]
    Device { device: sepal_core::Device, n_devices: usize },
    /// Checkpoint of another architecture, with a tensor that the family does not use.
    #[error("build a {family} block: `{name}` belongs to another architecture")]
    Unsupported { family: &'static str, name: String },
    /// Missing or unreadable tensor.
    #[error("read `{name}`")]
    Read { name: String, source: BoxError },
    /// Tensor with another shape than the configuration implies.
    #[error("load `{name}`: expected shape {expected:?}, found {found:?}")]
    Shape { name: String, expected: Vec<usize>, found: Vec<usize> },
    /// Error of libtorch, for example for lack of memory.
    #[error("lay out the weights")]
    Torch(#[from] TchError),
}

/// Reads the tensors whose names begin with `prefix`, checks their shapes and converts them to a placement.
pub(crate) struct Reader<'a> {
    weights: &'a dyn Weights,
    prefix: String,
    placement: Placement,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(weights: &'a dyn Weights, prefix: impl Into<String>, placement: Placement) -> Self {
        Self { weights, prefix: prefix.into(), placement }
    }

    /// Reads a tensor of this shape as fp32.
    pub(crate) fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor, LoadError> {
        let name = format!("{}{name}", self.prefix);
        let host = match self.weights.tensor(&name) {
            Ok(host) => host,
            Err(source) => return Err(LoadError::Read { name, source }),
        };
        if host.shape() != shape {
            return Err(LoadError::Shape { name, expected: shape.to_vec(), found: host.shape().to_vec() });
        }
        let tensor = sepal_nn::from_host(&host).map_err(|source| LoadError::Read { name, source: source.into() })?;
        Ok(tensor.f_to_device(self.placement.device)?)
    }

    /// Configuration of the model.
    pub(crate) fn config(&self) -> &'a ModelConfig {
        self.weights.config()
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.weights.has(&format!("{}{name}", self.prefix))
    }

    /// Reads a tensor that may be missing.
    pub(crate) fn optional(&self, name: &str, shape: &[usize]) -> Result<Option<Tensor>, LoadError> {
        if self.has(name) { self.tensor(name, shape).map(Some) } else { Ok(None) }
    }

    /// Reads the linear layer `name`, with its bias if it has one.
    pub(crate) fn layer(&self, name: &str, out: usize, inner: usize) -> Result<Layer, LoadError> {
        let weight = self.tensor(&format!("{name}.weight"), &[out, inner])?;
        Ok(Layer::new(name, weight, self.optional(&format!("{name}.bias"), &[out])?)?)
    }

    /// Freezes a layer in the format of the placement.
    pub(crate) fn frozen(&self, layer: Layer) -> Result<Linear, LoadError> {
        Ok(layer.frozen(self.placement.format)?)
    }

    /// Freezes a small layer that is sensitive to rounding, in fp32.
    pub(crate) fn exact(&self, layer: Layer) -> Result<Linear, LoadError> {
        Ok(layer.frozen(WeightFormat::F32)?)
    }

    /// Reads the RMSNorm `name`.
    pub(crate) fn rms(&self, name: &str, hidden: usize) -> Result<NormWeights, LoadError> {
        Ok(NormWeights { scale: self.tensor(&format!("{name}.weight"), &[hidden])?, shift: None })
    }

    /// Reads the RMSNorm `name` whose weight is 1 plus the tensor.
    pub(crate) fn rms_from_one(&self, name: &str, hidden: usize) -> Result<NormWeights, LoadError> {
        let NormWeights { scale, shift } = self.rms(name, hidden)?;
        Ok(NormWeights { scale: scale.f_add_scalar(1.0)?, shift })
    }

    /// Reads the LayerNorm `name`.
    pub(crate) fn layer_norm(&self, name: &str, hidden: usize) -> Result<NormWeights, LoadError> {
        let scale = self.tensor(&format!("{name}.weight"), &[hidden])?;
        Ok(NormWeights { scale, shift: Some(self.tensor(&format!("{name}.bias"), &[hidden])?) })
    }

    /// Fails if there is a tensor that the family would silently ignore.
    pub(crate) fn refuse(&self, name: &str) -> Result<(), LoadError> {
        let name = format!("{}{name}", self.prefix);
        if self.weights.has(&name) {
            return Err(LoadError::Unsupported { family: self.weights.config().family.name(), name });
        }
        Ok(())
    }
}
