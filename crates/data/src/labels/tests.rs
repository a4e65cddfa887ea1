use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanArray, DictionaryArray, Float32Array, Float64Array, Int64Array, ListArray, StringArray,
    UInt64Array,
};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float64Type, Int32Type, Int64Type};
use proptest::prelude::*;
use proptest::sample::{Index, select};

use super::*;
use crate::testing::jsonl;
use crate::{Format, columns};

fn set(names: &[&str]) -> LabelSet {
    LabelSet::new(names.iter().copied()).expect("names")
}

fn labels(names: &[&str], cells: &[&str]) -> Result<Labels, LabelError> {
    let set = set(names);
    set.labels(&jsonl(cells))
}

fn multi_labels(names: &[&str], cells: &[&str]) -> Result<Vec<Vec<f32>>, LabelError> {
    match set(names).labels_as(&jsonl(cells), LabelKind::Multi)? {
        Labels::Multi(rows) => Ok(rows),
        other => panic!("{other:?}"),
    }
}

fn error(names: &[&str], cells: &[&str]) -> String {
    labels(names, cells).expect_err("no labels").to_string()
}

fn classes(names: &[&str], column: &ArrayRef) -> Result<Vec<i64>, LabelError> {
    let cells = columns::labels(column, Format::Parquet).expect("labels");
    let cells: Vec<RawLabel> = cells.into_iter().map(|cell| cell.expect("not null")).collect();
    let location = |row| RowLocation { path: "x.parquet".into(), row: row + 1 };
    match set(names).convert(&cells, &location, LabelKind::Class)? {
        Labels::Class(classes) => Ok(classes),
        other => panic!("{other:?}"),
    }
}

#[test]
fn classes_are_found_by_name_or_index() {
    let names = ["negative", "positive"];
    let cells = ["0", "1", "\"positive\"", "\" negative \"", "\"1\"", "1.0", "true", "\"01\"", "1e0", "-0.0"];
    assert_eq!(labels(&names, &cells), Ok(Labels::Class(vec![0, 1, 1, 0, 1, 1, 1, 1, 1, 0])));
    assert_eq!(labels(&["1", "2", "3"], &["1", "3", "\"2\""]), Ok(Labels::Class(vec![0, 2, 1])));
}

#[test]
fn values_take_precedence_over_indices() {
    let check = |names: &[&str], cells: &[&str], expected: &[i64]| {
        assert_eq!(labels(names, cells), Ok(Labels::Class(expected.to_vec())), "{names:?} {cells:?}");
    };
    check(&["True", "False"], &["true", "false", "\"TRUE\"", "\"False\""], &[0, 1, 0, 1]);
    check(&["1.0", "2.0"], &["1.0", "1", "2", "\"1\"", "\"2.00\"", "1e0"], &[0, 0, 1, 0, 1, 0]);
    check(&["2", "1"], &["1", "2.0"], &[1, 0]);
    check(&["1", "0"], &["0", "1", "true"], &[1, 0, 0]);
    check(&["001", "002"], &["1", "2", "\"001\""], &[0, 1, 0]);
    check(&["+1", "-1", "0"], &["1", "-1", "0", "-0"], &[0, 1, 2, 2]);
    check(&["0.5", "1.5"], &["0.50", "15e-1"], &[0, 1]);
    check(&["yes", "no"], &["true", "false"], &[0, 1]);
    check(&["no", "yes"], &["true", "0", "1"], &[1, 0, 1]);
    check(&["False", "True"], &["0", "1", "1.0", "true"], &[0, 1, 1, 1]);
    check(&["1.1", "1.10"], &["\"1.1\"", "\"1.10\"", "1.10"], &[0, 1, 1]);
}

#[test]
fn ambiguous_label_is_refused_with_both_meanings() {
    let check = |names: &[&str], cells: &[&str], expected: &str| {
        let text = error(names, cells);
        assert!(text.contains(expected), "{names:?} {cells:?}: {text}");
    };
    check(&["True", "False"], &["0", "1"], "0 is `True` by its index or `False` by its truth value");
    check(&["1", "1.0"], &["1", "\"1.00\""], "row 2 of ");
    check(&["1", "1.0"], &["\"1.00\""], "1.00 is `1` or `1.0`, which is the same value");
    check(&["1", "2", "3"], &["1", "0"], "`0` is no label; the labels are 1, 2, 3, and as `1` is itself a value");
    check(&["none", "7"], &["7", "1"], "1 is not taken for the index");
    check(&["True", "False"], &["2"], "`2` is no label");
}

