//! Surveys of typical files.

use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, Int64Array, ListArray, RecordBatch, StringArray};
use arrow::datatypes::Int64Type;
use parquet::basic::Compression;
use sepal_data::{ColumnKind, Count, LabelKind, ReadError, Survey, SurveyOptions, survey};

use crate::support::{write_file, write_parquet};

fn survey_of(name: &str, content: &str) -> Survey {
    let folder = tempfile::tempdir().expect("a folder");
    let path = write_file(&folder, name, content);
    survey(&path, &SurveyOptions::default()).expect(name)
}

fn text(survey: &Survey) -> &str {
    &survey.text.as_ref().expect("a text").column
}

#[test]
fn survey_finds_named_classes() {
    let words = ["a", "good film", "the plot is thin but the cast is fine", "no"];
    let row = |i: usize| {
        let sentiment = if i.is_multiple_of(4) { "negative" } else { "positive" };
        format!("{i},https://x.example/{i},\"{} {i}\",{sentiment}\n", words[i % 4])
    };
    let mut content = "id,url,review,sentiment\n".to_owned() + &(0..100).map(row).collect::<String>();
    content.push_str("100,https://x.example/100,a 0,positive\n101,https://x.example/101,,negative\n");
    let survey = survey_of("x.csv", &content);
    assert_eq!((survey.rows, survey.is_complete, text(&survey)), (102, true, "review"));
    assert!(survey.text.as_ref().expect("a text").reason.contains("words in the mean"));
    let review = survey.column("review").expect("the column");
    assert_eq!((review.kind, review.empty, review.missing), (ColumnKind::Text, 1, 0));
    assert_eq!(review.first_empty, Some(102));
    assert_eq!((review.distinct, review.duplicates), (Count { n: 100, exact: true }, Count { n: 1, exact: true }));
    assert_eq!((review.words.p50, review.words.p90, review.words.max), (2, 10, 10));
    assert_eq!(review.examples.len(), 3);
    let label = survey.label.as_ref().expect("a label");
    assert_eq!((label.column.as_str(), label.kind, label.numbered), ("sentiment", LabelKind::Class, false));
    let counts: Vec<_> = label.classes.iter().map(|class| (class.value.as_str(), class.rows)).collect();
    assert_eq!(counts, [("negative", 26), ("positive", 76)]);
    let balance = label.balance.expect("classes");
    assert!((balance.largest - 76.0 / 102.0).abs() < 1e-9 && (balance.ratio - 76.0 / 26.0).abs() < 1e-9);
    assert_eq!(survey.column("id").expect("ids").kind, ColumnKind::Integer);
    assert!(survey.label_alternatives.iter().all(|choice| choice.column != "id" && choice.column != "url"));
}

#[test]
fn survey_finds_numbered_classes() {
    let content = (0..90).map(|i| format!("{{\"idx\": {i}, \"text\": \"some words {i}\", \"label\": {}}}\n", i % 3));
    let survey = survey_of("x.jsonl", &content.collect::<String>());
    let label = survey.label.as_ref().expect("a label");
    assert_eq!((text(&survey_of("y.csv", "a\nx y\n")), label.column.as_str(), label.numbered), ("a", "label", true));
    assert_eq!(label.classes.iter().map(|class| class.rows).collect::<Vec<_>>(), [30, 30, 30]);
    assert!(label.reason.contains("0 to 2"), "{}", label.reason);
    let other = &survey.label_alternatives[0];
    assert_eq!((other.column.as_str(), other.kind, other.range), ("label", LabelKind::Value, Some((0.0, 2.0))));
}

#[test]
fn survey_finds_pairs_and_scores() {
    let row = |i: usize| format!("{i}\tfirst text {i}\tsecond text {i}\t{}\n", (i * 7 % 50) as f64 / 10.0);
    let content = "index\tsentence1\tsentence2\tscore\n".to_owned() + &(0..60).map(row).collect::<String>();
    let survey = survey_of("x.tsv", &content);
    let pair = survey.pair.as_ref().expect("a pair");
    assert_eq!((text(&survey), pair.column.as_str()), ("sentence1", "sentence2"));
    let label = survey.label.as_ref().expect("a label");
    assert_eq!((label.column.as_str(), label.kind, label.range), ("score", LabelKind::Value, Some((0.0, 4.9))));
    assert!(label.classes.is_empty() && label.balance.is_none());
}

