use std::sync::Arc;

use sepal_autograd::packed::Columns;
use sepal_checkpoint::Checkpoint;
use sepal_core::{ComputeFormat, HostTensor, ModelConfig, PackedMatrix, RowEncoding, Span, WeightFormat};
use tch::{Device, TchError, Tensor};

use crate::layers::linear::{Layer, Linear};
use crate::layers::norm::NormWeights;
use crate::layers::packed::{PackedRows, Weight};

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

    /// Reads the weight `name` of a linear layer as it is stored, a row for each output; `None` if it is not stored row by
    /// row in an encoding that [`RowEncoding`](sepal_core::RowEncoding) has.
    ///
    /// # Errors
    /// Any error, if the tensor is missing or unreadable.
    fn packed(&self, name: &str) -> Result<Option<PackedMatrix>, BoxError> {
        let _ = name;
        Ok(None)
    }

    /// Returns the shape of the tensor `name`. The default reads the tensor.
    ///
    /// # Errors
    /// Any error, if the tensor is missing or unreadable.
    fn shape(&self, name: &str) -> Result<Vec<usize>, BoxError> {
        Ok(self.tensor(name)?.shape().to_vec())
    }

    /// Reads rows of the matrix `name` in fp32, `[ids, width]`. The default reads the complete matrix.
    ///
    /// # Errors
    /// Any error, if the tensor is missing or unreadable, is no matrix, or lacks a row.
    fn rows(&self, name: &str, ids: &[usize]) -> Result<HostTensor, BoxError> {
        select_rows(name, &self.tensor(name)?, ids)
    }

    /// Returns a handle to the same tensors that may outlive this value. [`Ends`](crate::Ends) reads large embeddings row
    /// by row through it; with the default, `None`, it holds them in memory. A source that returns a handle implements
    /// [`rows`](Self::rows), too.
    fn share(&self) -> Option<Arc<dyn Weights + Send>> {
        None
    }
}

fn select_rows(name: &str, matrix: &HostTensor, ids: &[usize]) -> Result<HostTensor, BoxError> {
    let &[n_rows, width] = matrix.shape() else {
        return Err(format!("read rows of `{name}`: its shape is {:?}, which is no matrix", matrix.shape()).into());
    };
    let values = matrix.to_f32();
    let mut rows = Vec::with_capacity(ids.len() * width);
    for &id in ids {
        if id >= n_rows {
            return Err(format!("read row {id} of `{name}`: it has {n_rows} rows").into());
        }
        rows.extend_from_slice(&values[id * width..(id + 1) * width]);
    }
    Ok(HostTensor::from_f32(vec![ids.len(), width], &rows)?)
}

impl Weights for Checkpoint {
    fn config(&self) -> &ModelConfig {
        self.config()
    }

    fn tensor(&self, name: &str) -> Result<HostTensor, BoxError> {
        Ok(self.tensor(name)?)
    }

    fn packed(&self, name: &str) -> Result<Option<PackedMatrix>, BoxError> {
        Ok(self.packed(name)?)
    }

    fn has(&self, name: &str) -> bool {
        self.has(name)
    }

    fn shape(&self, name: &str) -> Result<Vec<usize>, BoxError> {
        let shape = self.shape(name).ok_or_else(|| format!("the checkpoint has no tensor `{name}`"))?;
        Ok(shape.to_vec())
    }

    fn rows(&self, name: &str, ids: &[usize]) -> Result<HostTensor, BoxError> {
        Ok(self.rows(name, ids)?)
    }

    fn share(&self) -> Option<Arc<dyn Weights + Send>> {
        Some(Arc::new(self.clone()))
    }
}

/// Format and device of the weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placement {
    /// Format of the linear layers.
    pub format: WeightFormat,
    /// Format of products and tapes.
    pub compute: ComputeFormat,
    /// Device of the weights and of the computation.
    pub device: Device,
}

impl Placement {
    /// Placement on a device of this machine.
    ///
    /// # Errors
    /// [`LoadError::Device`] if the machine lacks the device.
    pub fn on(device: sepal_core::Device, format: WeightFormat, compute: ComputeFormat) -> Result<Self, LoadError> {
        let n_devices = usize::try_from(tch::Cuda::device_count()).unwrap_or(0);
        match device {
            sepal_core::Device::Cuda(index) if index >= n_devices => Err(LoadError::Device { device, n_devices }),
            _ => Ok(Self::new(device, format, compute)),
        }
    }

    /// Placement on a device, which this machine may lack.
    pub fn new(device: sepal_core::Device, format: WeightFormat, compute: ComputeFormat) -> Self {
        let device = match device {
            sepal_core::Device::Cpu => Device::Cpu,
            sepal_core::Device::Cuda(index) => Device::Cuda(index),
        };
        Self { format, compute, device }
    }

