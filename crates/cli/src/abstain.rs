//! Predictions without a label where it is not probable enough.

use sepal_core::{LabelKind, Task};

use crate::output::Failure;

/// Returns an error if predictions of the run `name`, which has this task, cannot be left out.
pub(crate) fn check_abstaining(abstain_below: Option<f32>, name: &str, task: &Task) -> Result<(), Failure> {
    match (abstain_below, task.kind()) {
        (None, _) | (_, LabelKind::Class) => Ok(()),
        (Some(_), kind) => Err(format!(
            "abstain (--abstain-below): expected runs with one class per row, and `{name}` predicts {kind}"
        )
        .into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn run_that_cannot_abstain_is_named() {
        let check = |least, kind| {
            let task = Task::new(kind, vec!["a".to_owned(), "b".to_owned()]);
            check_abstaining(least, "noisy", &task).map_err(|error| error.to_string())
        };
        assert_eq!(check(Some(0.8), LabelKind::Class), Ok(()));
        assert_eq!(check(None, LabelKind::Multi), Ok(()));
        let error = check(Some(0.8), LabelKind::Multi).expect_err("several labels");
        assert!(error.ends_with("`noisy` predicts any number of labels per row"), "{error}");
    }
}
