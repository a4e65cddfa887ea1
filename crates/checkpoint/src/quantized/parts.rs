use std::collections::BTreeMap;
use std::path::Path;

use safetensors::Dtype;

use super::{Kind, Layer};
use crate::error::OpenError;
use crate::rows::Rows;
use crate::store::{Encoding, Stored};

/// Parts of quantized layers.
const PARTS: [&str; 15] = [
    "qweight",
    "qzeros",
    "scales",
    "g_idx",
    "weight_packed",
    "weight_scale",
    "weight_scale_inv",
    "weight_zero_point",
    "weight_g_idx",
    "SCB",
    "absmax",
    "quant_map",
    "nested_absmax",
    "nested_quant_map",
    "bitsandbytes__nf4",
];

/// Parts of a layer that do not change its weight.
const UNUSED: [&str; 10] = [
    "input_scale",
    "input_scale_ub",
    "input_zero_point",
    "input_global_scale",
    "activation_scale",
    "output_scale",
    "output_zero_point",
    "weight_shape",
    "k_scale",
    "v_scale",
];

/// Scales of quantized keys and values, which are parts of attention or of a layer.
const OF_CACHE: [&str; 4] = ["k_scale", "v_scale", "q_scale", "prob_scale"];

/// The tensors of a checkpoint, while those of quantized layers are replaced.
#[derive(Debug)]
pub(super) struct Parts<'a> {
    path: &'a Path,
    tensors: BTreeMap<String, Stored>,
    layers: Vec<Layer>,
}

impl<'a> Parts<'a> {
    pub(super) fn new(path: &'a Path, tensors: BTreeMap<String, Stored>) -> Self {
        Self { path, tensors, layers: Vec::new() }
    }

    /// Names of the layers with the tensor `part`, of the type `dtype` if one is required.
    pub(super) fn layers_with(&self, part: &str, dtype: Option<Dtype>) -> Vec<String> {
        let has_type = |stored: &Stored| dtype.is_none_or(|dtype| stored.encoding == Encoding::Plain(dtype));
        let named = |name: &str| Some(name.strip_suffix(part)?.strip_suffix('.')?.to_owned());
        self.tensors.iter().filter(|(_, stored)| has_type(stored)).filter_map(|(name, _)| named(name)).collect()
    }

    pub(super) fn has(&self, layer: &str, part: &str) -> bool {
        self.tensors.contains_key(&format!("{layer}.{part}"))
    }

    /// Removes a tensor of a layer.
    pub(super) fn take(&mut self, layer: &str, part: &str) -> Option<Stored> {
        self.tensors.remove(&format!("{layer}.{part}"))
    }

    /// Removes a tensor that the layer must have.
    pub(super) fn require(&mut self, layer: &str, part: &str) -> Result<Stored, OpenError> {
        let missing = "is missing, and other tensors of the layer are there";
        self.take(layer, part).ok_or_else(|| self.error(layer, part, missing.to_owned()))
    }

    /// Dimensions of a matrix.
    pub(super) fn matrix(&self, layer: &str, part: &str, stored: &Stored) -> Result<[usize; 2], OpenError> {
        match stored.shape[..] {
            [rows, columns] if rows > 0 && columns > 0 => Ok([rows, columns]),
            _ => Err(self.error(layer, part, format!("has the shape {:?}, expected two dimensions", stored.shape))),
        }
    }

    /// Error unless the tensor has the type and the shape.
    pub(super) fn check(
        &self,
        (layer, part): (&str, &str),
        stored: &Stored,
        dtypes: &[Dtype],
        shape: &[usize],
    ) -> Result<(), OpenError> {
        self.check_dtype((layer, part), stored, dtypes)?;
        if stored.shape == shape {
            return Ok(());
        }
        Err(self.error(layer, part, format!("has the shape {:?}, expected {shape:?}", stored.shape)))
    }

    /// Error unless the tensor has one of the types.
    pub(super) fn check_dtype(
        &self,
        (layer, part): (&str, &str),
        stored: &Stored,
        dtypes: &[Dtype],
    ) -> Result<(), OpenError> {
        if dtypes.iter().any(|dtype| stored.encoding == Encoding::Plain(*dtype)) {
            return Ok(());
        }
        let expected = dtypes.iter().map(Dtype::to_string).collect::<Vec<_>>().join(" or ");
        Err(self.error(layer, part, format!("is of {}, expected {expected}", stored.encoding.name())))
    }

    /// Adds `name.weight`; `main` is the tensor with its numbers, `name.part`, which represents it in the digest.
    ///
    /// # Errors
    /// [`OpenError::QuantizedLayer`] if there is another tensor `name.weight`.
    pub(super) fn add(
        &mut self,
        (name, part): (&str, &str),
        kind: Kind,
        main: &Stored,
        layer: Layer,
    ) -> Result<(), OpenError> {
        let encoding = Encoding::Quantized { kind, layer: self.layers.len() };
        let &Stored { file, offset, len, .. } = main;
        let stored = Stored { file, encoding, shape: layer.shape().to_vec(), offset, len, rows: Rows::Same };
        for unused in UNUSED {
            self.take(name, unused);
        }
        if self.tensors.insert(format!("{name}.weight"), stored).is_some() {
            return Err(self.error(name, "weight", format!("is there beside the quantized `{name}.{part}`")));
        }
        self.layers.push(layer);
        Ok(())
    }

    /// Tensors and layers. `method` is the name of the quantization.
    ///
    /// # Errors
    /// [`OpenError`] if a tensor belongs to no layer, or no layer is quantized.
    pub(super) fn finish(mut self, method: &str) -> Result<(BTreeMap<String, Stored>, Vec<Layer>), OpenError> {
        let last = |name: &str| name.rsplit('.').next().unwrap_or_default().to_owned();
        self.tensors.retain(|name, _| !OF_CACHE.contains(&last(name).as_str()));
        if let Some(name) = self.tensors.keys().find(|name| PARTS.contains(&last(name).as_str())) {
            let problem = "belongs to no layer with quantized numbers".to_owned();
            return Err(OpenError::QuantizedLayer { path: self.path.to_owned(), name: name.clone(), problem });
        }
        if self.layers.is_empty() {
            return Err(OpenError::Unsupported {
                path: self.path.to_owned(),
                key: "quantization_config".to_owned(),
                found: method.to_owned(),
                supported: "a configuration without this key, because no layer of these weights is quantized so"
                    .to_owned(),
            });
        }
        Ok((self.tensors, self.layers))
    }

    pub(super) fn error(&self, layer: &str, part: &str, problem: String) -> OpenError {
        OpenError::QuantizedLayer { path: self.path.to_owned(), name: format!("{layer}.{part}"), problem }
    }
}
