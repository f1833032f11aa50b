//! A closed vocabulary, and the Hugging Face `tokenizer.json` that says the same.

use std::collections::HashMap;
use std::ops::Range;

use serde_json::json;

/// Id of the token that fills up a batch, `_`.
pub const PAD: u32 = 0;
/// Id of the token that begins a prompt, `^`.
pub const BOS: u32 = 1;
/// Id of the token that ends a response, `$`.
pub const EOS: u32 = 2;

/// The tokens of [`PAD`], [`BOS`] and [`EOS`].
const SPECIAL: [&str; 3] = ["_", "^", "$"];

/// What cannot be encoded or decoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VocabularyError {
    /// Text outside the vocabulary.
    #[error("{text:?} at byte {at} is not in the vocabulary of {tokens} tokens")]
    UnknownText {
        /// The character or word.
        text: String,
        /// Where it begins.
        at: usize,
        /// Size of the vocabulary.
        tokens: usize,
    },
    /// An id outside the vocabulary.
    #[error("token id {id} is not below the vocabulary's {tokens}")]
    UnknownId {
        /// The id.
        id: u32,
        /// Size of the vocabulary.
        tokens: usize,
    },
}

/// What one token is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unit {
    /// A character; text is the tokens one behind the other.
    Character,
    /// A word; text is the tokens with a space between them.
    Word,
}

/// Text as tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoding {
    /// Token ids, in order.
    pub ids: Vec<u32>,
    /// Bytes of the text that each token stands for.
    pub offsets: Vec<Range<usize>>,
}

/// A closed vocabulary of characters or of words. Text with anything else in it is an error, here
/// and in the `tokenizer.json`.
#[derive(Debug, Clone)]
pub struct Vocabulary {
    unit: Unit,
    /// Text of each token as it stands behind another one: a word has its space before it.
    pieces: Vec<String>,
    ids: HashMap<String, u32>,
}

impl Vocabulary {
    /// One token a character, behind the special ones.
    pub(crate) fn of_characters(characters: &str) -> Self {
        Self::new(Unit::Character, characters.chars().map(String::from))
    }

    /// One token a word, behind the special ones. A word given twice counts once.
    pub(crate) fn of_words<'a>(words: impl IntoIterator<Item = &'a str>) -> Self {
        Self::new(Unit::Word, words.into_iter().map(str::to_owned))
    }

    fn new(unit: Unit, tokens: impl Iterator<Item = String>) -> Self {
        let mut vocabulary = Self { unit, pieces: Vec::new(), ids: HashMap::new() };
        for token in SPECIAL.into_iter().map(str::to_owned).chain(tokens) {
            let id = vocabulary.pieces.len() as u32;
            if !vocabulary.ids.contains_key(&token) {
                vocabulary.pieces.push(match unit {
                    Unit::Character => token.clone(),
                    Unit::Word => format!(" {token}"),
                });
                vocabulary.ids.insert(token, id);
            }
        }
        vocabulary
    }

    /// Number of tokens.
    #[allow(clippy::len_without_is_empty, reason = "the special tokens are always there")]
    pub fn len(&self) -> usize {
        self.pieces.len()
    }

    /// The id of a token.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.ids.get(token).copied()
    }

    /// The text that a token adds to a response, which is what
    /// [`TagProtocol::push_token`](spanforge_spans::protocol::TagProtocol::push_token) takes: a
    /// word has its space before it.
    pub fn piece(&self, id: u32) -> Option<&str> {
        self.pieces.get(id as usize).map(String::as_str)
    }

    /// The tokens of a text.
    pub fn encode(&self, text: &str) -> Result<Encoding, VocabularyError> {
        let mut encoding = Encoding { ids: Vec::new(), offsets: Vec::new() };
        for bytes in self.cut(text) {
            let token = &text[bytes.clone()];
            let id = self.id(token).ok_or_else(|| VocabularyError::UnknownText {
                text: token.to_owned(),
                at: bytes.start,
                tokens: self.len(),
            })?;
            encoding.ids.push(id);
            encoding.offsets.push(bytes);
        }
        Ok(encoding)
    }

    /// The bytes of each character, or of each word.
    fn cut(&self, text: &str) -> Vec<Range<usize>> {
        match self.unit {
            Unit::Character => text.char_indices().map(|(at, c)| at..at + c.len_utf8()).collect(),
            Unit::Word => {
                let start = |word: &str| word.as_ptr() as usize - text.as_ptr() as usize;
                text.split_whitespace().map(|w| start(w)..start(w) + w.len()).collect()
            }
        }
    }

    /// The text of tokens; [`encode`](Self::encode) of it gives the tokens back.
    pub fn decode(&self, ids: &[u32]) -> Result<String, VocabularyError> {
        let mut text = String::new();
        for id in ids {
            let unknown = VocabularyError::UnknownId { id: *id, tokens: self.len() };
            text.push_str(self.piece(*id).ok_or(unknown)?);
        }
        Ok(text.trim_start().to_owned())
    }

    /// A `tokenizer.json` for the Hugging Face `tokenizers` library: a word-level model over text
    /// cut into characters or at white space. Nothing is added to a text; `_`, `^` and `$` are
    /// special tokens, so a decoder can be told to leave them out.
    pub fn tokenizer_json(&self) -> String {
        let (pre_tokenizer, decoder) = match self.unit {
            Unit::Character => (
                json!({
                    "type": "Split",
                    "pattern": { "Regex": "[\\s\\S]" },
                    "behavior": "Isolated",
                    "invert": false,
                }),
                json!({ "type": "Fuse" }),
            ),
            // Without a decoder, tokens are joined by spaces.
            Unit::Word => (json!({ "type": "WhitespaceSplit" }), json!(null)),
        };
        let special = SPECIAL.iter().zip(0u32..).map(|(token, id)| {
            json!({
                "id": id,
                "content": token,
                "single_word": false,
                "lstrip": false,
                "rstrip": false,
                "normalized": false,
                "special": true,
            })
        });
        let tokens = self.pieces.iter().map(|piece| piece.trim_start());
        let vocab: serde_json::Map<String, serde_json::Value> =
            tokens.zip(0u32..).map(|(token, id)| (token.to_owned(), json!(id))).collect();
        let tokenizer = json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": special.collect::<Vec<_>>(),
            "normalizer": null,
            "pre_tokenizer": pre_tokenizer,
            "post_processor": null,
            "decoder": decoder,
            // The unknown token is not in the vocabulary: unknown text is an error, not a guess.
            "model": { "type": "WordLevel", "vocab": vocab, "unk_token": "[UNK]" },
        });
        format!("{tokenizer:#}\n")
    }
}
