//! A long stream of bytes that both ends of a transfer can compute, so that loss, repetition or change shows.
//!
//! Called by `app.rs` and by tests of transfers. Knows nothing of sockets.

use std::io::{Read, Write};

use crate::failure::{Context as _, Outcome, ensure_eq};

/// A position in the stream, and a checksum of what passed (FNV-1a over 8-byte words and the tail's bytes).
#[derive(Clone, Debug)]
pub struct Pattern {
    position: u64,
    sum: u64,
    first_error: Option<u64>,
}

impl Default for Pattern {
    fn default() -> Self {
        Self {
            position: 0,
            sum: 0xcbf2_9ce4_8422_2325,
            first_error: None,
        }
    }
}

/// Bytes written at a time.
const CHUNK: usize = 128 * 1024;

impl Pattern {
    /// Writes the next `count` bytes to `to`.
    ///
    /// # Errors
    /// Those of `to`.
    pub fn send(&mut self, to: &mut impl Write, count: u64) -> std::io::Result<()> {
        let mut chunk = vec![0; CHUNK];
        let mut left = count;
        while left > 0 {
            let length = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
            let Some(part) = chunk.get_mut(..length) else {
                break;
            };
            self.fill(part);
            to.write_all(part)?;
            left -= length as u64;
        }
        Ok(())
    }

    /// Reads from `from` until it ends and returns how many bytes of the pattern came.
    ///
    /// # Errors
    /// Those of `from`, and the position of the first byte that is not the pattern's.
    pub fn receive(&mut self, from: &mut impl Read) -> Outcome<u64> {
        let mut chunk = vec![0; CHUNK];
        loop {
            let count = from
                .read(&mut chunk)
                .context(format_args!("after {} bytes", self.position))?;
            if count == 0 {
                ensure_eq(self.first_error, None, "first wrong byte")?;
                return Ok(self.position);
            }
            self.check(chunk.get(..count).unwrap_or_default());
        }
    }

    /// Fills `buffer` with the next bytes.
    pub fn fill(&mut self, buffer: &mut [u8]) {
        for (byte, position) in buffer.iter_mut().zip(self.position..) {
            *byte = at(position);
        }
        self.position += buffer.len() as u64;
    }

    /// Compares `bytes` with the next bytes.
    pub fn check(&mut self, bytes: &[u8]) {
        for (byte, position) in bytes.iter().zip(self.position..) {
            if *byte != at(position) && self.first_error.is_none() {
                self.first_error = Some(position);
            }
            self.sum = (self.sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
        self.position += bytes.len() as u64;
    }

    /// How many bytes passed, and their checksum.
    pub fn verdict(&self) -> String {
        format!("{} bytes, checksum {:016x}\n", self.position, self.sum)
    }

    /// The verdict of a faultless transfer of `count` bytes.
    pub fn expected(count: u64) -> String {
        let (mut source, mut sink) = (Self::default(), Self::default());
        let mut chunk = vec![0; CHUNK];
        let mut left = count;
        while left > 0 {
            let length = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
            let Some(part) = chunk.get_mut(..length) else {
                break;
            };
            source.fill(part);
            sink.check(part);
            left -= length as u64;
        }
        sink.verdict()
    }
}

/// The byte at a position: no period that a buffer or a record could hide behind.
fn at(position: u64) -> u8 {
    let mixed = (position >> 3).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed
        .to_be_bytes()
        .get((position & 7) as usize)
        .copied()
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_faultless_transfer_is_recognised_and_a_fault_is_placed() {
        let mut bytes = Vec::new();
        Pattern::default().send(&mut bytes, 300_000).unwrap();
        assert_eq!(
            Pattern::default().receive(&mut bytes.as_slice()).unwrap(),
            300_000
        );
        bytes[123_456] ^= 1;
        let cause = Pattern::default()
            .receive(&mut bytes.as_slice())
            .unwrap_err()
            .to_string();
        assert!(cause.contains("123456"), "{cause}");
        bytes.swap(1, 2);
        let mut sink = Pattern::default();
        sink.check(&bytes);
        assert_ne!(sink.verdict(), Pattern::expected(300_000));
    }
}
