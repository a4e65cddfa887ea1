//! JSON files of one object: a table by columns, or one that has the list of rows among its members.

use std::collections::HashMap;

use crate::json::{self, Member};

/// Rows of a document, each an object in one line. Error with a line of the document, from 1.
///
/// An object of lists of the same length is a table by columns, and so is an object of objects with the same keys, as pandas
/// writes tables by default. If [`are_rows`] tells that the objects are rows instead, they are read in the order of the file,
/// as pandas writes them with `orient="index"`. `columns` beside `data` are the names and rows of a table. An object with one list of objects
/// holds the rows there. Any other object is one row.
pub(super) fn rows(document: String) -> Result<Vec<String>, (usize, String)> {
    let on_first_line = |problem: String| (1_usize, problem);
    json::members(&document).map_err(|error| (error.line(), json::problem(&error)))?;
    let mut bytes = document.into_bytes();
    json::replace_line_ends(&mut bytes);
    let document = String::from_utf8(bytes).map_err(|error| on_first_line(error.to_string()))?;
    let members = json::members(&document).map_err(|error| on_first_line(json::problem(&error)))?;
    let all_begin = |with: char| !members.is_empty() && members.iter().all(|member| member.value.starts_with(with));
    if let Some((names, rows)) = split(&members) {
        return by_position(&names, &rows).map_err(on_first_line);
    }
    let lists: Vec<Vec<&str>> = members.iter().filter_map(|member| objects(member.value)).collect();
    if let [rows] = lists.as_slice()
        && (members.len() == 1 || !all_begin('['))
    {
        return Ok(rows.iter().map(|row| (*row).to_owned()).collect());
    }
    if all_begin('[') {
        return columns(&members, |value| Ok(json::items(value)?.into_iter().map(|item| ("", item)).collect()))
            .map_err(on_first_line);
    }
    if all_begin('{') {
        let objects = members.iter().map(|member| json::members(member.value)).collect::<Result<Vec<_>, _>>();
        let objects = objects.map_err(|error| on_first_line(json::problem(&error)))?;
        if are_rows(&members, &objects) {
            return Ok(members.iter().map(|member| member.value.to_owned()).collect());
        }
        return columns(&members, |value| {
            Ok(json::members(value)?.into_iter().map(|member| (member.key, member.value)).collect())
        })
        .map_err(on_first_line);
    }
    Ok(vec![document])
}

/// Returns true if the objects in an object are rows, and not columns whose cells have the key of their row.
///
/// Both have the same form. The keys are those of rows if they are whole numbers, as pandas numbers rows, and some keys in the
/// objects are not. If neither are numbers, several objects are rows if values of different kinds meet in one of them, as a
/// text and a number, and none in the cells of one name. In all other cases they are columns.
fn are_rows(members: &[Member<'_>], objects: &[Vec<Member<'_>>]) -> bool {
    let is_number = |member: &Member<'_>| {
        let name: &str = &member.name();
        let digits = name.strip_prefix('-').unwrap_or(name);
        !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
    };
    let has_names = objects.iter().flatten().any(|member| !is_number(member));
    if members.iter().all(is_number) {
        return has_names;
    }
    let [first, others @ ..] = objects else { return false };
    let has_keys = |keys: &[Member<'_>], object: &[Member<'_>]| {
        object.len() == keys.len() && object.iter().zip(keys).all(|(member, key)| member.key == key.key)
    };
    let is_table = has_names && !others.is_empty() && others.iter().all(|object| has_keys(first, object));
    is_table
        && !objects.iter().all(|object| has_one_kind(object.iter().copied()))
        && (0..first.len()).all(|cell| has_one_kind(objects.iter().map(|object| object[cell])))
}

