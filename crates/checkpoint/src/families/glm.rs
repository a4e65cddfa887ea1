use sepal_core::Family;

use super::glm4;
use crate::family::FamilySpec;

pub(super) const SPEC: FamilySpec =
    FamilySpec { family: Family::Glm, classifier: Some("GlmForSequenceClassification"), ..glm4::SPEC };
