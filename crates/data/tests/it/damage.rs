//! Truncated and ambiguous text files, and their valid neighbours.

use std::io::Cursor;

use proptest::prelude::*;
use sepal_core::in_one_line;
use sepal_data::{Dialect, Format, ReadError, Remedy, RowSpec, RowStream, Rows, Table, TableSpec};

use crate::support::write_file;

fn read(content: &[u8], format: Format, dialect: Dialect) -> Result<Vec<String>, ReadError> {
    let spec = RowSpec { text: Some("text".to_owned()), dialect, ..RowSpec::default() };
    let stream = RowStream::from_reader(Cursor::new(content.to_vec()), "input", format, &spec)?;
    let chunks: Vec<Rows> = stream.collect::<Result<_, _>>()?;
    Ok(chunks.into_iter().flat_map(|rows| rows.texts).collect())
}

fn texts(content: &str, format: Format) -> Vec<String> {
    read(content.as_bytes(), format, Dialect::default())
        .unwrap_or_else(|error| panic!("{content:?}: {}", in_one_line(&error)))
}

fn refused(content: &[u8], format: Format) -> String {
    in_one_line(&read(content, format, Dialect::default()).expect_err("damaged"))
}

fn dialect(delimiter: Option<&str>, encoding: Option<&str>) -> Dialect {
    Dialect {
        delimiter: delimiter.map(|text| text.parse().expect("a delimiter")),
        encoding: encoding.map(|text| text.parse().expect("an encoding")),
    }
}

#[test]
fn csv_unclosed_quote_is_refused_with_its_line() {
    for (content, line) in [
        ("text,n\nfine,1\n\"never closed,2\nfine,3\n", 3),
        ("text,n\n\"two\nlines\",1\r\nfine,2\n\"a\nb\",\"open\n", 6),
        ("text,n\rfine,1\r\"open,2\r", 3),
        ("text,n\nfine,\"", 2),
        ("\"text,n\nfine,1\n", 1),
    ] {
        let error = refused(content.as_bytes(), Format::Csv);
        let expected = format!("line {line}: the quotation mark that opens a cell there is not closed");
        assert!(error.contains(&expected), "{content:?}: {error}");
    }
}

#[test]
fn csv_quote_that_joins_rows_is_refused_with_its_line() {
    let error = refused(b"text,n\nfine,1\n\"unbalanced,2\nfine,3\n\"a word\" more,4\n", Format::Csv);
    assert!(error.contains("line 3: the quotation mark that opens a cell there is closed on a later line"), "{error}");
}

#[test]
fn csv_quotes_are_read_as_in_python() {
    let content =
        "text,n\n\"a\"b,1\na \"b\" c,2\n \"a\",3\n\"a \"\"b\"\"\",4\n\"two\r\nlines\",5\n\"\r\n\n\",6\n5\" tape,7\n";
    let expected = ["ab", "a \"b\" c", " \"a\"", "a \"b\"", "two\r\nlines", "\r\n\n", "5\" tape"];
    let found = texts(content, Format::Csv);
    assert_eq!(found, expected);
}

#[test]
fn csv_accepts_all_line_ends() {
    for end in ["\n", "\r\n", "\r"] {
        let content = ["text,n", "a,1", "", "b,2", "\"c", "d\",3", "e,4"].join(end);
        let expected = ["a".to_owned(), "b".to_owned(), format!("c{end}d"), "e".to_owned()];
        assert_eq!(texts(&content, Format::Csv), expected, "{end:?}");
        assert_eq!(texts(&format!("{content}{end}{end}"), Format::Csv), expected, "{end:?}");
        let error = refused(format!("{content}{end}f{end}").as_bytes(), Format::Csv);
        assert!(error.contains("line 8: it has 1 cells, expected 2"), "{end:?}: {error}");
    }
}

#[test]
fn csv_rows_of_other_lengths_are_refused_with_their_line() {
    for (content, expected) in [
        ("text,n\n\"a\n\nb\",1\nc,2,3\n", "line 5: it has 3 cells, expected 2"),
        ("text,n\n\n\na,1\nb\n", "line 5: it has 1 cells"),
        ("text,n\na,1\nb", "line 3: it has 1 cells"),
        ("text\n\"a\",b\n", "line 2: it has 2 cells, expected 1"),
    ] {
        let error = refused(content.as_bytes(), Format::Csv);
        assert!(error.contains(expected), "{content:?}: {error}");
    }
}

#[test]
fn tsv_quotes_and_nul_bytes_are_ordinary_characters() {
    let content = "text\tn\na\0b\t1\n\0\t2\n\"open\t3\nc\0\td\0\n";
    assert_eq!(texts(content, Format::Tsv), ["a\0b", "\0", "\"open", "c\0"]);
    let quoted = "text\tn\na\t0\n\"two\nlines\"\t1\n\"a \"\"b\"\"\"\t2\n";
    assert_eq!(texts(quoted, Format::Tsv), ["a", "two\nlines", "a \"b\""], "the first block of a stream decides");
    assert!(refused(b"text\tn\na\tb\tc\n", Format::Tsv).contains("line 2: it has 3 cells"));
}

