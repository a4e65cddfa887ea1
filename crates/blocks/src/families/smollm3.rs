//! SmolLM3: as Llama; some blocks have no positions (arXiv 2501.18795).

use sepal_core::Family;

use super::llama;
use super::spec::FamilySpec;

pub(super) const SPEC: FamilySpec = FamilySpec { family: Family::Smollm3, ..llama::SPEC };