#[test]
fn survey_reads_lists_and_metadata_of_parquet() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("x.parquet");
    let lists = (0..40).map(|i| Some((0..i % 3).map(|item| Some(item as i64)).collect::<Vec<_>>()));
    let columns: [(&str, ArrayRef); 4] = [
        ("weight", Arc::new(Float64Array::from_iter_values((0..40).map(f64::from)))),
        ("body", Arc::new(StringArray::from_iter_values((0..40).map(|i| format!("a text of words {i}"))))),
        ("tags", Arc::new(ListArray::from_iter_primitive::<Int64Type, _, _>(lists))),
        ("label", Arc::new(Int64Array::from_iter_values((0..40).map(|i| i % 2)))),
    ];
    let batch = RecordBatch::try_from_iter(columns).expect("a batch");
    let metadata = r#"{"info": {"features": {"label": {"names": ["ham", "spam"], "_type": "ClassLabel"}}}}"#;
    let schema = batch.schema().as_ref().clone();
    let schema = Arc::new(schema.with_metadata([("huggingface".to_owned(), metadata.to_owned())]));
    write_parquet(&path, &batch.with_schema(schema).expect("a schema"), Compression::UNCOMPRESSED);

    let survey = sepal_data::survey(&path, &SurveyOptions::default()).expect("a survey");
    assert_eq!(text(&survey), "body");
    let label = survey.label.as_ref().expect("a label");
    assert_eq!((label.column.as_str(), label.classes[1].name.as_deref()), ("label", Some("spam")));
    let tags = survey.label_alternatives.iter().find(|choice| choice.column == "tags").expect("tags");
    assert_eq!(tags.kind, LabelKind::Multi);
    let counts: Vec<_> = tags.classes.iter().map(|class| (class.value.as_str(), class.rows)).collect();
    assert_eq!(counts, [("0", 26), ("1", 13)]);

    let some = SurveyOptions { max_rows: Some(10), ..SurveyOptions::default() };
    let part = sepal_data::survey(&path, &some).expect("a survey");
    assert_eq!((part.rows, part.is_complete), (10, false));
    let all = SurveyOptions { max_rows: Some(40), ..SurveyOptions::default() };
    assert!(sepal_data::survey(&path, &all).expect("a survey").is_complete);
}

/// Survey of a csv file of texts with these labels, each repeated `times` times.
fn labelled(labels: &[&str], times: usize) -> Survey {
    let rows = (0..times * labels.len()).map(|i| format!("some words of row {i},\"{}\"\n", labels[i % labels.len()]));
    survey_of("x.csv", &("text,topic\n".to_owned() + &rows.collect::<String>()))
}

fn counts(survey: &Survey) -> Vec<(&str, usize)> {
    let label = survey.label.as_ref().expect("a label");
    label.classes.iter().map(|class| (class.value.as_str(), class.rows)).collect()
}