/// Returns true if all values are of one kind of JSON, apart from missing ones.
fn has_one_kind<'a>(members: impl Iterator<Item = Member<'a>>) -> bool {
    let kind = |value: &str| match value.as_bytes().first() {
        Some(b'"') => 0,
        Some(b'{') => 1,
        Some(b'[') => 2,
        Some(b't' | b'f') => 3,
        _ => 4,
    };
    let mut kinds = members.filter_map(Member::cell).map(kind);
    let first = kinds.next();
    kinds.all(|kind| Some(kind) == first)
}

/// Objects of a list that has nothing else.
fn objects(value: &str) -> Option<Vec<&str>> {
    let items = Some(value).filter(|value| value.starts_with('[')).and_then(|value| json::items(value).ok())?;
    (!items.is_empty() && items.iter().all(|item| item.starts_with('{'))).then_some(items)
}

/// Names and rows of a table whose rows are lists.
fn split<'a>(members: &[Member<'a>]) -> Option<(Vec<&'a str>, Vec<&'a str>)> {
    let list = |name: &str| {
        let member = members.iter().find(|member| member.name() == name)?;
        json::items(Some(member.value).filter(|value| value.starts_with('['))?).ok()
    };
    let (names, rows) = (list("columns")?, list("data")?);
    let is_table = names.iter().all(|name| name.starts_with('"')) && rows.iter().all(|row| row.starts_with('['));
    (is_table && !names.is_empty()).then_some((names, rows))
}

fn by_position(names: &[&str], rows: &[&str]) -> Result<Vec<String>, String> {
    let row = |(row, list): (usize, &&str)| {
        let cells = json::items(list).map_err(|error| json::problem(&error))?;
        match cells.len() == names.len() {
            true => Ok(object(names.iter().copied().zip(cells))),
            false => Err(format!("row {} has {} cells for {} columns", row + 1, cells.len(), names.len())),
        }
    };
    rows.iter().enumerate().map(row).collect()
}

