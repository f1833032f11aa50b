//! Files that may be packed: journals and the recorded spaces of other tools.

use flate2::read::GzDecoder;
use std::borrow::Cow;
use std::io::{self, ErrorKind, Read};

/// More than this is refused: 60 times the largest public cache.
const MAX_BYTES: u64 = 1 << 30;
const MAGIC: [u8; 2] = [0x1f, 0x8b];

/// The contents of a file, unpacked where they were gzip data.
#[derive(Debug)]
pub(crate) struct Plain<'a> {
    pub bytes: Cow<'a, [u8]>,
    /// Whether the gzip data end early.
    pub is_cut: bool,
}

impl<'a> Plain<'a> {
    /// Unpacks the contents of a file.
    ///
    /// # Errors
    /// Damaged gzip data, and more than a gibibyte.
    pub fn read(bytes: &'a [u8]) -> io::Result<Self> {
        let mut is_cut = false;
        let bytes = if bytes.starts_with(&MAGIC) {
            let mut plain = Vec::new();
            match GzDecoder::new(bytes).take(MAX_BYTES + 1).read_to_end(&mut plain) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => is_cut = true,
                Err(error) => {
                    let message = format!("damaged gzip data: {error}");
                    return Err(io::Error::new(ErrorKind::InvalidData, message));
                }
            }
            Cow::Owned(plain)
        } else {
            Cow::Borrowed(bytes)
        };
        if bytes.len() as u64 > MAX_BYTES {
            return Err(io::Error::new(ErrorKind::InvalidData, "more than 1 GiB of text"));
        }
        Ok(Self { bytes, is_cut })
    }
}
