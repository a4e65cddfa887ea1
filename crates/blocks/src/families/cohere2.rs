//! Cohere's Command R7B and Command A: as Cohere, with a window in most blocks and no positions in the others.

use sepal_core::Family;

use super::cohere;
use super::spec::FamilySpec;

pub(super) const SPEC: FamilySpec = FamilySpec { family: Family::Cohere2, ..cohere::SPEC };