#[test]
fn ambiguous_text_column_is_refused() {
    for content in ["text,text\na,b\n", "text,n,text\na,1,b\n"] {
        let error = read(content.as_bytes(), Format::Csv, Dialect::default()).expect_err("which?");
        assert!(matches!(error, ReadError::AmbiguousColumn { .. }), "{error}");
    }
    let spec = RowSpec::default();
    let found = RowStream::from_reader(Cursor::new("text,text\na,b\n"), "input", Format::Csv, &spec);
    assert!(matches!(found, Err(ReadError::AmbiguousColumn { .. })));
    assert_eq!(texts("n,text,n\n1,a,2\n", Format::Csv), ["a"], "other columns may be ambiguous");
}

#[test]
fn csv_delimiter_is_detected_by_header_and_first_row() {
    for (content, expected) in [
        ("text;n\na, b;1\n\"c;d\";2\n", &["a, b", "c;d"][..]),
        ("n;text\r\n1;\"a\r\nb\"\r\n", &["a\r\nb"]),
        ("text\tn\n\"a\tb\"\t1\n", &["a\tb"]),
        ("text|n\na|1\n", &["a"]),
        ("text;n\n", &[]),
    ] {
        assert_eq!(texts(content, Format::Csv), expected, "{content:?}");
    }
    // one column, whose name has a semicolon
    let error = read(b"a text; or none\nit is; or not; or\n", Format::Csv, Dialect::default()).expect_err("no column");
    assert!(error.to_string().contains("separated by semicolons"), "{error}");
    assert_eq!(error.remedy(), Some(Remedy::Delimiter(';')));
}

#[test]
fn given_delimiter_is_used() {
    let check = |content: &str, format, delimiter: &str, expected: &[&str]| {
        let found = read(content.as_bytes(), format, dialect(Some(delimiter), None)).expect(content);
        assert_eq!(found, expected, "{content:?}");
    };
    check("text^n\na,b^1\n", Format::Csv, "^", &["a,b"]);
    check("text\tn\n\"a\tb\"\t1\n", Format::Csv, "tab", &["a\tb"]);
    check("text;n\n\"a;1\n", Format::Tsv, ";", &["\"a"]);
}

#[test]
fn unused_dialect_options_are_refused() {
    for (format, given) in [
        (Format::Jsonl, dialect(Some(";"), None)),
        (Format::Lines, dialect(Some(";"), None)),
        (Format::Parquet, dialect(None, Some("latin-1"))),
        (Format::Arrow, dialect(Some("tab"), None)),
    ] {
        let error = read(b"", format, given).expect_err("unused");
        assert!(matches!(error, ReadError::UnusedOption { .. }), "{format}: {error}");
    }
}

#[test]
fn encoding_is_detected_given_or_refused() {
    let content = |format| match format {
        Format::Jsonl => "{\"text\": \"été\", \"n\": 1}\n{\"text\": \"ça\"}\n",
        Format::Tsv => "text\tn\nété\t1\nça\t2\n",
        _ => "text,n\nété,1\nça,2\n",
    };
    for format in [Format::Csv, Format::Tsv, Format::Jsonl] {
        let text = content(format);
        let latin: Vec<u8> = text.chars().map(|letter| u8::try_from(u32::from(letter)).expect("latin-1")).collect();
        let wide: Vec<u8> = format!("\u{feff}{text}").encode_utf16().flat_map(u16::to_le_bytes).collect();
        let plain: Vec<u8> = text.encode_utf16().flat_map(u16::to_be_bytes).collect();
        let latin_1 = dialect(None, Some("latin-1"));
        for (bytes, given) in
            [(latin.clone(), latin_1), (wide.clone(), Dialect::default()), (wide, latin_1), (plain, Dialect::default())]
        {
            assert_eq!(read(&bytes, format, given).expect("text"), ["été", "ça"], "{format}");
        }
        let error = read(&latin, format, Dialect::default()).expect_err("not UTF-8");
        assert_eq!(error.remedy(), Some(Remedy::Encoding));
        let error = in_one_line(&error);
        let line = if format == Format::Jsonl { 1 } else { 2 };
        let expected = format!("line {line}: the byte 0xe9 is not valid UTF-8; the file may be in windows-1252");
        assert!(error.contains(&expected), "{format}: {error}");
    }
}

#[test]
fn unused_columns_may_have_any_encoding() {
    assert_eq!(read(b"text,n\na,\xe9\n", Format::Csv, Dialect::default()).expect("rows"), ["a"]);
}

