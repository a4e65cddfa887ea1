//! Programs that must answer in time.

use std::io::{self, Read};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

const PAUSE: Duration = Duration::from_millis(5);
/// Largest output that is read.
const MAX_BYTES: u64 = 1 << 20;

/// Runs a program without input and returns its output, of which each stream has at most a megabyte.
///
/// # Errors
/// [`io::ErrorKind::TimedOut`] if the program does not end within `timeout`, after which it is killed; another [`io::Error`] if
/// it cannot be started.
pub fn output_within(command: &mut Command, timeout: Duration) -> io::Result<Output> {
    let deadline = Instant::now() + timeout;
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn()?;
    let (stdout, stderr) = (child.stdout.take().map(read), child.stderr.take().map(read));
    let ended = wait(&mut child, deadline).and_then(|status| {
        // Programs that it has started may still hold the pipes.
        Ok(Output { status, stdout: received(stdout, deadline)?, stderr: received(stderr, deadline)? })
    });
    if ended.is_err() {
        // The process may have ended in the meantime.
        let _ = child.kill();
        let _ = child.wait();
    }
    match ended {
        Err(error) if error.kind() == io::ErrorKind::TimedOut => {
            let text = format!("it does not answer within {} s", timeout.as_secs_f64());
            Err(io::Error::new(io::ErrorKind::TimedOut, text))
        }
        other => other,
    }
}

/// Reads a pipe in a thread of its own, which ends with the programs that hold the pipe.
fn read(pipe: impl Read + Send + 'static) -> Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        // After an error, the bytes before it are the output.
        let _ = pipe.take(MAX_BYTES).read_to_end(&mut bytes);
        // Fails if nothing waits for them any more.
        let _ = sender.send(bytes);
    });
    receiver
}

fn received(stream: Option<Receiver<Vec<u8>>>, deadline: Instant) -> io::Result<Vec<u8>> {
    let Some(stream) = stream else { return Ok(Vec::new()) };
    let left = deadline.saturating_duration_since(Instant::now());
    stream.recv_timeout(left).map_err(|_| io::ErrorKind::TimedOut.into())
}

fn wait(child: &mut Child, deadline: Instant) -> io::Result<ExitStatus> {
    loop {
        match child.try_wait()? {
            Some(status) => return Ok(status),
            None if Instant::now() >= deadline => return Err(io::ErrorKind::TimedOut.into()),
            None => thread::sleep(PAUSE),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(script: &str, timeout: Duration) -> io::Result<Output> {
        output_within(Command::new("sh").args(["-c", script]), timeout)
    }

    #[test]
    fn output_and_status_of_a_program_are_returned() {
        let output = run("echo out; echo err >&2; exit 3", Duration::from_secs(60)).expect("it ends");
        assert_eq!((output.stdout.as_slice(), output.stderr.as_slice()), (&b"out\n"[..], &b"err\n"[..]));
        assert_eq!(output.status.code(), Some(3));
        // More than the buffer of a pipe.
        let output = run("head -c 200000 /dev/zero", Duration::from_secs(60)).expect("it ends");
        assert_eq!(output.stdout.len(), 200_000);
    }

    #[test]
    fn program_that_hangs_is_an_error() {
        let timeout = Duration::from_millis(50);
        for script in ["exec sleep 60", "sleep 2 & exit 0"] {
            let error = run(script, timeout).expect_err("it hangs");
            assert_eq!(error.to_string(), "it does not answer within 0.05 s", "{script}");
        }
        assert!(output_within(&mut Command::new("no-such-program"), timeout).is_err());
    }
}
