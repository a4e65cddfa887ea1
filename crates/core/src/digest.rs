use std::fmt;

use crate::{ComputeFormat, WeightFormat};

/// Digest of a model that is computed: the checkpoint's, the format of the weights and that of the computation. Servers
/// announce it, and adapters name it. [`WeightFormat::digest`] and [`ComputeFormat::digest`] make its text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ModelDigest<'a> {
    /// Digest of the checkpoint.
    pub checkpoint: &'a str,
    /// Format of the weights; [`Auto`](WeightFormat::Auto) for unrounded ones.
    pub weights: WeightFormat,
    /// Format of the computation.
    pub compute: ComputeFormat,
}

impl<'a> ModelDigest<'a> {
    /// Parts of the text of a digest; `None` if it has other parts than this version knows.
    pub fn parse(text: &'a str) -> Option<Self> {
        let mut parts = text.split('+');
        let checkpoint = parts.next().filter(|checkpoint| !checkpoint.is_empty())?;
        let (mut weights, mut compute) = (WeightFormat::Auto, ComputeFormat::F32);
        let mut part = parts.next();
        if let Some(format) = part.and_then(|part| part.parse::<WeightFormat>().ok()) {
            (weights, part) = (format, parts.next());
        }
        if let Some(format) = part.and_then(|part| part.strip_prefix("compute-")?.parse::<ComputeFormat>().ok()) {
            (compute, part) = (format, parts.next());
        }
        let digest = Self { checkpoint, weights, compute };
        // Formats that do not round are not written.
        (part.is_none() && digest.to_string() == text).then_some(digest)
    }
}

impl fmt::Display for ModelDigest<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.compute.digest(&self.weights.digest(self.checkpoint)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digest_text_round_trips() {
        for weights in WeightFormat::ALL {
            for compute in ComputeFormat::ALL {
                let text = compute.digest(&weights.digest("sha256:ab"));
                let unrounded = weights == WeightFormat::F32;
                let weights = if unrounded { WeightFormat::Auto } else { weights };
                let expected = ModelDigest { checkpoint: "sha256:ab", weights, compute };
                assert_eq!(ModelDigest::parse(&text), Some(expected), "{text}");
                assert_eq!(expected.to_string(), text);
            }
        }
    }

    #[test]
    fn digest_with_unknown_parts_is_none() {
        let texts = [
            "",
            "+int8",
            "ab+",
            "ab+int9",
            "ab+f32",
            "ab+auto",
            "ab+compute-f32",
            "ab+compute-bf16+int8",
            "ab+int8+int8",
        ];
        for text in texts {
            assert_eq!(ModelDigest::parse(text), None, "{text}");
        }
    }
}
