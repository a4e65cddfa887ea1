use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use prost::Message;

use super::proto::{Event, EventKind};
use crate::WriteError;
use crate::scalars::since_epoch;

#[derive(Debug)]
pub(super) struct EventFile {
    path: PathBuf,
    file: File,
}

const PREFIX: &str = "events.out.tfevents.";

impl EventFile {
    /// Creates a file whose name sorts after all event files of the folder, because readers go by names.
    pub(super) fn create(folder: &Path) -> Result<Self, WriteError> {
        let create = || {
            std::fs::create_dir_all(folder)?;
            let mut second = since_epoch().as_secs().max(last_second(folder)?.map_or(0, |last| last + 1));
            loop {
                let path = folder.join(format!("{PREFIX}{second:010}.sepal"));
                match File::options().append(true).create_new(true).open(&path) {
                    Ok(file) => return Ok(Self { path, file }),
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => second += 1,
                    Err(error) => return Err(error),
                }
            }
        };
        create().map_err(|source| WriteError { path: folder.to_owned(), source })
    }

    /// Appends an event in one write, so that readers see either all of it or an incomplete frame.
    pub(super) fn append(&mut self, step: u64, kind: EventKind) -> Result<(), WriteError> {
        let step = i64::try_from(step).unwrap_or(i64::MAX);
        let event = Event { wall_time: since_epoch().as_secs_f64(), step, kind: Some(kind) };
        let frame = frame(&event.encode_to_vec());
        self.file.write_all(&frame).map_err(|source| WriteError { path: self.path.clone(), source })
    }
}

/// Latest second in the names of event files.
fn last_second(folder: &Path) -> io::Result<Option<u64>> {
    let mut last = None;
    for entry in std::fs::read_dir(folder)? {
        let name = entry?.file_name();
        let second = name.to_str().and_then(|name| name.strip_prefix(PREFIX)?.split('.').next()?.parse().ok());
        last = last.max(second);
    }
    Ok(last)
}

fn frame(payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u64).to_le_bytes();
    let mut frame = Vec::with_capacity(payload.len() + 16);
    frame.extend_from_slice(&length);
    frame.extend_from_slice(&masked_crc(&length).to_le_bytes());
    frame.extend_from_slice(payload);
    frame.extend_from_slice(&masked_crc(payload).to_le_bytes());
    frame
}

/// Remainders of single bytes, by the reversed polynomial of Castagnoli.
const REMAINDERS: [u32; 256] = {
    let mut remainders = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut remainder = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            remainder = (remainder >> 1) ^ (0x82f6_3b78 * (remainder & 1));
            bit += 1;
        }
        remainders[byte] = remainder;
        byte += 1;
    }
    remainders
};

fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0_u32, |crc, byte| (crc >> 8) ^ REMAINDERS[usize::from(crc as u8 ^ byte)])
}

/// Masked CRC-32C: rotated and offset, so that a CRC over data with embedded CRCs keeps its strength.
fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}
