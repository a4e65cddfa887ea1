use std::collections::{BTreeMap, BTreeSet};

use crate::Labels;
use crate::shuffle::{generator, shuffle};

/// Splits rows into training and validation rows, at random but reproducibly for a seed.
///
/// Validation has exactly `round(rows * fraction)` rows, stratified by class: each class contributes its proportional
/// part rounded down, and the classes with the largest remainders contribute one more row. Both lists keep the file's
/// order.
///
/// # Errors
/// [`SplitError`] if a part would be empty.
pub fn split(labels: &Labels, seed: u64, fraction: f64) -> Result<(Vec<usize>, Vec<usize>), SplitError> {
    let rows = labels.len();
    if !(fraction > 0.0 && fraction < 1.0) {
        return Err(SplitError::Fraction { fraction });
    }
    let held_out = (rows as f64 * fraction).round() as usize;
    if held_out == 0 || held_out >= rows {
        return Err(SplitError::EmptyPart { rows, fraction });
    }
    let mut rng = generator("split", seed, 0);
    let mut validation = Vec::with_capacity(held_out);
    for (mut members, quota) in quotas(strata(labels), rows, held_out) {
        shuffle(&mut rng, &mut members);
        validation.extend_from_slice(&members[..quota]);
    }
    validation.sort_unstable();
    let train = (0..rows).filter(|row| validation.binary_search(row).is_err()).collect();
    Ok((train, validation))
}

/// Chooses `rows` rows of each class, at random but reproducibly for a seed. The list keeps the file's order. `names` are
/// those of the classes.
///
/// If rows have several labels or words with labels, each label has at least that number of rows: for one label after the
/// other, rows are added until it has enough.
///
/// # Errors
/// [`SplitError::NoClasses`] for labels of another kind, [`SplitError::TooFew`] for a class with fewer rows.
pub fn few_shot(labels: &Labels, names: &[String], seed: u64, rows: usize) -> Result<Vec<usize>, SplitError> {
    let mut members = rows_by_class(labels).map_err(|found| SplitError::NoClasses { rows, found })?;
    for (class, _) in (0_i64..).zip(names) {
        members.entry(class).or_default();
    }
    let mut rng = generator("rows per class", seed, 0);
    let mut chosen = BTreeSet::new();
    for (class, mut members) in members {
        if members.len() < rows {
            let name = usize::try_from(class).ok().and_then(|class| names.get(class));
            let class = name.cloned().unwrap_or_else(|| class.to_string());
            return Err(SplitError::TooFew { rows, class, found: members.len() });
        }
        shuffle(&mut rng, &mut members);
        let n_chosen = members.iter().filter(|&row| chosen.contains(row)).count();
        let others: Vec<usize> = members.into_iter().filter(|row| !chosen.contains(row)).collect();
        chosen.extend(others.into_iter().take(rows.saturating_sub(n_chosen)));
    }
    Ok(chosen.into_iter().collect())
}

/// Rows of each class that occurs; a row may have several of them. Error with the kind of labels that have no classes.
fn rows_by_class(labels: &Labels) -> Result<BTreeMap<i64, Vec<usize>>, &'static str> {
    let mut members: BTreeMap<i64, Vec<usize>> = BTreeMap::new();
    let mut add = |row: usize, classes: BTreeSet<i64>| {
        classes.into_iter().for_each(|class| members.entry(class).or_default().push(row));
    };
    match labels {
        Labels::Class(rows) => rows.iter().enumerate().for_each(|(row, &class)| add(row, BTreeSet::from([class]))),
        Labels::Tags(rows) => {
            rows.iter().enumerate().for_each(|(row, tags)| add(row, tags.iter().copied().collect()));
        }
        Labels::Multi(rows) => rows.iter().enumerate().for_each(|(row, hot)| {
            add(row, (0_i64..).zip(hot).filter(|(_, share)| **share >= 0.5).map(|(class, _)| class).collect());
        }),
        Labels::Value(_) => return Err("numbers"),
        Labels::Choice(_) => return Err("options"),
        Labels::Text(_) => return Err("answers"),
    }
    Ok(members)
}

fn strata(labels: &Labels) -> Vec<Vec<usize>> {
    let Labels::Class(classes) = labels else { return vec![(0..labels.len()).collect()] };
    let mut strata: BTreeMap<i64, Vec<usize>> = BTreeMap::new();
    for (row, class) in classes.iter().enumerate() {
        strata.entry(*class).or_default().push(row);
    }
    strata.into_values().collect()
}

/// Each stratum with the number of its rows that are held out, by largest remainders, ties to the earlier class.
fn quotas(strata: Vec<Vec<usize>>, rows: usize, held_out: usize) -> Vec<(Vec<usize>, usize)> {
    let product = |members: &Vec<usize>| members.len() as u128 * held_out as u128;
    let mut quotas: Vec<usize> = strata.iter().map(|members| (product(members) / rows as u128) as usize).collect();
    let mut by_remainder: Vec<usize> = (0..strata.len()).collect();
    by_remainder.sort_by_key(|&i| std::cmp::Reverse(product(&strata[i]) % rows as u128));
    let left = held_out - quotas.iter().sum::<usize>();
    by_remainder[..left].iter().for_each(|&i| quotas[i] += 1);
    strata.into_iter().zip(quotas).collect()
}

