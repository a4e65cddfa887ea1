//! Origin of a layer in memory: the checkpoint's layers that it holds, and the changes that were made to them.

use tch::{Device, Kind, TchError, Tensor};

/// Origin of a layer while it is built.
#[derive(Debug, Default)]
pub(crate) struct Origin {
    pub(crate) parts: Vec<OriginPart>,
    /// Index of each input in the checkpoint's layer, `[inputs]`; `None` if they are not reordered.
    pub(crate) order: Option<Tensor>,
    /// Shift of the norm before the layer, `[inputs]`.
    pub(crate) shift: Option<Tensor>,
}

#[derive(Debug)]
pub(crate) struct OriginPart {
    name: String,
    n_outputs: i64,
    /// Row of each output in the checkpoint's layer, `[len]`, i64.
    rows: Tensor,
}

impl Origin {
    /// Origin of a layer that is as in the checkpoint.
    pub(crate) fn new(name: &str, n_outputs: i64) -> Result<Self, TchError> {
        let rows = Tensor::f_arange(n_outputs, (Kind::Int64, Device::Cpu))?;
        Ok(Self { parts: vec![OriginPart { name: name.to_owned(), n_outputs, rows }], ..Self::default() })
    }

    /// Origin of stacked layers.
    pub(crate) fn stacked<'a>(origins: impl Iterator<Item = &'a Self>) -> Self {
        Self { parts: origins.flat_map(|origin| &origin.parts).map(OriginPart::share).collect(), ..Self::default() }
    }

    /// Applies `map`, which reorders or selects the rows of each layer.
    pub(crate) fn map_rows(&self, map: impl Fn(&Tensor) -> Result<Tensor, TchError>) -> Result<Self, TchError> {
        let part = |part: &OriginPart| Ok(OriginPart { rows: map(&part.rows)?, ..part.share() });
        let share = |tensor: &Option<Tensor>| tensor.as_ref().map(Tensor::shallow_clone);
        Ok(Self {
            parts: self.parts.iter().map(part).collect::<Result<_, TchError>>()?,
            order: share(&self.order),
            shift: share(&self.shift),
        })
    }

    /// Parts of a finished layer on `device`.
    pub(crate) fn parts(&self, device: Device) -> Result<Vec<SitePart>, TchError> {
        let mut start = 0;
        let part = |part: &OriginPart| {
            let len = part.rows.size()[0];
            let is_same = len == part.n_outputs && part.rows == Tensor::f_arange(len, (Kind::Int64, Device::Cpu))?;
            let rows = if is_same { None } else { Some(part.rows.f_to_device(device)?) };
            start += len;
            Ok(SitePart { name: part.name.clone(), n_outputs: part.n_outputs, start: start - len, len, rows })
        };
        self.parts.iter().map(part).collect()
    }
}

impl OriginPart {
    fn share(&self) -> Self {
        Self { name: self.name.clone(), n_outputs: self.n_outputs, rows: self.rows.shallow_clone() }
    }
}

/// Outputs of a layer in memory that come from one layer of the checkpoint.
#[derive(Debug)]
pub(crate) struct SitePart {
    /// Name of the checkpoint's layer, relative to the block.
    pub(crate) name: String,
    /// Number of outputs of the checkpoint's layer.
    n_outputs: i64,
    /// First of the outputs in memory.
    start: i64,
    len: i64,
    /// Row of each output in the checkpoint's layer, `[len]`; `None` if they are all its rows in their order.
    rows: Option<Tensor>,
}

impl SitePart {
    pub(crate) fn share(&self) -> Self {
        Self { name: self.name.clone(), rows: self.rows.as_ref().map(Tensor::shallow_clone), ..*self }
    }

    /// The part's columns of an output `[n, outputs in memory]`, a view.
    pub(crate) fn columns(&self, output: &Tensor) -> Result<Tensor, TchError> {
        output.f_narrow(1, self.start, self.len)
    }

    /// Selects the rows `[len, ..]` of this part out of those of the checkpoint's layer, `[n_outputs, ..]`.
    pub(crate) fn select(&self, rows: &Tensor) -> Result<Tensor, TchError> {
        self.rows.as_ref().map_or_else(|| Ok(rows.shallow_clone()), |indices| rows.f_index_select(0, indices))
    }

    /// Places the rows `[len, ..]` of this part among those of the checkpoint's layer, `[n_outputs, ..]`, else zero.
    pub(crate) fn expand(&self, rows: &Tensor) -> Result<Tensor, TchError> {
        let Some(indices) = &self.rows else { return Ok(rows.shallow_clone()) };
        let mut size = rows.size();
        size[0] = self.n_outputs;
        rows.f_new_zeros(size.as_slice(), (rows.kind(), rows.device()))?.f_index_copy_(0, indices, rows)
    }
}

/// Difference between the input of a layer in memory and that of the checkpoint's layer:
/// `input of the checkpoint's [order] = scale * input + shift`.
#[derive(Debug, Default)]
pub(crate) struct InputMap {
    pub(crate) order: Option<Tensor>,
    /// Weights of the norm before the layer, `[inputs]`.
    pub(crate) scale: Option<Tensor>,
    pub(crate) shift: Option<Tensor>,
}

impl InputMap {
    pub(crate) fn share(&self) -> Self {
        let share = |tensor: &Option<Tensor>| tensor.as_ref().map(Tensor::shallow_clone);
        Self { order: share(&self.order), scale: share(&self.scale), shift: share(&self.shift) }
    }

    /// Converts the columns of `matrix [k, inputs]`.
    pub(crate) fn convert(&self, matrix: &Tensor) -> Result<Tensor, TchError> {
        let ordered = self.order.as_ref().map(|order| matrix.f_index_select(1, order)).transpose()?;
        let ordered = ordered.unwrap_or_else(|| matrix.shallow_clone());
        self.scale.as_ref().map_or_else(|| Ok(ordered.shallow_clone()), |scale| ordered.f_mul(scale))
    }

    /// Converts the gradient of a converted matrix, `[k, inputs]`, back. `shifted` returns the gradient of the matrix's
    /// product with the shift, `[k]`.
    pub(crate) fn convert_grad(
        &self,
        grad: Tensor,
        shifted: impl FnOnce() -> Result<Tensor, TchError>,
    ) -> Result<Tensor, TchError> {
        let mut grad = match &self.scale {
            Some(scale) => grad.f_mul(scale)?,
            None => grad,
        };
        if let Some(shift) = &self.shift {
            let _ = grad.f_addr_(&shifted()?, shift)?;
        }
        match &self.order {
            Some(order) => grad.f_zeros_like()?.f_index_copy_(1, order, &grad),
            None => Ok(grad),
        }
    }
}
