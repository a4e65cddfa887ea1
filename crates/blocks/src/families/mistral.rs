//! Mistral: as Llama.

use sepal_core::Family;

use super::llama;
use super::spec::FamilySpec;

pub(super) const SPEC: FamilySpec = FamilySpec { family: Family::Mistral, ..llama::SPEC };
