//! Properties of the measures for any rows.

use proptest::prelude::*;
use sepal_metrics::{self as metrics, Average, multilabel};

/// Predictions, labels and a permutation of the rows, with at most five classes.
fn classes() -> impl Strategy<Value = (Vec<(i64, i64)>, Vec<usize>)> {
    prop::collection::vec((0_i64..5, 0_i64..5), 1..60).prop_flat_map(with_order)
}

fn with_order<T: Clone + std::fmt::Debug + 'static>(rows: Vec<T>) -> impl Strategy<Value = (Vec<T>, Vec<usize>)> {
    let order = Just((0..rows.len()).collect::<Vec<_>>()).prop_shuffle();
    (Just(rows), order)
}

/// Scores with ties, and true for positive rows.
fn scored() -> impl Strategy<Value = (Vec<(f64, bool)>, Vec<usize>)> {
    let score = prop_oneof![(0_u8..8).prop_map(|eighths| f64::from(eighths) / 8.0), 0.0..1.0];
    prop::collection::vec((score, any::<bool>()), 1..60).prop_flat_map(with_order)
}

fn in_order<T: Clone>(rows: &[T], order: &[usize]) -> Vec<T> {
    order.iter().map(|&row| rows[row].clone()).collect()
}

fn unzip<A: Clone, B: Clone>(rows: &[(A, B)]) -> (Vec<A>, Vec<B>) {
    rows.iter().cloned().unzip()
}

fn near(a: f64, b: f64) -> bool {
    (a - b).abs() < 1e-9
}

fn all(predicted: &[i64], actual: &[i64]) -> Vec<f64> {
    let averaged = |how| metrics::averaged(predicted, actual, how).expect("scores");
    let mut all: Vec<f64> = [Average::Macro, Average::Micro, Average::Weighted]
        .into_iter()
        .flat_map(|how| [averaged(how).precision, averaged(how).recall, averaged(how).f1])
        .collect();
    for metric in [metrics::accuracy, metrics::balanced_accuracy, metrics::matthews, metrics::cohen_kappa] {
        all.push(metric(predicted, actual).expect("a measure"));
    }
    all
}

