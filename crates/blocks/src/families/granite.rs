//! Granite: as Llama, with constant factors of embeddings, scores, logits and the outputs of attention and MLP.

use sepal_core::Family;

use super::llama;
use super::spec::FamilySpec;

pub(super) const SPEC: FamilySpec = FamilySpec { family: Family::Granite, ..llama::SPEC };
