use std::collections::BTreeMap;

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

/// Chooses `rows` rows of each class, at random but reproducibly for a seed. The list keeps the file's order.
///
/// # Errors
/// [`SplitError::NoClasses`] for labels of another kind, [`SplitError::TooFew`] for a class with fewer rows.
pub fn rows_per_class(labels: &Labels, seed: u64, rows: usize) -> Result<Vec<usize>, SplitError> {
    let Labels::Class(classes) = labels else { return Err(SplitError::NoClasses { rows }) };
    let mut rng = generator("rows per class", seed, 0);
    let mut chosen = Vec::new();
    for mut members in strata(labels) {
        if members.len() < rows {
            let class = members.first().map_or(0, |&row| classes[row]);
            return Err(SplitError::TooFew { rows, class, found: members.len() });
        }
        shuffle(&mut rng, &mut members);
        chosen.extend_from_slice(&members[..rows]);
    }
    chosen.sort_unstable();
    Ok(chosen)
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
    #[error("take {rows} rows of each class: the labels are no classes")]
    NoClasses { rows: usize },
    /// Too few rows of a class.
    #[error("take {rows} rows of each class: of the class with index {class} there are {found}")]
    TooFew { rows: usize, class: i64, found: usize },
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
        let chosen = rows_per_class(&labels, 1, 16).expect("there are enough");
        assert!(chosen.is_sorted() && chosen.len() == 32);
        assert_eq!(chosen.iter().filter(|&&row| row % 3 == 0).count(), 16);
        assert_eq!(rows_per_class(&labels, 1, 16).expect("again"), chosen);
        assert_ne!(rows_per_class(&labels, 2, 16).expect("another seed"), chosen);
        assert_eq!(rows_per_class(&labels, 1, 31), Err(SplitError::TooFew { rows: 31, class: 1, found: 30 }));
        assert_eq!(rows_per_class(&Labels::Value(vec![0.5]), 1, 1), Err(SplitError::NoClasses { rows: 1 }));
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