#[test]
fn missing_labels_are_refused() {
    for cell in ["\"\"", "\" \"", "\"NaN\"", "\"nan\"", "\"<NA>\""] {
        assert!(error(&["bad", "good"], &["0", cell]).contains("row 2 of "), "{cell}");
        assert!(error(&["bad", "good"], &["0", cell]).ends_with("there is no label"), "{cell}");
    }
    let cells: ArrayRef = Arc::new(StringArray::from(vec!["NaN", "1"]));
    assert_eq!(columns::labels(&cells, Format::Jsonl), Some(vec![None, Some(RawLabel::Name("1".to_owned()))]));
    assert_eq!(labels(&["NaN", "good"], &["\"NaN\""]), Ok(Labels::Class(vec![0])), "a name takes precedence");
    let column: ArrayRef = Arc::new(Float64Array::from(vec![1.0, f64::NAN]));
    assert!(matches!(classes(&["a", "b"], &column), Err(LabelError::Missing { location }) if location.row == 2));
    let column: ArrayRef = Arc::new(Float64Array::from(vec![f64::INFINITY]));
    assert!(matches!(classes(&["a", "inf"], &column), Err(LabelError::Kind { .. })));
}

#[test]
fn names_are_compared_in_normal_form() {
    let composed = "\u{e9}t\u{e9}";
    let decomposed = "e\u{301}te\u{301}";
    assert_eq!(labels(&[composed, "b"], &[&format!("\" {decomposed}\"")]), Ok(Labels::Class(vec![0])));
    assert_eq!(labels(&[decomposed, "b"], &[&format!("\"{composed}\"")]), Ok(Labels::Class(vec![0])));
    assert!(error(&["Bad", "good"], &["\"bad\""]).contains("did you mean `Bad`?"), "names are case-sensitive");
    for names in [[composed, decomposed], ["a", "a "], ["a b", "a\tb"]] {
        let error = LabelSet::new(names).expect_err("one name");
        assert!(error.to_string().contains("differ only in white space or in their Unicode normal form"), "{error}");
    }
}

#[test]
fn unknown_class_is_reported_with_its_row() {
    let names = ["negative", "positive"];
    let text = error(&names, &["0", "\"postive\""]);
    assert!(text.contains("row 2 of ") && text.contains("negative, positive; did you mean `positive`?"), "{text}");
    let text = error(&names, &["0", "1", "2"]);
    assert!(text.contains("row 3 of ") && text.contains("expected 0 to 1 for negative, positive"), "{text}");
    assert!(error(&names, &["-1"]).contains("the label -1 is out of range"));
    assert!(error(&names, &["0.5"]).contains("`0.5` is no label"));
    assert!(error(&names, &["1e300"]).contains("`1e300` is no label"));
}

#[test]
fn single_name_means_numbers() {
    assert_eq!(labels(&["score"], &["0", "-2.5", "\"3e1\""]), Ok(Labels::Value(vec![0.0, -2.5, 30.0])));
    for cell in ["\"much\"", "\"inf\""] {
        assert!(error(&["score"], &["1", cell]).contains("expected a number"), "{cell}");
    }
    assert!(error(&["score"], &["1", "\"NaN\""]).contains("there is no label"));
}

#[test]
fn lists_of_classes_become_multi_hot() {
    let names = ["joy", "anger", "fear"];
    let expected = Labels::Multi(vec![vec![1.0, 0.0, 1.0], vec![0.0; 3], vec![0.0, 1.0, 0.0]]);
    assert_eq!(labels(&names, &["[0, 2]", "[]", "[\"anger\"]"]), Ok(expected));
    assert!(error(&names, &["[0, 0, 2]"]).contains("each class once"));
    assert!(error(&names, &["[3]"]).contains("out of range"));
    let vector = Labels::Multi(vec![vec![0.0, 1.0, 0.5]]);
    assert_eq!(labels(&names, &["[0.0, 1.0, 0.5]"]), Ok(vector));
    for cell in ["[0.0, 1.0]", "[0.0, 1.0, 1.5]"] {
        assert!(error(&names, &[cell]).contains("as many numbers from 0 to 1"), "{cell}");
    }
}

