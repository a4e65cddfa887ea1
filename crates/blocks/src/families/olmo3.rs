//! OLMo-3: as OLMo-2, with a window in most blocks.

use sepal_core::Family;

use super::olmo2;
use super::spec::FamilySpec;

pub(super) const SPEC: FamilySpec = FamilySpec { family: Family::Olmo3, ..olmo2::SPEC };
