//! `printf` in a kernel: the arguments of `vprintf` to text.

use crate::access::Outcome;
use crate::findings::{Check, Fault};
use crate::machine::{Machine, Warp};
use crate::memory::{LOCAL_BASE, MODULE_BASE, SHARED_BASE, WINDOW_BITS, WINDOW_MASK};
use crate::op::Op;

/// Bytes of output that are kept, the size of the buffer that CUDA has by default.
const MOST_PRINTED: usize = 1 << 20;
/// Bytes of a format or of a string argument that are read.
const MOST_STRING: usize = 1 << 16;

impl Machine<'_> {
    /// s = (format, arguments), both generic addresses; d the number of arguments. Lanes print one
    /// after the other.
    #[cold]
    #[inline(never)]
    pub(crate) fn print(&mut self, warp: &mut Warp, op: &Op, mask: u32) -> Outcome {
        let format = *warp.registers.read::<u64>(op.s[0]);
        let arguments = *warp.registers.read::<u64>(op.s[1]);
        let mut counts = [0u32; 32];
        for lane in (0..32).filter(|&lane| mask >> lane & 1 != 0) {
            let mut reader = Reader { machine: self, warp, lane, next: arguments[lane] };
            let text = match reader.string(format[lane]) {
                Some(format) => reader.formatted(&format),
                None => None,
            };
            let Some((text, count)) = text else {
                return Err(Fault::new(
                    Check::OutOfBounds,
                    1 << lane,
                    "printf reads a format or an argument that is in no allocation",
                ));
            };
            counts[lane] = count;
            if self.printed.len() + text.len() <= MOST_PRINTED {
                self.printed.push_str(&text);
            }
        }
        warp.registers.put(op.d[0], &counts, mask);
        Ok(())
    }
}

struct Reader<'r, 'm> {
    machine: &'r Machine<'m>,
    warp: &'r Warp,
    lane: usize,
    /// Address of the next argument.
    next: u64,
}

/// A conversion such as `%-8.3f`.
#[derive(Default)]
struct Conversion {
    left: bool,
    plus: bool,
    space: bool,
    alternate: bool,
    zero: bool,
    width: usize,
    precision: Option<usize>,
}

impl Reader<'_, '_> {
    fn byte(&self, address: u64) -> Option<u8> {
        let (window, offset) = (address >> WINDOW_BITS, (address & WINDOW_MASK) as usize);
        match window << WINDOW_BITS {
            SHARED_BASE => self.machine.shared.get(offset).copied(),
            LOCAL_BASE => {
                let stride = self.machine.kernel.local_bytes as usize;
                let at = self.lane * stride + offset;
                (offset < stride).then(|| self.warp.local.get(at).copied()).flatten()
            }
            _ => {
                let module = MODULE_BASE >> WINDOW_BITS;
                let allocation = if window >= module {
                    self.machine.module.get((window - module) as usize)
                } else {
                    self.machine.allocations.get((window as usize).wrapping_sub(1))?.as_ref()
                };
                allocation?.data.get(offset).copied()
            }
        }
    }

    fn string(&self, address: u64) -> Option<Vec<u8>> {
        let mut out = Vec::new();
        while out.len() < MOST_STRING {
            match self.byte(address.wrapping_add(out.len() as u64))? {
                0 => break,
                byte => out.push(byte),
            }
        }
        Some(out)
    }

    /// The next argument, which is aligned to its size.
    fn argument(&mut self, bytes: u64) -> Option<u64> {
        let at = self.next.wrapping_add(bytes - 1) & !(bytes - 1);
        let mut value = 0;
        for byte in 0..bytes {
            value |= u64::from(self.byte(at.wrapping_add(byte))?) << (8 * byte);
        }
        self.next = at.wrapping_add(bytes);
        Some(value)
    }