#[test]
fn list_column_has_one_layout() {
    let two = ["neg", "pos"];
    let multi_hot = |cells: &[&str]| multi_labels(&two, cells).expect("labels");
    let (neg, pos, none, both) = (vec![1.0, 0.0], vec![0.0, 1.0], vec![0.0, 0.0], vec![1.0, 1.0]);
    assert_eq!(multi_hot(&["[1, 0]", "[0, 1]"]), [neg.clone(), pos.clone()]);
    assert_eq!(multi_hot(&["[0, 1]", "[0, 0]"]), [pos.clone(), none.clone()]);
    assert_eq!(multi_hot(&["[true, false]", "[false, true]"]), [neg.clone(), pos.clone()]);
    assert_eq!(multi_hot(&["[0.0, 1.0]"]), std::slice::from_ref(&pos));
    assert_eq!(multi_hot(&["[0, 1]", "[0]", "[]"]), [both.clone(), neg.clone(), none.clone()]);
    assert_eq!(multi_hot(&["[\"neg\", \"pos\"]"]), std::slice::from_ref(&both));
    assert_eq!(multi_hot(&["[]", "[]"]), [none.clone(), none.clone()]);
    for cells in [&["[0, 1]", "[0, 1]"][..], &["[1, 0]"], &["[]", "[0, 1]", "[1, 0]"], &["\"[0, 1]\""]] {
        let text = multi_labels(&two, cells).expect_err("ambiguous").to_string();
        let meanings = ["as a multi-hot vector or `", " as a list of labels; write 1.0 and 0.0"];
        assert!(meanings.iter().all(|meaning| text.contains(meaning)), "{cells:?}: {text}");
    }
    let inferred = set(&two).with_inferred_layout([&jsonl(&["[0, 0]", "[1, 0]"]), &jsonl(&["[0, 1]"])]);
    assert_eq!(inferred.layout(), Some(ListLayout::MultiHot));
    assert_eq!(inferred.labels(&jsonl(&["[0, 1]"])), Ok(Labels::Multi(vec![pos])));
    let inferred = set(&two).with_inferred_layout([&jsonl(&["[0]", "[1, 0]"])]);
    assert_eq!(inferred.labels(&jsonl(&["[0, 1]", "[1, 0]"])), Ok(Labels::Multi(vec![both.clone(), both])));
    let three = multi_labels(&["a", "b", "c"], &["[1, 0, 1]", "[0, 0, 0]", "[0.5, 1, 0]"]).expect("labels");
    assert_eq!(three, [[1.0, 0.0, 1.0], [0.0; 3], [0.5, 1.0, 0.0]]);
    assert!(multi_labels(&["a", "b", "c"], &["[1, 0, 1]", "[0, 1]"]).is_err());
}

#[test]
fn names_that_are_numbers_are_told_from_multi_hot_vectors() {
    let two = ["0", "1"];
    let multi_hot = |names: &[&str], cells: &[&str]| multi_labels(names, cells).expect("labels");
    let (zero, one, none, both) = (vec![1.0, 0.0], vec![0.0, 1.0], vec![0.0, 0.0], vec![1.0, 1.0]);
    // Numbers in quotation marks are names.
    for cell in ["[\"0\", \"1\"]", "\"[\\\"0\\\", \\\"1\\\"]\"", "\"['1', '0']\""] {
        assert_eq!(multi_hot(&two, &[cell, cell]), [both.clone(), both.clone()], "{cell}");
    }
    // Another row decides.
    assert_eq!(multi_hot(&two, &["\"0|1\"", "\"0\"", "\"\""]), [both.clone(), zero.clone(), none.clone()]);
    assert_eq!(multi_hot(&two, &["[1.0, 0.0]"]), std::slice::from_ref(&zero));
    assert_eq!(multi_hot(&two, &["\"0.0|1.0\"", "\"0|1\""]), [one.clone(), one.clone()]);
    // No vector of three numbers.
    assert_eq!(multi_hot(&["0", "1", "2"], &["\"0|1\""]), [[1.0, 1.0, 0.0]]);
    assert_eq!(multi_hot(&["0", "1", "2"], &["\"0|1|2\""]), [[1.0; 3]]);
    for cells in [&["\"0|1\"", "\"0|1\""][..], &["\"0|1\"", "\"\""], &["[0, 1]"]] {
        let text = multi_labels(&two, cells).expect_err("ambiguous").to_string();
        assert!(
            text.contains("write [1.0, 0.0] for multi-hot vectors, or lists with the names in quotation marks"),
            "{text}"
        );
    }
    let quoted: ArrayRef = Arc::new(StringArray::from(vec!["0", "1"]));
    let lists = cast(&quoted, &DataType::new_list(DataType::Utf8, true)).expect("lists");
    let items = columns::labels(&lists, Format::Parquet).expect("labels");
    assert_eq!(items[0], Some(RawLabel::Many(vec![RawLabel::Quoted("0".to_owned())])));
    // Names that are no numbers: texts of digits are vectors, as before.
    assert_eq!(multi_hot(&["a", "b"], &["[\"1\", \"0\"]", "[\"0\", \"1\"]"]), [zero.clone(), one]);
    assert_eq!(multi_hot(&["a", "b"], &["\"1.0|0.0\""]), [zero]);
}

