use std::fmt;

/// Label as the file has it. Cells of csv and jsonl files are names, including digits.
#[derive(Debug, Clone, PartialEq)]
pub enum RawLabel {
    /// A truth value.
    Bool(bool),
    /// An integer.
    Int(i64),
    /// A text.
    Name(String),
    /// A number.
    Float(f64),
    /// A list.
    Many(Vec<RawLabel>),
}

impl RawLabel {
    /// Text that is different for all values and kinds. A truth value has the text of its number, so that digests of earlier
    /// versions stay valid.
    pub(crate) fn digest_text(&self) -> String {
        match self {
            RawLabel::Bool(truth) => RawLabel::Int(i64::from(*truth)).digest_text(),
            RawLabel::Many(items) => {
                format!("Many([{}])", items.iter().map(RawLabel::digest_text).collect::<Vec<_>>().join(", "))
            }
            other => format!("{other:?}"),
        }
    }
}

impl fmt::Display for RawLabel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RawLabel::Bool(truth) => write!(f, "{truth}"),
            RawLabel::Int(number) => write!(f, "{number}"),
            RawLabel::Name(name) => f.write_str(name),
            RawLabel::Float(number) => write!(f, "{number}"),
            RawLabel::Many(items) => {
                let items: Vec<String> = items.iter().map(RawLabel::to_string).collect();
                write!(f, "[{}]", items.join(", "))
            }
        }
    }
}