    /// The text, and the number of arguments; `None` where an address is bad.
    fn formatted(&mut self, format: &[u8]) -> Option<(String, u32)> {
        let mut out = Vec::new();
        let mut count = 0;
        let mut at = 0;
        while at < format.len() {
            if format[at] != b'%' {
                out.push(format[at]);
                at += 1;
                continue;
            }
            let start = at;
            at += 1;
            let mut conversion = Conversion::default();
            let mut longs = 0;
            let mut shorts = 0;
            while let Some(&byte) = format.get(at) {
                match byte {
                    b'-' => conversion.left = true,
                    b'+' => conversion.plus = true,
                    b' ' => conversion.space = true,
                    b'#' => conversion.alternate = true,
                    b'0' => conversion.zero = true,
                    _ => break,
                }
                at += 1;
            }
            conversion.width = match self.number(format, &mut at, &mut count)? {
                Some(width) if width < 0 => {
                    conversion.left = true;
                    width.unsigned_abs() as usize
                }
                width => width.unwrap_or(0) as usize,
            };
            if format.get(at) == Some(&b'.') {
                at += 1;
                let precision = self.number(format, &mut at, &mut count)?.unwrap_or(0);
                conversion.precision = usize::try_from(precision).ok();
            }
            while let Some(&byte) = format.get(at) {
                match byte {
                    b'l' | b'j' | b'z' | b't' => longs += 1,
                    b'h' => shorts += 1,
                    _ => break,
                }
                at += 1;
            }
            let kind = format.get(at).copied().unwrap_or(0);
            at += 1;
            let integer = if longs > 0 { 8 } else { 4 };
            match kind {
                b'%' => {
                    out.push(b'%');
                    continue;
                }
                b'd' | b'i' => {
                    let spare = 64 - 8 * integer as u32;
                    let mut value = ((self.argument(integer)? << spare) as i64) >> spare;
                    match shorts {
                        0 => {}
                        1 => value = i64::from(value as i16),
                        _ => value = i64::from(value as i8),
                    }
                    let digits = value.unsigned_abs().to_string();
                    conversion.integer(value < 0, &digits, "", &mut out);
                }
                b'u' | b'x' | b'X' | b'o' => {
                    let mut value = self.argument(integer)?;
                    match shorts {
                        0 => {}
                        1 => value &= 0xffff,
                        _ => value &= 0xff,
                    }
                    let (digits, prefix) = match kind {
                        b'u' => (value.to_string(), ""),
                        b'x' => (format!("{value:x}"), "0x"),
                        b'X' => (format!("{value:X}"), "0X"),
                        _ => (format!("{value:o}"), "0"),
                    };
                    let prefix = if conversion.alternate && value != 0 { prefix } else { "" };
                    conversion.plus = false;
                    conversion.space = false;
                    conversion.integer(false, &digits, prefix, &mut out);
                }
                b'c' => {
                    let value = self.argument(4)? as u8;
                    conversion.padded(&[value], &mut out);
                }
                b's' => {
                    let address = self.argument(8)?;
                    let mut text =
                        if address == 0 { b"(null)".to_vec() } else { self.string(address)? };
                    text.truncate(conversion.precision.unwrap_or(usize::MAX));
                    conversion.padded(&text, &mut out);
                }
                b'p' => {
                    let value = self.argument(8)?;
                    conversion.padded(format!("0x{value:x}").as_bytes(), &mut out);
                }
                b'f' | b'F' | b'e' | b'E' | b'g' | b'G' => {
                    let value = f64::from_bits(self.argument(8)?);
                    conversion.float(value, kind, &mut out);
                }
                // What is no conversion is printed as it stands.
                _ => {
                    out.extend_from_slice(&format[start..at.min(format.len())]);
                    continue;
                }
            }
            count += 1;
        }
        Some((String::from_utf8_lossy(&out).into_owned(), count))
    }

    /// A width or precision: digits, or `*` for an argument. The outer `None` is a bad address.
    fn number(&mut self, format: &[u8], at: &mut usize, count: &mut u32) -> Option<Option<i32>> {
        // Wider fields than this are cut, so that a kernel cannot ask for gigabytes.
        const WIDEST: i32 = 4096;
        if format.get(*at) == Some(&b'*') {
            *at += 1;
            *count += 1;
            return Some(Some((self.argument(4)? as i32).clamp(-WIDEST, WIDEST)));
        }
        let mut value = None;
        while let Some(digit) = format.get(*at).filter(|byte| byte.is_ascii_digit()) {
            value = Some((value.unwrap_or(0) * 10 + i32::from(digit - b'0')).min(WIDEST));
            *at += 1;
        }
        Some(value)
    }
}