#[test]
fn other_rows_and_a_known_layout_go_before_quotation_marks() {
    let cells = ["[\"1\", \"1\"]", "[\"0\", \"1\"]"];
    assert_eq!(multi_labels(&["0", "1"], &cells).expect("labels"), [[1.0, 1.0], [0.0, 1.0]], "1 twice is a vector");
    let cells = jsonl(&["[\"1\", \"0\"]", "[\"0\", \"1\"]"]);
    let read = |layout| set(&["0", "1"]).with_layout(layout).labels_as(&cells, LabelKind::Multi).expect("labels");
    let (vectors, both) = (vec![vec![1.0, 0.0], vec![0.0, 1.0]], vec![vec![1.0, 1.0]; 2]);
    assert_eq!(read(Some(ListLayout::MultiHot)), Labels::Multi(vectors));
    assert_eq!(read(Some(ListLayout::Classes)), Labels::Multi(both.clone()));
    assert_eq!(read(None), Labels::Multi(both));
    assert_eq!(set(&["0", "1"]).with_inferred_layout([&cells]).layout(), Some(ListLayout::Classes));
}

#[test]
fn digest_is_that_of_names_for_texts_of_lists() {
    let texts = jsonl(&["[\"0\", \"1\"]"]);
    assert_eq!(texts.digest(), jsonl(&["[0, 1]"]).digest(), "as in earlier versions");
}

#[test]
fn texts_of_several_labels_are_split() {
    let names = ["neg", "pos", "Food, drink", "1.5"];
    let check = |cell: &str, expected: &[usize]| {
        let rows =
            multi_labels(&names, &[&serde_json::json!(cell).to_string()]).unwrap_or_else(|error| panic!("{error}"));
        let hot: Vec<f32> = (0..names.len()).map(|i| f32::from(u8::from(expected.contains(&i)))).collect();
        assert_eq!(rows, [hot], "{cell}");
    };
    check("neg", &[0]);
    check("pos|neg", &[0, 1]);
    check("neg ; pos;", &[0, 1]);
    check("pos, neg", &[0, 1]);
    check("neg；pos", &[0, 1]);
    check("Food, drink", &[2]);
    check("Food, drink; neg", &[0, 2]);
    check("1.50|neg", &[0, 3]);
    check("['neg', 'Food, drink']", &[0, 2]);
    check("[1 0 1 0]", &[0, 2]);
    check("", &[]);
    check("[]", &[]);
}

#[test]
fn texts_without_labels_are_refused() {
    let check = |cell: &str, expected: &str| {
        let cells = ["\"neg\"".to_owned(), serde_json::json!(cell).to_string()];
        let text = multi_labels(&["neg", "pos"], &[&cells[0], &cells[1]]).expect_err("no labels").to_string();
        assert!(text.contains("row 2 of ") && text.contains(expected), "{cell}: {text}");
    };
    check("neg|poss", "`poss` is no label; the labels are neg, pos; did you mean `pos`?");
    check("great; film", "`great; film` is no label");
    check("neg|neg", "each class once");
    check("nan", "there is no label");
    let cell = serde_json::json!("a|b;c").to_string();
    let text = multi_labels(&["a|b", "c", "a", "b;c"], &[&cell]).expect_err("ambiguous").to_string();
    assert!(text.contains("`a|b;c` is [a, b;c] or [a|b, c]"), "{text}");
    assert!(multi_labels(&["neg", "pos"], &["1"]).is_ok(), "a text of digits is an index");
}