proptest! {
    #[test]
    fn measures_ignore_row_order_and_class_names((rows, order) in classes()) {
        let (predicted, actual) = unzip(&rows);
        let (p, a) = unzip(&in_order(&rows, &order));
        let renamed = |classes: &[i64]| classes.iter().map(|&class| [3, 0, 4, 1, 2][class as usize]).collect::<Vec<_>>();
        let expected = all(&predicted, &actual);
        for found in [all(&p, &a), all(&renamed(&p), &renamed(&a))] {
            prop_assert!(expected.iter().zip(&found).all(|(e, f)| near(*e, *f)), "{expected:?} {found:?}");
        }
        prop_assert_eq!(metrics::confusion(&p, &a, 5), metrics::confusion(&predicted, &actual, 5));
    }

    #[test]
    fn confusion_determines_measures((rows, _) in classes()) {
        let (predicted, actual) = unzip(&rows);
        let matrix = metrics::confusion(&predicted, &actual, 5).expect("a matrix");
        let hits: usize = (0..5).map(|class| matrix[class][class]).sum();
        prop_assert_eq!(matrix.iter().flatten().sum::<usize>(), rows.len());
        let accuracy = metrics::accuracy(&predicted, &actual).expect("an accuracy");
        prop_assert!(near(accuracy, hits as f64 / rows.len() as f64));
        for (class, scores) in metrics::per_class(&predicted, &actual, 5).expect("scores").iter().enumerate() {
            prop_assert_eq!(scores.support, matrix[class].iter().sum::<usize>());
            let predicted: usize = matrix.iter().map(|row| row[class]).sum();
            prop_assert!(near(scores.precision * predicted as f64, matrix[class][class] as f64));
            prop_assert!(near(scores.recall * scores.support as f64, matrix[class][class] as f64));
        }
        let micro = metrics::averaged(&predicted, &actual, Average::Micro).expect("scores");
        let weighted = metrics::averaged(&predicted, &actual, Average::Weighted).expect("scores");
        prop_assert!(near(micro.f1, accuracy) && near(weighted.recall, accuracy));
    }

    #[test]
    fn both_correlations_are_symmetric((rows, _) in classes()) {
        let (predicted, actual) = unzip(&rows);
        for metric in [metrics::matthews, metrics::cohen_kappa] {
            let (value, swapped) = (metric(&predicted, &actual), metric(&actual, &predicted));
            prop_assert!(near(value.expect("a measure"), swapped.expect("a measure")));
        }
    }

    #[test]
    fn areas_depend_on_ranks_only((rows, order) in scored()) {
        let (scores, positive) = unzip(&rows);
        let areas = |scores: &[f64], positive: &[bool]| {
            (metrics::binary_auroc(scores, positive).expect("ok"), metrics::average_precision(scores, positive).expect("ok"))
        };
        let expected = areas(&scores, &positive);
        let (s, p) = unzip(&in_order(&rows, &order));
        prop_assert_eq!(areas(&s, &p), expected);
        let stretched: Vec<f64> = scores.iter().map(|score| score * 1024.0 - 77.0).collect();
        if stretched.iter().zip(&scores).all(|(a, b)| (a + 77.0) / 1024.0 == *b) {
            prop_assert_eq!(areas(&stretched, &positive), expected);
        }
    }

    #[test]
    fn reversed_scores_complement_area((rows, _) in scored()) {
        let (scores, positive) = unzip(&rows);
        let reversed: Vec<f64> = scores.iter().map(|score| -score).collect();
        let negative: Vec<bool> = positive.iter().map(|positive| !positive).collect();
        let area = metrics::binary_auroc(&scores, &positive).expect("ok");
        let both = positive.contains(&true) && positive.contains(&false);
        prop_assert_eq!(area.is_some(), both);
        for turned in [metrics::binary_auroc(&reversed, &positive), metrics::binary_auroc(&scores, &negative)] {
            let turned = turned.expect("ok");
            prop_assert_eq!(turned.is_some(), both);
            prop_assert!(!both || near(area.unwrap_or(0.0), 1.0 - turned.unwrap_or(0.0)));
        }
    }

    #[test]
    fn area_equals_share_of_ordered_pairs((rows, _) in scored()) {
        let (scores, positive) = unzip(&rows);
        let scores_of = |is_positive: bool| rows.iter().filter(move |row| row.1 == is_positive).map(|row| row.0);
        let pairs: Vec<f64> = scores_of(true)
            .flat_map(|p| scores_of(false).map(move |n| f64::from(u8::from(p > n)) + 0.5 * f64::from(u8::from(p == n))))
            .collect();
        let expected = pairs.iter().sum::<f64>() / pairs.len() as f64;
        if let Some(area) = metrics::binary_auroc(&scores, &positive).expect("ok") {
            prop_assert!(near(area, expected), "{area} {expected}");
        }
    }

    #[test]
    fn bins_hold_each_row_once((rows, _) in scored(), n_bins in 1_usize..20) {
        let probabilities: Vec<Vec<f64>> = rows.iter().map(|(p, _)| vec![1.0 - p, *p]).collect();
        let actual: Vec<i64> = rows.iter().map(|(_, positive)| i64::from(*positive)).collect();
        let found = metrics::calibration(&probabilities, &actual, n_bins).expect("a calibration");
        prop_assert_eq!(found.bins.len(), n_bins);
        prop_assert_eq!(found.bins.iter().map(|bin| bin.count).sum::<usize>(), rows.len());
        let right: f64 = found.bins.iter().map(|bin| bin.count as f64 * bin.accuracy).sum();
        let top = metrics::top_k_accuracy(&probabilities, &actual, 1).expect("an accuracy");
        prop_assert!(near(right / rows.len() as f64, top));
        for (i, bin) in found.bins.iter().enumerate().filter(|(_, bin)| bin.count > 0) {
            let (low, high) = (i as f64 / n_bins as f64, (i + 1) as f64 / n_bins as f64);
            prop_assert!((low - 1e-9..=high + 1e-9).contains(&bin.confidence), "{bin:?} of {low} to {high}");
        }
        prop_assert!((0.0..=1.0).contains(&found.error));
    }

    #[test]
    fn correlations_ignore_scale_and_order(rows in prop::collection::vec((-9_i32..9, -9_i32..9), 2..40)) {
        let (predicted, actual): (Vec<f64>, Vec<f64>) = rows.iter().map(|&(p, a)| (f64::from(p), f64::from(a))).unzip();
        let scaled: Vec<f64> = predicted.iter().map(|p| 3.0 * p - 4.0).collect();
        let reversed: Vec<f64> = predicted.iter().map(|p| -p).collect();
        for metric in [metrics::pearson, metrics::spearman] {
            let measure = |predicted: &[f64]| metric(predicted, &actual).expect("a measure");
            prop_assert!(near(measure(&scaled), measure(&predicted)) && near(measure(&reversed), -measure(&predicted)));
        }
        let r2 = metrics::r2(&predicted, &actual).expect("a measure");
        prop_assert!(r2 <= 1.0 && (r2 == 1.0) == (predicted == actual));
    }

    #[test]
    fn one_hot_labels_are_classes((rows, _) in classes()) {
        let (predicted, actual) = unzip(&rows);
        let hot = |classes: &[i64]| -> Vec<Vec<bool>> {
            classes.iter().map(|&class| (0..5).map(|of| of == class).collect()).collect()
        };
        let (p, a) = (hot(&predicted), hot(&actual));
        prop_assert_eq!(multilabel::per_label(&p, &a), metrics::per_class(&predicted, &actual, 5));
        prop_assert_eq!(multilabel::exact_match(&p, &a), metrics::accuracy(&predicted, &actual));
        let misses = 1.0 - metrics::accuracy(&predicted, &actual).expect("an accuracy");
        prop_assert!(near(multilabel::hamming_loss(&p, &a).expect("a loss"), 2.0 * misses / 5.0));
    }
}