impl Conversion {
    fn sign(&self, negative: bool) -> &'static str {
        match (negative, self.plus, self.space) {
            (true, ..) => "-",
            (false, true, _) => "+",
            (false, false, true) => " ",
            _ => "",
        }
    }

    fn padded(&self, text: &[u8], out: &mut Vec<u8>) {
        let pad = self.width.saturating_sub(text.len());
        if !self.left {
            out.extend(std::iter::repeat_n(b' ', pad));
        }
        out.extend_from_slice(text);
        if self.left {
            out.extend(std::iter::repeat_n(b' ', pad));
        }
    }

    /// Sign or prefix, zeros where asked for, digits.
    fn signed(&self, head: &str, digits: &str, zeros: bool, out: &mut Vec<u8>) {
        let length = head.len() + digits.len();
        let fill = if zeros && !self.left { self.width.saturating_sub(length) } else { 0 };
        self.padded(format!("{head}{}{digits}", "0".repeat(fill)).as_bytes(), out);
    }

    fn integer(&self, negative: bool, digits: &str, prefix: &str, out: &mut Vec<u8>) {
        let least = self.precision.unwrap_or(1);
        let digits = if least == 0 && digits == "0" { "" } else { digits };
        let digits = format!("{}{digits}", "0".repeat(least.saturating_sub(digits.len())));
        let head = format!("{}{prefix}", self.sign(negative));
        self.signed(&head, &digits, self.zero && self.precision.is_none(), out);
    }

    fn float(&self, value: f64, kind: u8, out: &mut Vec<u8>) {
        let head = self.sign(value.is_sign_negative() && !value.is_nan());
        let magnitude = value.abs();
        let upper = kind.is_ascii_uppercase();
        let case = |text: String| if upper { text.to_uppercase() } else { text };
        if !value.is_finite() {
            let text = if value.is_nan() { "nan" } else { "inf" };
            return self.signed(head, &case(text.to_owned()), false, out);
        }
        let precision = self.precision.unwrap_or(6);
        let text = match kind.to_ascii_lowercase() {
            b'f' => format!("{magnitude:.precision$}"),
            b'e' => scientific(magnitude, precision),
            _ => {
                let precision = precision.max(1);
                let whole = scientific(magnitude, precision - 1);
                let exponent: i32 =
                    whole.split_once('e').and_then(|(_, e)| e.parse().ok()).unwrap_or(0);
                let text = if exponent < -4 || exponent >= precision as i32 {
                    whole
                } else {
                    let places = (precision as i32 - 1 - exponent).max(0) as usize;
                    format!("{magnitude:.places$}")
                };
                if self.alternate { text } else { trimmed(&text) }
            }
        };
        self.signed(head, &case(text), self.zero, out);
    }
}

/// `1.5e+03`.
fn scientific(magnitude: f64, precision: usize) -> String {
    let text = format!("{magnitude:.precision$e}");
    match text.split_once('e') {
        Some((mantissa, exponent)) => {
            let exponent: i32 = exponent.parse().unwrap_or(0);
            let sign = if exponent < 0 { '-' } else { '+' };
            format!("{mantissa}e{sign}{:02}", exponent.abs())
        }
        None => text,
    }
}

/// Without the zeros that end a fraction.
fn trimmed(text: &str) -> String {
    let (mantissa, exponent) = match text.split_once('e') {
        Some((mantissa, exponent)) => (mantissa, format!("e{exponent}")),
        None => (text, String::new()),
    };
    if !mantissa.contains('.') {
        return text.to_owned();
    }
    format!("{}{exponent}", mantissa.trim_end_matches('0').trim_end_matches('.'))
}
