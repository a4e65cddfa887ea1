//! Entities in tagged words, counted as by seqeval in its default mode (that of the script of CoNLL-2000, `conlleval`).

use std::collections::{BTreeMap, BTreeSet};

use crate::counts::{Average, Counts, averaged_scores};
use crate::{MetricError, Scores, check_lengths};

/// Consecutive words that name one thing.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entity<'a> {
    /// Index of the first word.
    pub start: usize,
    /// Index after the last word.
    pub end: usize,
    /// Type: the text after the hyphen of its tags.
    pub kind: &'a str,
}

/// Scores of predicted entities. An entity is a hit if its words and its type are right.
#[derive(Debug, Clone, PartialEq)]
pub struct EntityScores {
    /// Scores of all entities together.
    pub overall: Scores,
    /// Scores of each type that occurs on either side, by name.
    pub by_type: Vec<(String, Scores)>,
}

/// Returns the entities of a row of tags `O`, `B-TYPE` and `I-TYPE`, in order. An `I-TYPE` that continues no entity of its
/// type begins one.
pub fn entities<'a>(tags: &[&'a str]) -> Vec<Entity<'a>> {
    let mut found: Vec<Entity<'a>> = Vec::new();
    for (word, tag) in tags.iter().enumerate() {
        let Some((position, kind)) = tag.split_once('-') else { continue };
        match found.last_mut() {
            Some(last) if position == "I" && last.end == word && last.kind == kind => last.end += 1,
            _ => found.push(Entity { start: word, end: word + 1, kind }),
        }
    }
    found
}

/// Scores of the tags `[rows][words]` of the same rows.
///
/// # Errors
/// [`MetricError`] if there are no rows, or the numbers of rows or of words differ.
pub fn scores(predicted: &[Vec<&str>], actual: &[Vec<&str>]) -> Result<EntityScores, MetricError> {
    check_lengths(predicted.len(), actual.len())?;
    let mut counts: BTreeMap<&str, Counts> = BTreeMap::new();
    for (row, (predicted, actual)) in predicted.iter().zip(actual).enumerate() {
        if predicted.len() != actual.len() {
            return Err(MetricError::Width { row, expected: actual.len(), found: predicted.len() });
        }
        let (predicted, actual) = (entities(predicted), entities(actual));
        let of_row: BTreeSet<&Entity<'_>> = actual.iter().collect();
        for entity in &predicted {
            counts.entry(entity.kind).or_default().add(true, of_row.contains(entity));
        }
        let of_prediction: BTreeSet<&Entity<'_>> = predicted.iter().collect();
        for entity in actual.iter().filter(|entity| !of_prediction.contains(entity)) {
            counts.entry(entity.kind).or_default().add(false, true);
        }
    }
    let all: Vec<Counts> = counts.values().copied().collect();
    Ok(EntityScores {
        overall: averaged_scores(&all, Average::Micro),
        by_type: counts.into_iter().map(|(kind, counts)| (kind.to_owned(), counts.scores())).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tags(row: &str) -> Vec<&str> {
        row.split(' ').collect()
    }

    fn check(row: &str, expected: &[(usize, usize, &str)]) {
        let found: Vec<_> = entities(&tags(row)).iter().map(|one| (one.start, one.end, one.kind)).collect();
        assert_eq!(found, expected, "{row}");
    }

    #[test]
    fn entities_end_at_another_tag() {
        check("B-PER I-PER O B-LOC", &[(0, 2, "PER"), (3, 4, "LOC")]);
        check("B-PER B-PER I-PER", &[(0, 1, "PER"), (1, 3, "PER")]);
        check("B-PER I-LOC I-LOC", &[(0, 1, "PER"), (1, 3, "LOC")]);
        check("O I-PER I-PER", &[(1, 3, "PER")]);
        check("I-PER O I-PER", &[(0, 1, "PER"), (2, 3, "PER")]);
        check("O", &[]);
    }

    /// Checks the example of seqeval's front page.
    #[test]
    fn scores_equal_those_of_seqeval() {
        let actual = [tags("O O O B-MISC I-MISC I-MISC O"), tags("B-PER I-PER O")];
        let predicted = [tags("O O B-MISC I-MISC I-MISC I-MISC O"), tags("B-PER I-PER O")];
        let found = scores(&predicted, &actual).expect("scores");
        assert_eq!((found.overall.precision, found.overall.recall, found.overall.f1), (0.5, 0.5, 0.5));
        let by_type: Vec<_> = found.by_type.iter().map(|(kind, one)| (kind.as_str(), one.f1, one.support)).collect();
        assert_eq!(by_type, [("MISC", 0.0, 1), ("PER", 1.0, 1)]);
    }

    #[test]
    fn rows_without_entities_have_scores_of_zero() {
        let found = scores(&[tags("O O")], &[tags("O O")]).expect("scores");
        assert_eq!((found.overall.f1, found.by_type.len()), (0.0, 0));
        assert_eq!(scores(&[], &[]), Err(MetricError::Empty));
        let error = scores(&[tags("O")], &[tags("O O")]).expect_err("another number of words");
        assert_eq!(error, MetricError::Width { row: 0, expected: 2, found: 1 });
    }
}
