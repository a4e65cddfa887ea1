//! Predictions without a label where it is not probable enough.

use sepal_core::{LabelKind, Task};

use crate::output::Failure;

/// Returns an error if predictions of this task cannot be left out.
pub(crate) fn check_abstaining(abstain_below: Option<f32>, task: &Task) -> Result<(), Failure> {
    match (abstain_below, task.kind()) {
        (None, _) | (_, LabelKind::Class) => Ok(()),
        (Some(_), kind) => {
            Err(format!("abstain (--abstain-below): expected a task with one class per row, found {kind}").into())
        }
    }
}