/// Rows of a table by columns, whose cells have the key of their row.
fn columns<'a>(
    members: &[Member<'a>],
    cells: impl Fn(&'a str) -> Result<Vec<(&'a str, &'a str)>, serde_json::Error>,
) -> Result<Vec<String>, String> {
    let read = |member: &Member<'a>| cells(member.value).map_err(|error| json::problem(&error));
    let columns = members.iter().map(read).collect::<Result<Vec<_>, String>>()?;
    let Some(first) = columns.first() else { return Ok(Vec::new()) };
    let mut ordered = Vec::with_capacity(columns.len());
    for (member, column) in members.iter().zip(&columns) {
        let refused = || {
            let (name, first) = (member.name(), members[0].name());
            format!("the columns `{first}` and `{name}` have other rows; expected the same rows in each column")
        };
        if column.len() != first.len() {
            return Err(refused());
        }
        if column.iter().zip(first).all(|((key, _), (of_first, _))| key == of_first) {
            ordered.push(column.iter().map(|(_, cell)| *cell).collect::<Vec<&str>>());
            continue;
        }
        let by_key: HashMap<&str, &str> = column.iter().copied().collect();
        let cells = first.iter().map(|(key, _)| by_key.get(key).copied());
        ordered.push(cells.collect::<Option<Vec<&str>>>().ok_or_else(refused)?);
    }
    let row = |row: usize| object(members.iter().map(|member| member.key).zip(ordered.iter().map(|cells| cells[row])));
    Ok((0..first.len()).map(row).collect())
}

/// Object of keys and values in JSON.
fn object<'a>(members: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let members: Vec<String> = members.map(|(key, value)| format!("{key}:{value}")).collect();
    format!("{{{}}}", members.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(document: &str, expected: &[&str]) {
        let expected: Vec<String> = expected.iter().map(|&row| row.to_owned()).collect();
        assert_eq!(rows(document.to_owned()), Ok(expected), "{document}");
    }

    #[test]
    fn tables_by_columns_are_transposed() {
        let expected = [r#"{"text":"a","n":1}"#, r#"{"text":"b","n":NaN}"#];
        check(r#"{"text": ["a", "b"], "n": [1, NaN]}"#, &expected);
        check("{\"text\": {\"0\": \"a\",\n\"1\": \"b\"}, \"n\": {\"0\": 1, \"1\": NaN}}", &expected);
        check(r#"{"text": {"0": "a", "1": "b"}, "n": {"1": NaN, "0": 1}}"#, &expected);
        check(r#"{"columns": ["text", "n"], "index": [0, 1], "data": [["a", 1], ["b", NaN]]}"#, &expected);
        check(r#"{"text": [], "n": []}"#, &[]);
    }

    #[test]
    fn objects_with_keys_of_rows_are_rows() {
        let rows = [r#"{"text":"a","label":"x"}"#, r#"{"text":"b","label":"y"}"#];
        check(r#"{"0": {"text":"a","label":"x"}, "1": {"text":"b","label":"y"}}"#, &rows);
        check("{\"7\":\n{\"text\":\"a\",\"label\":\"x\"},\n\"-3\":{\"text\":\"b\",\"label\":\"y\"}}", &rows);
        check(r#"{"0": {"text": "a"}, "1": {"text": "b", "n": 1}}"#, &[r#"{"text": "a"}"#, r#"{"text": "b", "n": 1}"#]);
        check(r#"{"5": {"text": "a", "n": 1}}"#, &[r#"{"text": "a", "n": 1}"#]);
        let named = [r#"{"text":"a","n":1}"#, r#"{"text":"b","n":null}"#];
        check(r#"{"row a": {"text":"a","n":1}, "row b": {"text":"b","n":null}}"#, &named);
    }

    #[test]
    fn objects_are_columns_if_both_readings_are_possible() {
        // Names of rows in the place of their numbers, with texts alone.
        let by_name = [r#"{"text":"a","label":"x"}"#, r#"{"text":"b","label":"y"}"#];
        check(r#"{"text": {"row a": "a", "row b": "b"}, "label": {"row a": "x", "row b": "y"}}"#, &by_name);
        // Numbers of columns and of rows.
        check(r#"{"0": {"0": "a", "1": "b"}, "1": {"0": 1, "1": 2}}"#, &[r#"{"0":"a","1":1}"#, r#"{"0":"b","1":2}"#]);
        let kinds = [r#"{"text":"a","n":1}"#, r#"{"text":"b","n":2}"#];
        check(r#"{"text": {"row a": "a", "row b": "b"}, "n": {"row a": 1, "row b": 2}}"#, &kinds);
        // Kinds that differ in either reading.
        check(r#"{"p": {"q": 1, "r": "a"}, "s": {"q": "b", "r": 2}}"#, &[r#"{"p":1,"s":"b"}"#, r#"{"p":"a","s":2}"#]);
    }

    #[test]
    fn rows_are_found_in_the_only_list_of_objects() {
        check(r#"{"data": [{"a": 1}]}"#, &[r#"{"a": 1}"#]);
        check(r#"{"version": "1", "data": [{"a": 1}, {"a": [2]}]}"#, &[r#"{"a": 1}"#, r#"{"a": [2]}"#]);
        check("{\"schema\": {\"fields\": [{}]},\n\"data\": [{\"a\": 1}]}", &[r#"{"a": 1}"#]);
        check("{\"text\": \"a\",\n \"label\": 1}", &["{\"text\": \"a\",  \"label\": 1}"]);
        check("{}", &["{}"]);
    }

    #[test]
    fn uneven_tables_are_refused() {
        for document in [
            r#"{"text": ["a", "b"], "n": [1]}"#,
            r#"{"text": {"0": "a", "1": "b"}, "n": {"0": 1, "2": 2}}"#,
            r#"{"columns": ["text", "n"], "data": [["a"]]}"#,
        ] {
            assert!(rows(document.to_owned()).is_err(), "{document}");
        }
        let (line, problem) = rows("{\"text\": \"a\",\n \"n\": }".to_owned()).expect_err("no JSON");
        assert_eq!((line, problem.as_str()), (2, "expected value at column 7"));
    }
}