#[test]
fn indistinguishable_names_are_refused() {
    for names in [&[][..], &["a", "a"], &["a", " "]] {
        assert!(matches!(LabelSet::new(names.iter().copied()), Err(LabelError::Names { .. })), "{names:?}");
    }
}

#[test]
fn training_set_of_one_class_is_refused() {
    let set = set(&["negative", "positive"]);
    let error = check_classes(&Labels::Class(vec![1, 1, 1]), &set).expect_err("one class");
    assert_eq!(error, LabelError::OneClass { class: "positive".to_owned(), rows: 3 });
    check_classes(&Labels::Class(vec![1, 0]), &set).expect("two classes");
    check_classes(&Labels::Value(vec![1.0, 1.0]), &set).expect("values are not classes");
}

#[test]
fn integers_beyond_f64_are_exact() {
    let names = ["9007199254740992", "9007199254740993", "18446744073709551615"];
    let column: ArrayRef = Arc::new(Int64Array::from(vec![9007199254740993, 9007199254740992]));
    assert_eq!(classes(&names, &column), Ok(vec![1, 0]));
    let column: ArrayRef = Arc::new(UInt64Array::from(vec![u64::MAX, 9007199254740993]));
    assert_eq!(classes(&names, &column), Ok(vec![2, 1]));
    assert_eq!(labels(&names, &["9007199254740993"]), Ok(Labels::Class(vec![1])));
    let column: ArrayRef = Arc::new(Float32Array::from(vec![0.1, 2.5]));
    assert_eq!(classes(&["2.5", "0.1"], &column), Ok(vec![1, 0]));
}

#[test]
fn digest_changes_only_with_the_labels() {
    let check = |names: &[&str], cells: &[&str], kind: LabelKind, is_same: bool| {
        let (set, table) = (set(names), jsonl(cells));
        let labels = set.labels_as(&table, kind).expect("labels");
        assert_eq!(set.digest(&table, &labels) == table.digest(), is_same, "{names:?} {cells:?}");
    };
    check(&["bad", "good"], &["0", "\"good\"", "true"], LabelKind::Class, true);
    check(&["False", "True"], &["false", "\"True\"", "1"], LabelKind::Class, true);
    check(&["2", "1"], &["1", "2"], LabelKind::Class, true);
    check(&["1.0", "2.0"], &["\"1.0\"", "2.0"], LabelKind::Class, true);
    check(&["True", "False"], &["true", "false"], LabelKind::Class, false);
    check(&["0.0", "1.0", "2.0", "3.0"], &["1", "3"], LabelKind::Class, true);
    check(&["1.0", "2.0"], &["1", "2"], LabelKind::Class, false);
    check(&["score"], &["1", "0.5"], LabelKind::Value, true);
    check(&["a", "b", "c"], &["[0, 2]", "[]", "[\"b\"]"], LabelKind::Multi, true);
    check(&["a", "b"], &["[0.0, 1.0]", "[0, 1]"], LabelKind::Multi, false);
    check(&["a", "b"], &["[1, 0]", "[0, 0]"], LabelKind::Multi, false);
    check(&["a", "b"], &["\"a|b\"", "\"\""], LabelKind::Multi, true);
}

fn spellings(n: u8) -> Vec<String> {
    let mut spellings = vec![format!("{n}"), format!("{n}.0"), format!("0{n}"), format!("{n}e0"), format!("+{n}.00")];
    if n == 0 {
        spellings.push("-0.0".to_owned());
    }
    spellings
}

/// Columns of these numbers, of each type that can hold them.
fn columns_of(numbers: &[u8], spelling: usize) -> Vec<ArrayRef> {
    let wide: ArrayRef = Arc::new(Int64Array::from_iter_values(numbers.iter().map(|&n| i64::from(n))));
    let kinds = [
        DataType::Int8,
        DataType::UInt8,
        DataType::Int16,
        DataType::UInt32,
        DataType::Int64,
        DataType::UInt64,
        DataType::Float16,
        DataType::Float32,
        DataType::Float64,
        DataType::Decimal128(10, 2),
        DataType::Utf8,
        DataType::LargeUtf8,
        DataType::Utf8View,
        DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Int64)),
    ];
    let mut columns: Vec<ArrayRef> = kinds.iter().map(|kind| cast(&wide, kind).expect("a column")).collect();
    let spelled = |&n: &u8| spellings(n)[spelling % spellings(n).len()].clone();
    let texts: Vec<String> = numbers.iter().map(spelled).collect();
    columns.push(Arc::new(texts.iter().map(String::as_str).collect::<DictionaryArray<Int32Type>>()));
    columns.push(Arc::new(StringArray::from(texts)));
    columns
}