#[test]
fn compressed_files_are_named() {
    for (bytes, expected) in
        [(&b"\x1f\x8b\x08\0\0\0\0\0"[..], "gzip"), (b"\x28\xb5\x2f\xfd\0\0\0\0", "zstd"), (b"PK\x03\x04\0\0", "zip")]
    {
        for format in [Format::Csv, Format::Jsonl, Format::Lines] {
            assert!(refused(bytes, format).contains(expected), "{format}");
        }
    }
}

#[test]
fn lines_end_with_either_character() {
    assert_eq!(texts("a\rb\r\nc\n", Format::Lines), ["a", "b", "c"]);
    assert_eq!(texts("{\"text\": \"a\"}\r{\"text\": \"b\"}\r", Format::Jsonl), ["a", "b"]);
}

#[test]
fn jsonl_damage_is_reported_with_its_line() {
    let check = |bad: &str, expected: &str| {
        for before in [0, 4, 99, 100, 4999] {
            let rows: String = (0..before).map(|i| format!("{{\"text\": \"row {i}\"}}\n\n")).collect();
            let content = format!("{rows}{bad}\n{{\"text\": \"x\"}}\n");
            let folder = tempfile::tempdir().expect("a folder");
            let path = write_file(&folder, "x.jsonl", content);
            let error = Table::read(&TableSpec::new(&path, "text")).expect_err("damaged");
            let found = in_one_line(&error);
            let expected =
                format!("{}: line {}: {expected}", path.display(), 2 * before + 1).replace(": line", " as jsonl: line");
            assert_eq!(found, format!("read {expected}"), "{bad}");
        }
    };
    check("{\"text\": \"cut", "EOF while parsing a string at column 13");
    check("{\"text\": \"x\"} {", "trailing characters at column 15");
    check("[{\"text\": \"x\"}]", "invalid type: sequence, expected one object to a line");
    check("{\"text\": \"x\", \"n\": nan}", "expected ident at column 21");
}

#[test]
fn jsonl_constants_of_python_are_read() {
    let content = "{\"text\": \"a\", \"n\": NaN}\n{\"text\": \"b \\ud83c\", \"n\": [Infinity, -Infinity]}\n\
                   {\"text\": \"c\", \"n\": \"\\udfac\"}\n{\"text\": \"d\", \"n\": 123456789012345678901234567890}\n{\"text\": \"e\", \"text\": \"f\"}\n";
    assert_eq!(texts(content, Format::Jsonl), ["a", "b \u{fffd}", "c", "d", "f"]);
}

#[test]
fn late_key_of_a_file_is_a_column() {
    let folder = tempfile::tempdir().expect("a folder");
    let rows: String = (0..500).map(|i| format!("{{\"n\": {i}}}\n")).collect();
    let path = write_file(&folder, "x.jsonl", format!("{rows}{{\"text\": \"late\", \"split\": \"a\"}}\n"));
    let table = Table::read(&TableSpec::new(&path, "text").with_filter("split", "a")).expect("a table");
    assert_eq!((table.texts(), table.location(0).row), (&["late".to_owned()][..], 501));
    let error = Table::read(&TableSpec::new(&path, "txet")).expect_err("no such key");
    assert!(matches!(error, ReadError::MissingColumn { nearest: Some(nearest), .. } if nearest == "text"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Compares with the csv crate, unless a quotation mark joins rows.
    #[test]
    fn csv_is_read_as_by_the_csv_crate(
        content in "([ab\",;]|\\n|\\r|\\r\\n){0,40}",
        ends in any::<bool>(),
    ) {
        let content = format!("text,n\n{content}{}", if ends { "\n" } else { "" });
        let mut reader = csv::ReaderBuilder::new().flexible(true).from_reader(content.as_bytes());
        let expected: Vec<Vec<String>> =
            reader.records().map(|record| record.expect("utf-8").iter().map(str::to_owned).collect()).collect();
        match read(content.as_bytes(), Format::Csv, Dialect::default()) {
            Ok(found) => {
                let texts = expected.iter().map(|record| record[0].clone()).filter(|text| !text.is_empty());
                prop_assert_eq!(found, texts.collect::<Vec<_>>());
                prop_assert!(expected.iter().all(|record| record.len() == 2));
            }
            Err(error) => {
                let text = in_one_line(&error);
                let is_ragged = expected.iter().any(|record| record.len() != 2);
                prop_assert!(is_ragged || text.contains("the quotation mark that opens"), "{}", text);
                let line = text.split("line ").nth(1).and_then(|after| after.split(':').next()).expect("a line");
                let lines = content.replace("\r\n", "\n").replace('\r', "\n").lines().count();
                prop_assert!((1..=lines).contains(&line.parse::<usize>().expect("a number")), "{}", text);
            }
        }
    }
}
