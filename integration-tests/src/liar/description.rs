//! Lies about the server itself.

use sepal_core::Span;
use sepal_wire::{Limits, ServerInfo};

use super::lies::{ESCAPES, Lie};

/// Four billion.
const MANY: usize = 4_000_000_000;

/// Claims to be idle and fast, so that clients choose the liar, and to have no key that signs receipts.
pub(super) fn lure(info: &mut ServerInfo) {
    info.load.queue = 0;
    // Zero stands for a server that has not measured its speed.
    info.load.rate = if info.load.rate > 0.0 { info.load.rate / 8.0 } else { 1e-7 };
    (info.key, info.receipts) = (None, 0);
}

/// Alters the description of a server. Returns true if the lie is about the description.
pub(super) fn alter(info: &mut ServerInfo, lie: Lie) -> bool {
    match lie {
        Lie::LimitsZero => {
            info.limits = Limits {
                max_rows: 0,
                max_tokens: 0,
                max_message_bytes: 0,
                tape_budget_bytes: 0,
                client_bytes: 0,
                shared_bytes: 0,
                max_row_tokens: 0,
                call_bytes: 0,
            };
        }
        Lie::LimitsMax => {
            info.limits = Limits {
                max_rows: u32::MAX,
                max_tokens: u32::MAX,
                max_message_bytes: u64::MAX,
                tape_budget_bytes: u64::MAX,
                client_bytes: u64::MAX,
                shared_bytes: u64::MAX,
                max_row_tokens: u32::MAX,
                call_bytes: u64::MAX,
            };
            info.tape_token_bytes = 0;
        }
        Lie::SpeedAbsurd => {
            info.load.rate = 1e-300;
            info.load.completed = u64::MAX;
            info.tape_token_bytes = u32::MAX;
        }
        Lie::OtherDigest => info.model_digest = "sha256:0000000000000000".to_owned(),
        Lie::OtherSpan => info.span = Span::new(0, MANY).expect("a span"),
        Lie::ManyBlocks => info.n_blocks = MANY,
        Lie::Escapes => {
            for text in [&mut info.family, &mut info.software, &mut info.weights] {
                text.insert_str(0, ESCAPES);
            }
            info.tunables.push(ESCAPES.to_owned());
        }
        _ => return false,
    }
    true
}