    /// True if a matrix that is stored in this encoding is used as it is stored, or is packed anew from it.
    pub fn keeps(self, encoding: RowEncoding) -> bool {
        self.format.keeps(encoding, self.compute, self.device == Device::Cpu)
    }
}

impl Default for Placement {
    fn default() -> Self {
        WeightFormat::default().into()
    }
}

impl From<WeightFormat> for Placement {
    fn from(format: WeightFormat) -> Self {
        Self { format, compute: ComputeFormat::F32, device: Device::Cpu }
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

    /// Reads a tensor of this shape as fp32, to the device.
    pub(crate) fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor, LoadError> {
        Ok(self.host_tensor(name, shape)?.f_to_device(self.placement.device)?)
    }

    /// Reads a tensor of this shape as fp32.
    pub(crate) fn host_tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor, LoadError> {
        let name = format!("{}{name}", self.prefix);
        let host = match self.weights.tensor(&name) {
            Ok(host) => host,
            Err(source) => return Err(LoadError::Read { name, source }),
        };
        if host.shape() != shape {
            return Err(LoadError::Shape { name, expected: shape.to_vec(), found: host.shape().to_vec() });
        }
        sepal_nn::from_host(&host).map_err(|source| LoadError::Read { name, source: source.into() })
    }

    /// Reads the weight of a linear layer that is stored with a row for each output: as it is stored if the placement keeps
    /// it, else widened. `None` if it is stored in another way.
    fn packed(&self, name: &str, [out, inner]: [usize; 2]) -> Result<Option<Weight>, LoadError> {
        let name = format!("{}{name}", self.prefix);
        if self.placement.format == WeightFormat::F32 {
            return Ok(None);
        }
        let packed = match self.weights.packed(&name) {
            Ok(packed) => packed.filter(|packed| sepal_autograd::packed::is_supported(packed.encoding(), Device::Cpu)),
            Err(source) => return Err(LoadError::Read { name, source }),
        };
        let Some(packed) = packed else { return Ok(None) };
        if [packed.n_rows(), packed.width()] != [out, inner] {
            let found = vec![packed.n_rows(), packed.width()];
            return Err(LoadError::Shape { name, expected: vec![out, inner], found });
        }
        let rows = PackedRows::new(&packed)?;
        Ok(Some(match self.placement.keeps(packed.encoding()) {
            true => Weight::Packed(vec![rows]),
            false => Weight::Plain(rows.widen(Columns::default())?),
        }))
    }

    /// Configuration of the model.
    pub(crate) fn config(&self) -> &'a ModelConfig {
        self.weights.config()
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.weights.has(&format!("{}{name}", self.prefix))
    }

    /// Reads the linear layer `name`, with its bias if it has one.
    pub(crate) fn layer(&self, name: &str, out: usize, inner: usize) -> Result<Layer, LoadError> {
        let weight = format!("{name}.weight");
        let weight = match self.packed(&weight, [out, inner])? {
            Some(packed) => packed,
            None => Weight::Plain(self.host_tensor(&weight, &[out, inner])?),
        };
        self.with_bias(name, weight, out)
    }

    /// As [`layer`](Self::layer), where the checkpoint has the transposed weight, `[inner, out]`.
    pub(crate) fn layer_by_inputs(&self, name: &str, out: usize, inner: usize) -> Result<Layer, LoadError> {
        let weight = format!("{name}.weight");
        let weight = match self.packed(&weight, [out, inner])? {
            Some(packed) => packed,
            None => Weight::Plain(self.host_tensor(&weight, &[inner, out])?.f_transpose(0, 1)?),
        };
        self.with_bias(name, weight, out)
    }

    fn with_bias(&self, name: &str, weight: Weight, out: usize) -> Result<Layer, LoadError> {
        let bias = format!("{name}.bias");
        let bias = self.has(&bias).then(|| self.host_tensor(&bias, &[out])).transpose()?;
        Ok(Layer::new(name, weight, bias)?)
    }

    /// Freezes a layer in the format of the placement.
    pub(crate) fn frozen(&self, layer: Layer) -> Result<Linear, LoadError> {
        Ok(layer.frozen(self.placement)?)
    }

    /// Freezes a small layer that is sensitive to rounding, in fp32.
    pub(crate) fn exact(&self, layer: Layer) -> Result<Linear, LoadError> {
        Ok(layer.frozen(Placement { format: WeightFormat::F32, compute: ComputeFormat::F32, ..self.placement })?)
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
