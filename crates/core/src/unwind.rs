use std::any::Any;
use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Once;

thread_local! {
    /// True while this thread runs a call whose panics become errors.
    static IS_CAUGHT: Cell<bool> = const { Cell::new(false) };
}

/// Panic of a library that was given damaged or hostile input.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the message names the fields")]
#[error("{message}")]
pub struct LibraryPanic {
    pub message: String,
}

/// Calls a library that may panic on damaged or hostile input, and turns the panic into an error. The panic is not printed.
/// Values that the call was changing are to be dropped after an error.
///
/// # Errors
/// [`LibraryPanic`] with the message of the panic.
pub fn catch_panic<T>(call: impl FnOnce() -> T) -> Result<T, LibraryPanic> {
    silence_caught_panics();
    let outer = IS_CAUGHT.replace(true);
    let result = panic::catch_unwind(AssertUnwindSafe(call));
    IS_CAUGHT.set(outer);
    result.map_err(|panic| LibraryPanic { message: message(&*panic) })
}

/// Adds to the hook of this process, once, that panics which become errors are not printed.
fn silence_caught_panics() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let print = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            if !IS_CAUGHT.get() {
                print(panic);
            }
        }));
    });
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("a library panicked").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panics_become_errors_with_their_message() {
        assert_eq!(catch_panic(|| 3), Ok(3));
        let error = catch_panic(|| -> u8 { panic!("index {} is out of range", 7) }).expect_err("it panicked");
        assert_eq!(error.to_string(), "index 7 is out of range");
        let error = catch_panic(|| -> u8 { panic!("a literal") }).expect_err("it panicked");
        assert_eq!(error.to_string(), "a literal");
        let error = catch_panic(|| -> u8 { panic::panic_any(5) }).expect_err("it panicked");
        assert_eq!(error.to_string(), "a library panicked");
    }

    #[test]
    fn nested_calls_stay_caught() {
        let outer = catch_panic(|| -> u8 {
            let inner = catch_panic(|| -> u8 { panic!("inner") });
            assert!(inner.is_err() && IS_CAUGHT.get());
            panic!("outer")
        });
        let error = outer.expect_err("it panicked").to_string();
        assert_eq!((error.as_str(), IS_CAUGHT.get()), ("outer", false));
    }
}
