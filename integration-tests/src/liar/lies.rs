//! The lies of a proxy.

use sepal_wire::{Failure, FailureCode, Retry};

/// Text that moves the cursor, retitles the terminal and changes colours where it is shown as it is.
pub(super) const ESCAPES: &str = "\u{1b}]0;owned\u{7}\u{1b}[2J\u{1b}[31mall is well\u{1b}[0m\n\u{202e}ready";

macro_rules! lies {
    ($($(#[$doc:meta])* $lie:ident = $name:literal,)+) => {
        /// Lie of a proxy. Altered tensors keep their shape and are fp32, unless the lie is about that.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Lie {
            $($(#[$doc])* $lie,)+
        }

        impl Lie {
            /// All lies.
            pub const ALL: [Self; [$($name),+].len()] = [$(Self::$lie),+];

            /// Written name.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$lie => $name,)+
                }
            }
        }
    };
}

lies! {
    /// Outputs with the other sign.
    OutputsNegated = "outputs-negated",
    /// Noise in place of outputs.
    OutputsNoise = "outputs-noise",
    /// Outputs of zeros.
    OutputsZero = "outputs-zero",
    /// Outputs times 1.05.
    OutputsScaled = "outputs-scaled",
    /// Outputs of all blocks but the last one.
    OutputsOfFewerBlocks = "outputs-of-fewer-blocks",
    /// Outputs of the step before.
    OutputsStale = "outputs-stale",
    /// Outputs with NaN at one place.
    OutputsNan = "outputs-nan",
    /// Gradients with the other sign.
    GradsNegated = "grads-negated",
    /// Gradients of zeros.
    GradsZero = "grads-zero",
    /// Gradients times a million.
    GradsLarge = "grads-large",
    /// Gradients of tunables in the order of other blocks.
    GradsOfOtherBlocks = "grads-of-other-blocks",
    /// Gradients of the step before.
    GradsStale = "grads-stale",
    /// Outputs of width 16.
    OutputsNarrow = "outputs-narrow",
    /// Input gradients of shape `[positions, 16]`.
    GradsNarrow = "grads-narrow",
    /// Input gradients of shape `[positions, positions, hidden]`.
    GradsDeep = "grads-deep",
    /// Successful answers without a tensor.
    EmptyAnswers = "empty-answers",
    /// Answers of 200 MB.
    HugeAnswers = "huge-answers",
    /// Calls without an answer.
    NoAnswers = "no-answers",
    /// Every call is an invalid request.
    RefusesAll = "refuses-all",
    /// Every tape has expired, and every call is to be repeated.
    ExpiredAlways = "expired-always",
    /// Every call is to be repeated on the same server.
    HereAlways = "here-always",
    /// Every call fails as one of another server would, with escape sequences as its reason.
    Exceptions = "exceptions",
    /// Limits of 0.
    LimitsZero = "limits-zero",
    /// Limits of the largest numbers.
    LimitsMax = "limits-max",
    /// Speed without bounds, and durations of calls without bounds.
    SpeedAbsurd = "speed-absurd",
    /// Description of another model of the same shape.
    OtherDigest = "other-digest",
    /// Description of blocks 0 to 4 billion.
    OtherSpan = "other-span",
    /// Description of a model of 4 billion blocks.
    ManyBlocks = "many-blocks",
    /// Escape sequences in all texts.
    Escapes = "escapes",
}

impl Lie {
    /// Lies about numbers, in shapes that are right: only a second computation finds them.
    pub const NUMBERS: [Self; 11] = [
        Self::OutputsNegated,
        Self::OutputsNoise,
        Self::OutputsZero,
        Self::OutputsScaled,
        Self::OutputsOfFewerBlocks,
        Self::OutputsStale,
        Self::GradsNegated,
        Self::GradsZero,
        Self::GradsLarge,
        Self::GradsOfOtherBlocks,
        Self::GradsStale,
    ];

    /// Misbehaviour that every single answer or description shows.
    pub const MISBEHAVIOUR: [Self; 18] = [
        Self::OutputsNan,
        Self::OutputsNarrow,
        Self::GradsNarrow,
        Self::GradsDeep,
        Self::EmptyAnswers,
        Self::HugeAnswers,
        Self::NoAnswers,
        Self::RefusesAll,
        Self::ExpiredAlways,
        Self::HereAlways,
        Self::Exceptions,
        Self::LimitsZero,
        Self::LimitsMax,
        Self::SpeedAbsurd,
        Self::OtherDigest,
        Self::OtherSpan,
        Self::ManyBlocks,
        Self::Escapes,
    ];

    /// True for lies about outputs, in place of those about gradients.
    pub(super) fn alters_outputs(self) -> bool {
        matches!(
            self,
            Self::OutputsNegated
                | Self::OutputsNoise
                | Self::OutputsZero
                | Self::OutputsScaled
                | Self::OutputsOfFewerBlocks
                | Self::OutputsStale
                | Self::OutputsNan
                | Self::OutputsNarrow
                | Self::HugeAnswers
        )
    }

    /// True for lies about gradients.
    pub(super) fn alters_grads(self) -> bool {
        matches!(
            self,
            Self::GradsNegated
                | Self::GradsZero
                | Self::GradsLarge
                | Self::GradsOfOtherBlocks
                | Self::GradsStale
                | Self::GradsNarrow
                | Self::GradsDeep
                | Self::HugeAnswers
        )
    }

    /// Failure with which every call is answered.
    pub(super) fn failure(self) -> Option<Failure> {
        let (retry, code, message) = match self {
            Self::RefusesAll => (Retry::Never, FailureCode::InvalidRequest, format!("{ESCAPES}: the request is wrong")),
            Self::ExpiredAlways => (Retry::Here, FailureCode::TapeExpired, "the tape has expired".to_owned()),
            Self::HereAlways => (Retry::Here, FailureCode::Overloaded, "the queue is full".to_owned()),
            _ => return None,
        };
        Some(Failure { retry, code, message })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lies_are_about_numbers_or_visible_and_have_names() {
        for lie in Lie::ALL {
            assert_eq!(lie.name().parse::<Lie>(), Ok(lie));
            assert_ne!(Lie::NUMBERS.contains(&lie), Lie::MISBEHAVIOUR.contains(&lie), "{lie}");
        }
        assert!("honest".parse::<Lie>().is_err());
    }
}