#[test]
fn survey_finds_tags_as_several_labels() {
    for cells in [
        ["Refund; Account access", "Refund", "Account access;Refund", "Billing", "Refund; Billing"],
        ["Refund|Account access", "Refund", "Account access|Refund", "Billing", "Refund | Billing"],
        ["Refund, Account access", "Refund", "Account access,Refund", "Billing", "Refund,Billing"],
        [
            "['Refund', 'Account access']",
            "['Refund']",
            "['Account access', 'Refund']",
            "['Billing']",
            "['Refund', 'Billing']",
        ],
        ["[Refund, Account access]", "[Refund]", "[Account access, Refund]", "[Billing]", "[Refund, Billing]"],
    ] {
        let survey = labelled(&cells, 8);
        let label = survey.label.as_ref().expect("a label");
        assert_eq!((label.kind, text(&survey)), (LabelKind::Multi, "text"), "{cells:?}");
        assert_eq!(counts(&survey), [("Account access", 16), ("Billing", 16), ("Refund", 32)], "{cells:?}");
        let other = &survey.label_alternatives[0];
        assert_eq!((other.column.as_str(), other.kind, other.classes.len()), ("topic", LabelKind::Class, 5));
    }
    let survey = labelled(&["joy|fear", "anger"], 8);
    assert_eq!(counts(&survey), [("anger", 8), ("fear", 8), ("joy", 8)], "`|` separates labels");
    let reason = |survey: &Survey| survey.label.as_ref().expect("a label").reason.clone();
    assert!(reason(&survey).contains("3 different labels; 8 rows have several"), "{}", reason(&survey));
    let cells = [&["joy|fear"][..], &["anger"; 15]].concat();
    let survey = labelled(&cells, 1);
    assert!(reason(&survey).contains("3 different labels; 1 row has several"), "{}", reason(&survey));
    let survey = labelled(&["Refund; Access", "Refund; Access; Login"], 8);
    assert_eq!(counts(&survey), [("Access", 16), ("Login", 8), ("Refund", 16)], "every cell has several labels");
    let survey = labelled(&["Refund", "Refund, Login", "Login, Access"], 8);
    assert_eq!(counts(&survey), [("Access", 8), ("Login", 16), ("Refund", 16)], "as many labels as cells");
}

#[test]
fn survey_takes_names_with_separators_for_classes() {
    for cells in [["Food, drink", "Arts, culture", "Cars"], ["A; 1", "A; 2", "B; 3"]] {
        let survey = labelled(&cells, 8);
        assert_eq!(survey.label.as_ref().map(|label| label.kind), Some(LabelKind::Class), "{cells:?}");
        assert_eq!(counts(&survey).len(), 3);
    }
}

#[test]
fn survey_counts_nan_as_missing() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("x.parquet");
    let number = |i: usize| if i == 5 { f64::NAN } else { (i % 2) as f64 };
    let columns: [(&str, ArrayRef); 2] = [
        ("text", Arc::new(StringArray::from_iter_values((0..40).map(|i| format!("a text of words {i}"))))),
        ("label", Arc::new(Float64Array::from_iter_values((0..40).map(number)))),
    ];
    let batch = RecordBatch::try_from_iter(columns).expect("a batch");
    write_parquet(&path, &batch, Compression::UNCOMPRESSED);
    let parquet_survey = survey(&path, &SurveyOptions::default()).expect("a survey");
    let row = |i: usize| format!("a text {i},{}\n", if i == 5 { "nan".to_owned() } else { format!("{}.0", i % 2) });
    let csv_survey = survey_of("x.csv", &("text,label\n".to_owned() + &(0..40).map(row).collect::<String>()));
    for survey in [parquet_survey, csv_survey] {
        let label = survey.label.as_ref().expect("a label");
        assert_eq!((label.kind, label.numbered), (LabelKind::Class, true));
        assert_eq!((label.missing, label.first_missing), (1, Some(6)));
        assert_eq!(counts(&survey), [("0", 20), ("1", 19)]);
    }
    let survey = labelled(&["joy", "nan", "fear", "<NA>"], 8);
    assert_eq!(counts(&survey), [("fear", 8), ("joy", 8)]);
    assert_eq!(survey.column("topic").expect("a column").kind, ColumnKind::Text);
}

#[test]
fn survey_counts_spellings_as_one_class() {
    let survey = labelled(&["\u{e9}t\u{e9}", "e\u{301}te\u{301}", " hiver", "hiver "], 8);
    assert_eq!(counts(&survey), [("hiver", 16), ("\u{e9}t\u{e9}", 16)]);
    let survey = labelled(&["True", "FALSE", "true", "False"], 8);
    assert_eq!(counts(&survey), [("FALSE", 16), ("True", 16)]);
}