/// Invalid split.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[expect(missing_docs, reason = "the message names the fields")]
#[non_exhaustive]
pub enum SplitError {
    /// Fraction outside of the open interval from 0 to 1.
    #[error("split off {fraction} of the rows; expected more than 0 and less than 1")]
    Fraction { fraction: f64 },
    /// Too few rows for two parts.
    #[error("split off {fraction} of {rows} row(s): a part would be empty")]
    EmptyPart { rows: usize, fraction: f64 },
    /// Labels without classes.
    #[error("take {rows} rows of each class: the labels are {found}, which have no classes")]
    NoClasses { rows: usize, found: &'static str },
    /// Too few rows of a class.
    #[error("take {rows} rows of each class: there are {found} of `{class}`")]
    TooFew { rows: usize, class: String, found: usize },
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn split_is_stratified_by_class() {
        let labels = Labels::Class((0..8530).map(|row| i64::from(row >= 4265)).collect());
        let (train, validation) = split(&labels, 42, 0.1).expect("split");
        assert_eq!((train.len(), validation.len()), (7677, 853));
        let positive = validation.iter().filter(|&&row| row >= 4265).count();
        assert!((426..=427).contains(&positive), "{positive}");
        assert_ne!(split(&labels, 43, 0.1).expect("split").1, validation);
    }

    #[test]
    fn split_with_an_empty_part_is_refused() {
        let labels = Labels::Value(vec![0.0; 4]);
        for fraction in [0.0, 1.0, -0.1, 1.5, f64::NAN] {
            assert!(matches!(split(&labels, 0, fraction), Err(SplitError::Fraction { .. })), "{fraction}");
        }
        for fraction in [0.1, 0.9] {
            assert_eq!(split(&labels, 0, fraction), Err(SplitError::EmptyPart { rows: 4, fraction }));
        }
    }

    #[test]
    fn rows_of_each_class_are_as_many() {
        let labels = Labels::Class((0..90).map(|row| i64::from(row % 3 == 0)).collect());
        let names = ["bad", "good"].map(str::to_owned);
        let few = |seed: u64, rows: usize| few_shot(&labels, &names, seed, rows);
        let chosen = few(1, 16).expect("there are enough");
        assert!(chosen.is_sorted() && chosen.len() == 32);
        assert_eq!(chosen.iter().filter(|&&row| row % 3 == 0).count(), 16);
        assert_eq!(few(1, 16).expect("again"), chosen);
        assert_ne!(few(2, 16).expect("another seed"), chosen);
        assert_eq!(few(1, 31), Err(SplitError::TooFew { rows: 31, class: "good".to_owned(), found: 30 }));
        let three = ["bad", "good", "fine"].map(str::to_owned);
        let absent = few_shot(&labels, &three, 1, 16);
        assert_eq!(absent, Err(SplitError::TooFew { rows: 16, class: "fine".to_owned(), found: 0 }));
        let number = few_shot(&Labels::Value(vec![0.5]), &names, 1, 1);
        assert_eq!(number, Err(SplitError::NoClasses { rows: 1, found: "numbers" }));
    }

    #[test]
    fn rows_with_several_labels_give_each_label_enough() {
        let hot: Vec<Vec<f32>> =
            (0..60).map(|row| (1..4).map(|label| f32::from(u8::from(row % (label + 1) == 0))).collect()).collect();
        let chosen = few_shot(&Labels::Multi(hot.clone()), &[], 7, 5).expect("there are enough");
        let count = |label: usize| chosen.iter().filter(|&&row| hot[row][label] > 0.5).count();
        assert!((0..3).all(|label| count(label) >= 5), "{chosen:?}");
        assert!(chosen.is_sorted() && chosen.len() <= 15);
        let tags = Labels::Tags(vec![vec![0, 1], vec![0, 0], vec![2, 1, 0]]);
        let chosen = few_shot(&tags, &[], 7, 1).expect("there are enough");
        assert!(chosen.contains(&2), "the only row of the tag 2");
        assert!(matches!(few_shot(&tags, &[], 7, 2), Err(SplitError::TooFew { found: 1, .. })));
    }

    proptest! {
        #[test]
        fn split_puts_each_row_into_one_part(
            classes in prop::collection::vec(0_i64..5, 2..200),
            seed in any::<u64>(),
            fraction in 0.05_f64..0.95,
        ) {
            let labels = Labels::Class(classes.clone());
            let Ok((train, validation)) = split(&labels, seed, fraction) else { return Ok(()) };
            prop_assert_eq!(validation.len(), (classes.len() as f64 * fraction).round() as usize);
            prop_assert!(train.is_sorted() && validation.is_sorted());
            let mut all = [train.clone(), validation.clone()].concat();
            all.sort_unstable();
            prop_assert_eq!(all, (0..classes.len()).collect::<Vec<_>>());
            prop_assert_eq!(split(&labels, seed, fraction), Ok((train, validation.clone())));
            for class in 0..5 {
                let total = classes.iter().filter(|&&c| c == class).count() as f64;
                let part = validation.iter().filter(|&&row| classes[row] == class).count() as f64;
                let exact = total * validation.len() as f64 / classes.len() as f64;
                prop_assert!((part - exact).abs() < 1.0, "class {}: {} of {}", class, part, exact);
            }
        }
    }
}
