use super::CellSyntax;

/// Quotation marks that join several rows into one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum QuoteProblem {
    /// The mark at this offset opens a cell that never ends.
    Unclosed { offset: usize },
    /// The mark at this offset opens a cell of several lines, and text follows the mark that closes it.
    TextAfterClose { offset: usize },
}

/// First problem of a record, given by its bytes in the file.
pub(super) fn quote_problem(record: &[u8], syntax: CellSyntax) -> Option<QuoteProblem> {
    let delimiter = syntax.delimiter.byte();
    let is_end = |byte: &u8| *byte == delimiter || matches!(byte, b'\n' | b'\r');
    let mut offset = 0;
    while syntax.quoted && offset < record.len() {
        let mut end = offset;
        if record[offset] == b'"' {
            let Some(closed) = closing_mark(record, offset + 1) else {
                return Some(QuoteProblem::Unclosed { offset });
            };
            let has_lines = record[offset..closed].iter().any(|byte| matches!(byte, b'\n' | b'\r'));
            if has_lines && record.get(closed + 1).is_some_and(|next| !is_end(next)) {
                return Some(QuoteProblem::TextAfterClose { offset });
            }
            end = closed + 1;
        }
        offset = record[end..].iter().position(is_end).map_or(record.len(), |next| end + next + 1);
    }
    None
}

/// Offset of the mark that closes a cell whose text begins at `start`. A doubled mark is part of the text.
fn closing_mark(record: &[u8], start: usize) -> Option<usize> {
    let mut offset = start;
    loop {
        offset += record.get(offset..)?.iter().position(|byte| *byte == b'"')?;
        if record.get(offset + 1) != Some(&b'"') {
            return Some(offset);
        }
        offset += 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dialect::Delimiter;

    #[test]
    fn quotes_that_join_rows_are_found() {
        let check = |record: &str, expected| {
            let syntax = CellSyntax { delimiter: Delimiter::COMMA, quoted: true };
            assert_eq!(quote_problem(record.as_bytes(), syntax), expected, "{record:?}");
        };
        check("a,b\n", None);
        check("\"a\nb\",\"c \"\"d\"\"\"\n", None);
        check("\"a\"b,c\n", None);
        check("a \"b\n", None);
        check("x,\"a\nb", Some(QuoteProblem::Unclosed { offset: 2 }));
        check("x,\"a\"\"\n", Some(QuoteProblem::Unclosed { offset: 2 }));
        check("\"a,1\n\"b\",2\n", Some(QuoteProblem::TextAfterClose { offset: 0 }));
        check("1,\"a\rb\"c,2\r", Some(QuoteProblem::TextAfterClose { offset: 2 }));
    }
}
