//! Qwen2: as Llama, with biases.

use sepal_core::Family;

use super::llama;
use super::spec::FamilySpec;

pub(super) const SPEC: FamilySpec = FamilySpec { family: Family::Qwen2, ..llama::SPEC };
