/// Implements the conversions from and to `String` by `FromStr` and `Display`, for
/// `#[serde(try_from = "String", into = "String")]`.
#[macro_export]
macro_rules! string_conversions {
    ($($type:ty),+) => {$(
        impl TryFrom<String> for $type {
            type Error = <Self as ::std::str::FromStr>::Err;

            fn try_from(text: String) -> Result<Self, Self::Error> {
                text.parse()
            }
        }

        impl From<$type> for String {
            fn from(value: $type) -> Self {
                value.to_string()
            }
        }
    )+};
}

/// Implements `Display` and `FromStr` of an enum by its `ALL` and `name`.
macro_rules! text_by_name {
    ($type:ty, $expected:literal) => {
        impl ::std::fmt::Display for $type {
            fn fmt(&self, f: &mut ::std::fmt::Formatter<'_>) -> ::std::fmt::Result {
                f.write_str(self.name())
            }
        }

        impl ::std::str::FromStr for $type {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                let found = Self::ALL.into_iter().find(|value| value.name() == text);
                found.ok_or_else(|| format!("`{text}` is not {}", $expected))
            }
        }
    };
}