#[test]
fn survey_distinguishes_multi_hot_vectors_from_lists() {
    let lists = |cells: &[&str]| {
        let row = |i: usize| format!("{{\"text\": \"some words {i}\", \"label\": {}}}\n", cells[i % cells.len()]);
        survey_of("x.jsonl", &(0..24).map(row).collect::<String>())
    };
    let check = |cells: &[&str], numbered: bool, expected: &[(&str, usize)]| {
        let survey = lists(cells);
        let label = survey.label.as_ref().expect("a label");
        assert_eq!((label.kind, label.numbered), (LabelKind::Multi, numbered), "{cells:?}");
        assert_eq!(counts(&survey), expected, "{cells:?}");
    };
    check(&["[1, 0]", "[0, 1]"], true, &[("0", 12), ("1", 12)]);
    check(&["[1, 0, 1]", "[0, 0, 1]"], true, &[("0", 12), ("1", 0), ("2", 24)]);
    check(&["[0.5, 0.0]", "[1.0, 1.0]"], true, &[("0", 24), ("1", 12)]);
    check(&["[true, false]", "[false, false]"], true, &[("0", 12), ("1", 0)]);
    check(&["[0, 1]", "[0]", "[2]"], true, &[("0", 16), ("1", 8), ("2", 8)]);
    check(&["[0, 1]", "[]", "[1]"], true, &[("0", 8), ("1", 16)]);
    check(&["[\"a\", \"b\"]", "[\"a\"]"], false, &[("a", 24), ("b", 12)]);
}

#[test]
fn survey_leaves_unclear_columns() {
    let survey = survey_of("x.csv", "id,n\n1,2\n2,3\n3,5\n");
    assert_eq!((survey.text, survey.label), (None, None));
    let survey = survey_of("x.csv", "text,label\nsome words,x\nmore words,x\n");
    assert_eq!(survey.label, None, "one value is no label");
    let survey =
        survey_of("x.jsonl", "{\"text\": \"a b\", \"meta\": {\"x\": 1}}\n{\"text\": null}\n{\"text\": \" \"}\n");
    assert_eq!(survey.column("meta").expect("a column").kind, ColumnKind::Other);
    let text = survey.column("text").expect("a column");
    assert_eq!((text.missing, text.empty), (1, 1));
}

#[test]
fn survey_of_empty_or_damaged_file_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, content, expected) in [
        ("a.csv", "text,label\n", "it has the names of columns and no row"),
        ("b.jsonl", "", "it is empty"),
        ("c.csv", "", "it is empty"),
    ] {
        let path = write_file(&folder, name, content);
        let error = survey(&path, &SurveyOptions::default()).expect_err("no rows");
        assert!(error.to_string().ends_with(expected), "{error}");
    }
    let path = write_file(&folder, "x.parquet", "PAR1 and no more");
    let error = survey(&path, &SurveyOptions::default()).expect_err("damaged");
    assert!(matches!(error, ReadError::Corrupt { .. }), "{error}");
}

#[test]
fn survey_of_columns_without_end_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let commas = ",".repeat(20_000);
    let keys: String = (0..20_000).map(|key| format!("{{\"k{key}\": 1}}\n")).collect();
    for (name, content) in [("a.csv", format!("text{commas}\nx{commas}\n")), ("b.jsonl", keys)] {
        let path = write_file(&folder, name, content);
        let error = survey(&path, &SurveyOptions::default()).expect_err("too many columns");
        assert!(sepal_core::in_one_line(&error).contains("more than 16384 columns"), "{error}");
    }
}

#[test]
fn survey_names_the_first_of_many_columns() {
    let names: Vec<String> = (0..60).map(|column| format!("c{column}")).collect();
    let row = vec!["1"; 60].join(",");
    let survey = survey_of("x.csv", &format!("{}\n{row}\n", names.join(",")));
    assert!(survey.columns_text().ends_with("c49, and 10 more"), "{}", survey.columns_text());
}
