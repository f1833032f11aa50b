//! Where sentences of running text end.

use std::ops::Range;

/// Words before a period that does not end a sentence, without it and in lower case.
const ABBREVIATIONS: [&str; 42] = [
    "adm", "apr", "aug", "brig", "capt", "cmdr", "co", "col", "corp", "dec", "dept", "dr", "etc",
    "feb", "fig", "gen", "gov", "hon", "inc", "jan", "jr", "lt", "ltd", "maj", "messrs", "mr",
    "mrs", "ms", "mt", "nov", "oct", "pres", "prof", "rep", "rev", "sen", "sept", "sgt", "sr",
    "st", "supt", "vs",
];

/// The bytes of each sentence, without the white space around it.
///
/// A sentence ends
/// - at a line break;
/// - behind `.`, `!` or `?` and the quotes and brackets that close there, where white space follows
///   and then no lower-case letter: `"Stop!" he said` goes on;
/// - behind one of them that stands alone, as in text that was cut into words: `the end . then`.
///
/// A period ends none behind an abbreviation of titles, months and firms (`Mr.`, `Sept.`, `Inc.`), a
/// single letter (`J. Smith`) or letters with periods (`U.S.`, `a.m.`), nor behind `No.` before a
/// digit. In doubt two sentences stay one.
pub fn sentences(text: &str) -> Vec<Range<usize>> {
    let mut sentences = Vec::new();
    let mut start = 0;
    for (at, c) in text.char_indices() {
        // The last of several marks decides, with what closes behind it.
        let behind = at + c.len_utf8();
        let end = match c {
            '\n' => behind,
            '.' | '!' | '?' if !text[behind..].starts_with(['.', '!', '?']) => {
                let closing = |c| matches!(c, '"' | '\'' | '”' | '’' | ')' | ']');
                text.len() - text[behind..].trim_start_matches(closing).len()
            }
            _ => continue,
        };
        if c == '\n' || ends(&text[start..at], c, &text[end..]) {
            push(&mut sentences, text, start..end);
            start = end;
        }
    }
    push(&mut sentences, text, start..text.len());
    sentences
}

/// Whether a mark between two texts ends a sentence.
fn ends(before: &str, mark: char, after: &str) -> bool {
    let Some(next) = after.trim_start().chars().next() else { return true };
    if !after.starts_with(char::is_whitespace) {
        return false;
    }
    if before.is_empty() || before.ends_with(char::is_whitespace) {
        return true;
    }
    let goes_on = next.is_lowercase() || (mark == '.' && is_abbreviation(before, next));
    !goes_on
}

/// Whether the last word of a text is cut short by the period that follows it.
fn is_abbreviation(before: &str, next: char) -> bool {
    let word = before.rsplit(char::is_whitespace).next().unwrap_or_default();
    let word = word.trim_start_matches(|c: char| !c.is_alphanumeric()).to_lowercase();
    let is_letter = |part: &str| part.chars().count() == 1 && part.chars().all(char::is_alphabetic);
    word.split('.').all(is_letter)
        || ABBREVIATIONS.contains(&word.as_str())
        || (word == "no" && next.is_ascii_digit())
}

/// Adds a sentence without the white space around it, unless nothing is left.
fn push(sentences: &mut Vec<Range<usize>>, text: &str, bytes: Range<usize>) {
    let sentence = text[bytes.clone()].trim_end();
    let start = bytes.start + sentence.len() - sentence.trim_start().len();
    if !sentence.trim_start().is_empty() {
        sentences.push(start..bytes.start + sentence.len());
    }
}
