//! Ctrl-C and SIGTERM: the first signal stops a command cleanly, the second one ends the program.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::output::Failure;

/// Calls `on_first` at the first signal and sets the returned flag. The second signal ends the program at once.
pub(crate) fn on_interrupt(on_first: impl Fn() + Send + 'static) -> Result<Arc<AtomicBool>, Failure> {
    let stop = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&stop);
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGTERM])?;
    thread::Builder::new().name("sepal-signals".to_owned()).spawn(move || {
        for _ in signals.forever() {
            if flag.swap(true, Ordering::Relaxed) {
                // Destructors of libraries do not run: other threads still use what they would free.
                signal_hook::low_level::exit(130)
            }
            on_first();
        }
    })?;
    Ok(stop)
}

/// Returns a flag that the first signal sets. `message` says how the command ends then.
pub(crate) fn stop_on_interrupt(message: &'static str) -> Result<Arc<AtomicBool>, Failure> {
    on_interrupt(move || eprintln!("\n{message}; press Ctrl-C again to stop at once"))
}