proptest! {
    #[test]
    fn numbers_match_names_of_their_value(
        names in Just((0_u8..12).collect::<Vec<_>>()).prop_shuffle(),
        n in 2_usize..7,
        spelled in prop::collection::vec(any::<Index>(), 12),
        cells in prop::collection::vec(any::<Index>(), 1..9),
        spelling in 0_usize..6,
    ) {
        let names = &names[..n];
        let texts: Vec<String> = names.iter().zip(spelled).map(|(&name, index)| index.get(&spellings(name)).clone()).collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let expected: Vec<usize> = cells.iter().map(|index| index.index(n)).collect();
        let numbers: Vec<u8> = expected.iter().map(|&index| names[index]).collect();
        let expected: Vec<i64> = expected.into_iter().map(|index| index as i64).collect();
        for column in columns_of(&numbers, spelling) {
            prop_assert_eq!(classes(&texts, &column), Ok(expected.clone()), "{}", column.data_type());
        }
        for other in (0_u8..12).filter(|other| !names.contains(other)) {
            for column in columns_of(&[other], spelling) {
                prop_assert!(classes(&texts, &column).is_err(), "{} in {}", other, column.data_type());
            }
        }
    }

    #[test]
    fn numbers_are_indices_without_value_names(n in 2_usize..7, index in any::<Index>(), spelling in 0_usize..6) {
        let names = &["bad", "good", "1 star", "v1.0", "inf", "nano", "trueish"][..n];
        let index = index.index(n);
        for column in columns_of(&[index as u8], spelling) {
            prop_assert_eq!(classes(names, &column), Ok(vec![index as i64]), "{}", column.data_type());
        }
        for column in columns_of(&[n as u8], spelling) {
            prop_assert!(classes(names, &column).is_err(), "{}", column.data_type());
        }
    }

    #[test]
    fn truth_values_match_names_of_their_value(
        truths in prop::collection::vec(any::<bool>(), 1..9),
        yes in select(&["True", "true", "TRUE", " tRue"][..]),
        no in select(&["False", "false", "FALSE"][..]),
        is_first in any::<bool>(),
    ) {
        let names = if is_first { [yes, no] } else { [no, yes] };
        let expected: Vec<i64> = truths.iter().map(|&truth| i64::from(truth != is_first)).collect();
        let truth: ArrayRef = Arc::new(BooleanArray::from(truths.clone()));
        let texts: ArrayRef = cast(&truth, &DataType::Utf8).expect("texts");
        prop_assert_eq!(classes(&names, &truth), Ok(expected.clone()));
        prop_assert_eq!(classes(&names, &texts), Ok(expected.clone()));
        let json: Vec<String> = truths.iter().map(bool::to_string).collect();
        let json: Vec<&str> = json.iter().map(String::as_str).collect();
        prop_assert_eq!(labels(&names, &json), Ok(Labels::Class(expected.clone())));
        let numbers: Vec<u8> = truths.iter().map(|&truth| u8::from(truth)).collect();
        for column in columns_of(&numbers, 0) {
            let read = classes(&names, &column);
            prop_assert!(if is_first { read.is_err() } else { read == Ok(expected.clone()) }, "{}", column.data_type());
        }
    }

    #[test]
    fn name_order_changes_no_label(
        cells in prop::collection::vec(select(&["1", "0", "true", "2.0", "\"x\"", "\"01\"", "\"FALSE\""][..]), 1..6),
        names in Just(vec!["1", "x", "0", "2", "é"]).prop_shuffle(),
    ) {
        let read = |names: &[&str]| -> Option<Vec<String>> {
            let Labels::Class(classes) = labels(names, &cells).ok()? else { return None };
            Some(classes.iter().map(|&class| names[class as usize].to_owned()).collect())
        };
        prop_assert_eq!(read(&names), read(&["0", "1", "2", "x", "é"]));
    }

    #[test]
    fn multi_hot_vectors_are_independent_of_type(
        n in 2_usize..6,
        bits in prop::collection::vec(any::<[bool; 6]>(), 2..9),
    ) {
        let rows: Vec<Vec<bool>> = bits.iter().map(|bits| bits[..n].to_vec()).collect();
        // A single list for two names is ambiguous.
        prop_assume!(n > 2 || rows.iter().any(|row| row != &rows[0]) || rows[0][0] == rows[0][1]);
        let names = &["a", "b", "c", "d", "e", "f"][..n];
        let expected: Vec<Vec<f32>> =
            rows.iter().map(|row| row.iter().map(|&bit| f32::from(u8::from(bit))).collect()).collect();
        let numbers = || rows.iter().map(|row| Some(row.iter().map(|&bit| Some(i64::from(bit))).collect::<Vec<_>>()));
        let integers: ArrayRef = Arc::new(ListArray::from_iter_primitive::<Int64Type, _, _>(numbers()));
        let list = |kind: DataType| DataType::new_list(kind, true);
        let fixed = DataType::new_fixed_size_list(DataType::UInt8, n as i32, true);
        for kind in [list(DataType::Int64), list(DataType::Boolean), list(DataType::Float32), list(DataType::Utf8), fixed] {
            let column = cast(&integers, &kind).expect("a column");
            let cells: Vec<_> = columns::labels(&column, Format::Parquet).expect("labels").into_iter().flatten().collect();
            let location = |row| RowLocation { path: "x.parquet".into(), row: row + 1 };
            let read = set(names).convert(&cells, &location, LabelKind::Multi);
            prop_assert_eq!(read, Ok(Labels::Multi(expected.clone())), "{}", kind);
        }
        let floats: ArrayRef = Arc::new(ListArray::from_iter_primitive::<Float64Type, _, _>(
            expected.iter().map(|row| Some(row.iter().map(|&share| Some(f64::from(share))).collect::<Vec<_>>())),
        ));
        prop_assert_eq!(columns::labels(&floats, Format::Parquet).expect("labels").len(), rows.len());
        for (open, between, close) in [("[", ", ", "]"), ("\"[", " ", "]\""), ("\"", "|", "\"")] {
            let cell = |row: &Vec<bool>| {
                let items: Vec<&str> = row.iter().map(|&bit| if bit { "1" } else { "0" }).collect();
                format!("{open}{}{close}", items.join(between))
            };
            let cells: Vec<String> = rows.iter().map(cell).collect();
            let cells: Vec<&str> = cells.iter().map(String::as_str).collect();
            prop_assert_eq!(multi_labels(names, &cells), Ok(expected.clone()), "{:?}", cells);
        }
    }

    #[test]
    fn label_lists_are_independent_of_spelling(
        rows in prop::collection::vec(prop::collection::btree_set(0_usize..4, 0..4), 1..9),
        backwards in any::<bool>(),
    ) {
        let names = ["joy", "Account access", "it's", "été"];
        let hot = |row: &std::collections::BTreeSet<usize>| -> Vec<f32> {
            (0..names.len()).map(|index| f32::from(u8::from(row.contains(&index)))).collect()
        };
        let expected: Vec<Vec<f32>> = rows.iter().map(hot).collect();
        let mut indices: Vec<Vec<usize>> = rows.iter().map(|row| row.iter().copied().collect()).collect();
        if backwards {
            indices.iter_mut().for_each(|row| row.reverse());
        }
        let written = |write: &dyn Fn(&[usize]) -> String| indices.iter().map(|row| write(row)).collect::<Vec<_>>();
        let names_at = |indices: &[usize]| indices.iter().map(|&index| names[index]).collect::<Vec<_>>();
        let text = |text: String| serde_json::json!(text).to_string();
        let joined = |by: &'static str| move |indices: &[usize]| serde_json::json!(indices.iter().map(|&p| names[p]).collect::<Vec<_>>().join(by)).to_string();
        let python = |indices: &[usize]| {
            let items: Vec<String> = names_at(indices).iter().map(|name| format!("{name:?}")).collect();
            text(format!("[{}]", items.join(", ")))
        };
        for cells in [
            written(&|indices| serde_json::json!(names_at(indices)).to_string()),
            written(&|indices| serde_json::json!(indices).to_string()),
            written(&|indices| text(serde_json::json!(names_at(indices)).to_string())),
            written(&python),
            written(&joined("|")),
            written(&joined("; ")),
            written(&joined(", ")),
        ] {
            let cells: Vec<&str> = cells.iter().map(String::as_str).collect();
            prop_assert_eq!(multi_labels(&names, &cells), Ok(expected.clone()), "{:?}", cells);
        }
    }
}
