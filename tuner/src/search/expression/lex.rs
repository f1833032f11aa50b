//! Text to tokens.

use super::{ExpressionError, Value};

/// Longer symbols before those that they start with.
const SYMBOLS: [&str; 18] = [
    "**", "//", "<=", ">=", "==", "!=", "+", "-", "*", "/", "%", "<", ">", "(", ")", "[", "]", ",",
];

#[derive(Clone, Debug, PartialEq)]
pub enum Token {
    Constant(Value),
    /// A name or a keyword.
    Word(String),
    Symbol(&'static str),
    End,
}

impl Token {
    /// The token as an error message has it.
    pub fn describe(&self) -> String {
        match self {
            Self::Constant(value) => format!("`{value}`"),
            Self::Word(word) => format!("`{word}`"),
            Self::Symbol(symbol) => format!("`{symbol}`"),
            Self::End => "the end".into(),
        }
    }
}

/// The tokens of a text and the characters they start at, counted from 1; the last is the end.
pub fn tokens(text: &str) -> Result<Vec<(usize, Token)>, ExpressionError> {
    let characters: Vec<char> = text.chars().collect();
    let mut tokens = Vec::new();
    let mut at = 0;
    while let Some(&character) = characters.get(at) {
        let position = at + 1;
        let run = |from: usize, keep: &dyn Fn(char) -> bool| {
            from + characters[from..].iter().take_while(|c| keep(**c)).count()
        };
        if character.is_whitespace() {
            at += 1;
        } else if character.is_ascii_digit()
            || (character == '.' && characters.get(at + 1).is_some_and(char::is_ascii_digit))
        {
            let mut end = run(at, &|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_'));
            // The sign of an exponent, as in 1e-3.
            let starts_exponent = matches!(characters[end - 1], 'e' | 'E')
                && !matches!(characters.get(at + 1), Some('x' | 'X'));
            if starts_exponent && matches!(characters.get(end), Some('+' | '-')) {
                end = run(end + 1, &|c| c.is_ascii_digit());
            }
            let digits: String = characters[at..end].iter().collect();
            tokens.push((position, Token::Constant(number(&digits, position)?)));
            at = end;
        } else if character.is_alphabetic() || character == '_' {
            let end = run(at, &|c| c.is_alphanumeric() || c == '_');
            let word: String = characters[at..end].iter().collect();
            tokens.push((
                position,
                match word.as_str() {
                    "True" => Token::Constant(Value::Bool(true)),
                    "False" => Token::Constant(Value::Bool(false)),
                    _ => Token::Word(word),
                },
            ));
            at = end;
        } else if matches!(character, '"' | '\'') {
            let end = run(at + 1, &|c| c != character && c != '\\');
            if characters.get(end) != Some(&character) {
                let message = format!("expected a string without escapes that ends in {character}");
                return Err(ExpressionError::new(position, message));
            }
            let inner: String = characters[at + 1..end].iter().collect();
            tokens.push((position, Token::Constant(Value::Text(inner))));
            at = end + 1;
        } else {
            let starts = |symbol: &&&str| {
                symbol.chars().enumerate().all(|(i, c)| characters.get(at + i) == Some(&c))
            };
            let Some(symbol) = SYMBOLS.iter().find(starts) else {
                let message = format!("expected a value or an operator, found `{character}`");
                return Err(ExpressionError::new(position, message));
            };
            tokens.push((position, Token::Symbol(symbol)));
            at += symbol.len();
        }
    }
    tokens.push((characters.len() + 1, Token::End));
    Ok(tokens)
}

fn number(digits: &str, position: usize) -> Result<Value, ExpressionError> {
    let plain = digits.replace('_', "");
    let lower = plain.to_ascii_lowercase();
    let whole = match lower.strip_prefix("0x") {
        Some(hexadecimal) => i64::from_str_radix(hexadecimal, 16).ok(),
        None => plain.parse().ok(),
    };
    let is_float = !lower.starts_with("0x") && lower.contains(['.', 'e']);
    match (whole, is_float.then(|| plain.parse::<f64>())) {
        (Some(value), _) => Ok(Value::Int(value)),
        (None, Some(Ok(value))) if value.is_finite() => Ok(Value::Float(value)),
        _ => Err(ExpressionError::new(position, format!("`{digits}` is not a number of 64 bits"))),
    }
}
