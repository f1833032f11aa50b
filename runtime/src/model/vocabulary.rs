//! `tokenizer.json`: from text to tokens, and from generated tokens to the text that a protocol reads.

use std::ops::Range;
use std::path::{Path, PathBuf};
use tokenizers::Tokenizer;

/// A vocabulary that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VocabularyError {
    /// A file that is none.
    #[error("{}: not a tokenizer: {fault}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        fault: String,
    },
    /// Text that it cannot cut.
    #[error("{text:?} cannot be cut into tokens: {fault}")]
    Encode {
        /// The text.
        text: String,
        /// Why.
        fault: String,
    },
}

/// A text as tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    /// The tokens.
    pub tokens: Vec<u32>,
    /// Bytes of the text that each stands for; none of one that was added.
    pub offsets: Vec<Range<usize>>,
}

/// The tokens of a model.
#[derive(Clone)]
pub struct Vocabulary {
    tokenizer: Tokenizer,
}

impl Vocabulary {
    /// Reads a `tokenizer.json`.
    ///
    /// # Errors
    /// A file that is none.
    pub fn load(path: &Path) -> Result<Self, VocabularyError> {
        let tokenizer = Tokenizer::from_file(path).map_err(|error| VocabularyError::File {
            path: path.to_owned(),
            fault: error.to_string(),
        })?;
        Ok(Self { tokenizer })
    }

    /// The tokens of a text, with the bytes that each stands for; `add_special` adds those that the
    /// file puts around one, such as the beginning.
    ///
    /// # Errors
    /// Text that it has no tokens for.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Encoded, VocabularyError> {
        let encoded = self.tokenizer.encode(text, add_special).map_err(|error| {
            VocabularyError::Encode { text: text.to_owned(), fault: error.to_string() }
        })?;
        let offsets = encoded.get_offsets().iter().map(|(start, end)| *start..*end).collect();
        Ok(Encoded { tokens: encoded.get_ids().to_vec(), offsets })
    }

    /// Tokens, those that mark beginning and end included.
    pub fn size(&self) -> usize {
        self.tokenizer.get_vocab_size(true)
    }

    /// Whether a text is one token.
    pub fn token(&self, text: &str) -> Option<u32> {
        self.tokenizer.token_to_id(text)
    }

    /// The text of generated tokens, piece by piece.
    pub(super) fn stream(&self) -> TextStream {
        TextStream::default()
    }

    /// The text that `token` adds to what `stream` has seen: none while a character is unfinished.
    pub(super) fn push(&self, stream: &mut TextStream, token: u32) -> String {
        let TextStream { ids, prefix, prefix_index } = stream;
        let keep_special = false;
        let piece = tokenizers::step_decode_stream(
            &self.tokenizer,
            vec![token],
            keep_special,
            ids,
            prefix,
            prefix_index,
        );
        // A token that the vocabulary does not know has no text.
        piece.ok().flatten().unwrap_or_default()
    }
}

/// What of a response has become text.
#[derive(Clone, Debug, Default)]
pub(super) struct TextStream {
    ids: Vec<u32>,
    prefix: String,
    prefix_index: usize,
}
