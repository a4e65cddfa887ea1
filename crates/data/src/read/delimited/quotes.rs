use super::Cells;

/// Quotation marks that make one row of several.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flaw {
    /// The one at this place opens a cell that never ends.
    Open { at: usize },
    /// The one at this place opens a cell over several lines, and behind that which closes it the text goes on.
    Reopened { at: usize },
}

/// The first flaw of a record as it stands in the file.
pub(super) fn flaw(record: &[u8], cells: Cells) -> Option<Flaw> {
    let delimiter = cells.delimiter.byte();
    let is_end = |byte: &u8| *byte == delimiter || matches!(byte, b'\n' | b'\r');
    let mut at = 0;
    while cells.quoted && at < record.len() {
        let mut end = at;
        if record[at] == b'"' {
            let Some(closed) = closing(record, at + 1) else { return Some(Flaw::Open { at }) };
            let has_lines = record[at..closed].iter().any(|byte| matches!(byte, b'\n' | b'\r'));
            if has_lines && record.get(closed + 1).is_some_and(|next| !is_end(next)) {
                return Some(Flaw::Reopened { at });
            }
            end = closed + 1;
        }
        at = record[end..].iter().position(is_end).map_or(record.len(), |next| end + next + 1);
    }
    None
}

/// The place of the mark that closes a cell whose text begins at `from`; two of them are one of the text.
fn closing(record: &[u8], from: usize) -> Option<usize> {
    let mut at = from;
    loop {
        at += record.get(at..)?.iter().position(|byte| *byte == b'"')?;
        if record.get(at + 1) != Some(&b'"') {
            return Some(at);
        }
        at += 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dialect::Delimiter;

    #[test]
    fn cells_that_swallow_rows_are_found() {
        let check = |record: &str, expected| {
            let cells = Cells { delimiter: Delimiter::COMMA, quoted: true };
            assert_eq!(flaw(record.as_bytes(), cells), expected, "{record:?}");
        };
        check("a,b\n", None);
        check("\"a\nb\",\"c \"\"d\"\"\"\n", None);
        check("\"a\"b,c\n", None);
        check("a \"b\n", None);
        check("x,\"a\nb", Some(Flaw::Open { at: 2 }));
        check("x,\"a\"\"\n", Some(Flaw::Open { at: 2 }));
        check("\"a,1\n\"b\",2\n", Some(Flaw::Reopened { at: 0 }));
        check("1,\"a\rb\"c,2\r", Some(Flaw::Reopened { at: 2 }));
    }
}
