//! Files that may be packed.

use super::FormatError;
use flate2::read::GzDecoder;
use std::borrow::Cow;
use std::io::{ErrorKind, Read};

/// More than this is refused: 60 times the largest public cache.
const MAX_BYTES: u64 = 1 << 30;
const MAGIC: [u8; 2] = [0x1f, 0x8b];

/// The contents of a file, unpacked where they were gzip data.
#[derive(Debug)]
pub struct Plain<'a> {
    pub bytes: Cow<'a, [u8]>,
    /// Whether the gzip data end early.
    pub is_cut: bool,
}

impl<'a> Plain<'a> {
    /// Unpacks `bytes`, the contents of `file`, which is named in errors.
    pub fn read(file: &str, bytes: &'a [u8]) -> Result<Self, FormatError> {
        let mut is_cut = false;
        let bytes = if bytes.starts_with(&MAGIC) {
            let mut plain = Vec::new();
            match GzDecoder::new(bytes).take(MAX_BYTES + 1).read_to_end(&mut plain) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => is_cut = true,
                Err(error) => return Err(FormatError::Gzip { file: file.to_owned(), error }),
            }
            Cow::Owned(plain)
        } else {
            Cow::Borrowed(bytes)
        };
        if bytes.len() as u64 > MAX_BYTES {
            return Err(FormatError::TooLarge { file: file.to_owned() });
        }
        Ok(Self { bytes, is_cut })
    }
}
