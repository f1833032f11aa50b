//! PTX text to tokens. Opcodes keep their modifiers (`ld.global.nc.v4.u32` is one word), because
//! what a dot means depends on where it stands.

use crate::error::LoadError;

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Kind<'a> {
    /// Identifier, directive, register or opcode with its modifiers.
    Word(&'a str),
    Integer(u64),
    /// `0f3F800000`, as bits.
    Single(u32),
    /// `0d3FF0000000000000`, or a decimal fraction, as bits.
    Double(u64),
    Text(&'a str),
    Sign(u8),
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Token<'a> {
    pub kind: Kind<'a>,
    pub line: u32,
    pub start: usize,
    pub end: usize,
}

fn continues_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$' | b'.' | b'%')
}

pub(crate) fn tokens(text: &str) -> Result<Vec<Token<'_>>, LoadError> {
    let bytes = text.as_bytes();
    let at = |index: usize| bytes.get(index).copied().unwrap_or(0);
    let mut out = Vec::with_capacity(text.len() / 5);
    let (mut i, mut line) = (0usize, 1u32);
    while i < bytes.len() {
        let start = i;
        let byte = bytes[i];
        let kind = match byte {
            b'\n' => {
                line += 1;
                i += 1;
                continue;
            }
            b if b.is_ascii_whitespace() || b == 0 => {
                i += 1;
                continue;
            }
            b'/' if at(i + 1) == b'/' => {
                while i < bytes.len() && bytes[i] != b'\n' {
                    i += 1;
                }
                continue;
            }
            b'/' if at(i + 1) == b'*' => {
                let opened = line;
                i += 2;
                loop {
                    if i >= bytes.len() {
                        return Err(LoadError::new(opened, "this comment is never closed"));
                    }
                    if bytes[i] == b'*' && at(i + 1) == b'/' {
                        i += 2;
                        break;
                    }
                    line += u32::from(bytes[i] == b'\n');
                    i += 1;
                }
                continue;
            }
            b'"' => {
                i += 1;
                while i < bytes.len() && bytes[i] != b'"' && bytes[i] != b'\n' {
                    i += 1 + usize::from(bytes[i] == b'\\');
                }
                if at(i) != b'"' {
                    return Err(LoadError::new(line, "this string is never closed"));
                }
                i += 1;
                Kind::Text(text.get(start + 1..i - 1).unwrap_or(""))
            }
            b'0'..=b'9' => number(text, &mut i).ok_or_else(|| {
                LoadError::new(line, "expected a number").with_text(word_at(text, start))
            })?,
            b if continues_word(b) => {
                while i < bytes.len() {
                    // `.reg.b32` is two directives; opcodes and registers keep their dots.
                    if b == b'.' && bytes[i] == b'.' && i > start {
                        break;
                    }
                    if continues_word(bytes[i]) {
                        i += 1;
                    } else if bytes[i] == b':' && at(i + 1) == b':' && continues_word(at(i + 2)) {
                        i += 2;
                    } else {
                        break;
                    }
                }
                Kind::Word(&text[start..i])
            }
            b if b.is_ascii_graphic() => {
                i += 1;
                Kind::Sign(b)
            }
            _ => return Err(LoadError::new(line, "unexpected character (PTX is ASCII)")),
        };
        out.push(Token { kind, line, start, end: i });
    }
    Ok(out)
}

fn word_at(text: &str, start: usize) -> &str {
    let rest = text.get(start..).unwrap_or("");
    rest.split(|c: char| c.is_whitespace() || c == ';' || c == ',').next().unwrap_or("")
}

fn number<'a>(text: &'a str, i: &mut usize) -> Option<Kind<'a>> {
    let bytes = text.as_bytes();
    let start = *i;
    let mut end = start;
    while end < bytes.len()
        && (bytes[end].is_ascii_alphanumeric()
            || bytes[end] == b'.'
            || (matches!(bytes[end], b'+' | b'-')
                && matches!(bytes[end - 1], b'e' | b'E')
                && text[start..end].contains('.')))
    {
        end += 1;
    }
    *i = end;
    let word = &text[start..end];
    let (head, tail) = word.split_at(word.len().min(2));
    match head {
        "0f" | "0F" if tail.len() == 8 => Some(Kind::Single(u32::from_str_radix(tail, 16).ok()?)),
        "0d" | "0D" if tail.len() == 16 => Some(Kind::Double(u64::from_str_radix(tail, 16).ok()?)),
        "0x" | "0X" => {
            Some(Kind::Integer(u64::from_str_radix(tail.trim_end_matches('U'), 16).ok()?))
        }
        "0b" | "0B" => {
            Some(Kind::Integer(u64::from_str_radix(tail.trim_end_matches('U'), 2).ok()?))
        }
        _ if word.contains('.') => Some(Kind::Double(word.parse::<f64>().ok()?.to_bits())),
        _ => {
            let digits = word.trim_end_matches('U');
            let octal = digits.len() > 1 && digits.starts_with('0');
            Some(Kind::Integer(u64::from_str_radix(digits, if octal { 8 } else { 10 }).ok()?))
        }
    }
}
