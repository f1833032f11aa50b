//! Integers, bits and moves, stated in 128-bit arithmetic. Long because it is a table.

use super::row::{Expected, Kind, Register, Row};

fn bits(ty: &str) -> u32 {
    ty[1..].parse().unwrap_or(32)
}

/// The low bits of a value as an integer of the type.
pub(super) fn value(bits_of: u64, ty: &str) -> i128 {
    let width = bits(ty);
    let low = bits_of & u64::MAX >> (64 - width);
    if ty.starts_with('s') && low >> (width - 1) & 1 == 1 {
        i128::from(low) - (1 << width)
    } else {
        i128::from(low)
    }
}

/// Least and greatest value of the type.
pub(super) fn range(ty: &str) -> (i128, i128) {
    let width = bits(ty);
    if ty.starts_with('s') {
        (-(1 << (width - 1)), (1 << (width - 1)) - 1)
    } else {
        (0, (1 << width) - 1)
    }
}

/// The low `width` bits of an integer.
pub(super) fn low(value: i128, width: u32) -> u64 {
    value as u64 & u64::MAX >> (64 - width)
}

fn one(bits: u64) -> Vec<Expected> {
    vec![Expected::Bits(bits)]
}

/// An instruction on integers of one type, given and returned as values.
fn whole(
    form: &'static str,
    ty: &'static str,
    count: usize,
    model: impl Fn(&[i128]) -> i128 + Send + Sync + 'static,
) -> Row {
    let width = bits(ty);
    Row::new(form, &[Register::Bits(width)], &vec![Kind::Integer(width); count], move |s| {
        let values: Vec<i128> = s.iter().map(|&bits| value(bits, ty)).collect();
        one(low(model(&values), width))
    })
}

/// The 16-bit halves of a packed operand, each given to the model.
fn halves(
    form: &'static str,
    signed: bool,
    model: impl Fn(i128, i128) -> i128 + Send + Sync + 'static,
) -> Row {
    let ty = if signed { "s16" } else { "u16" };
    Row::new(form, &[Register::Bits(32)], &[Kind::Integer(32); 2], move |s| {
        let part = |at: u32| {
            low(model(value(s[0] >> at & 0xffff, ty), value(s[1] >> at & 0xffff, ty)), 16)
        };
        one(part(0) | part(16) << 16)
    })
}

/// The rows of integer instructions.
pub(super) fn row(form: &'static str) -> Option<Vec<Row>> {
    let words: Vec<&'static str> = form.split('.').collect();
    let base = words[0];
    let ty = *words.last()?;
    if let Some(rows) = video(form, &words) {
        return Some(rows);
    }
    if !matches!(ty.as_bytes().first(), Some(b'u' | b's' | b'b')) || ty == "bf16" || ty == "bf16x2"
    {
        return None;
    }
    if let Some(rows) = carries(form, &words, ty) {
        return Some(rows);
    }
    let has = |word: &str| words.contains(&word);
    let width = bits(ty);
    if matches!(ty, "u16x2" | "s16x2") {
        let relu = has("relu");
        let floor = move |v: i128| if relu { v.max(0) } else { v };
        let signed = ty == "s16x2";
        return Some(vec![match base {
            "add" => halves(form, signed, |a, b| a + b).needs(90),
            "min" => halves(form, signed, move |a, b| floor(a.min(b))).needs(90),
            "max" => halves(form, signed, move |a, b| floor(a.max(b))).needs(90),
            _ => return None,
        }]);
    }
    let relu = has("relu");
    let floor = move |v: i128| if relu { v.max(0) } else { v };
    Some(vec![match base {
        "add" | "sub" => {
            let saturate = has("sat");
            let minus = base == "sub";
            whole(form, ty, 2, move |s| {
                let sum = if minus { s[0] - s[1] } else { s[0] + s[1] };
                let (least, most) = range(ty);
                if saturate { sum.clamp(least, most) } else { sum }
            })
        }
        "mul" if has("wide") => {
            Row::new(form, &[Register::Bits(2 * width)], &[Kind::Integer(width); 2], move |s| {
                one(low(value(s[0], ty) * value(s[1], ty), 2 * width))
            })
        }
        "mul" => {
            let shift = if has("hi") { width } else { 0 };
            whole(form, ty, 2, move |s| product(s[0], s[1], shift))
        }
        "mad" if has("wide") => Row::new(
            form,
            &[Register::Bits(2 * width)],
            &[Kind::Integer(width), Kind::Integer(width), Kind::Integer(2 * width)],
            move |s| one(low(value(s[0], ty) * value(s[1], ty) + i128::from(s[2]), 2 * width)),
        ),
        "mad" => {
            let shift = if has("hi") { width } else { 0 };
            whole(form, ty, 3, move |s| product(s[0], s[1], shift).wrapping_add(s[2]))
        }
        // The low 24 bits of each factor; `.hi` is bits 16 to 47 of the product.
        "mul24" | "mad24" => {
            let narrow = if ty == "s32" { "s24" } else { "u24" };
            let shift = if has("hi") { 16 } else { 0 };
            let count = if base == "mad24" { 3 } else { 2 };
            whole(form, ty, count, move |s| {
                let part = |v: i128| value(v as u64 & 0xff_ffff, narrow);
                ((part(s[0]) * part(s[1])) >> shift) + s.get(2).copied().unwrap_or(0)
            })
        }
        "sad" => whole(form, ty, 3, |s| s[2] + (s[0] - s[1]).abs()),
        // Division by zero: "an unspecified, machine-specific value".
        "div" | "rem" => {
            let quotient = base == "div";
            Row::new(form, &[Register::Bits(width)], &[Kind::Integer(width); 2], move |s| {
                let (a, b) = (value(s[0], ty), value(s[1], ty));
                if b == 0 {
                    return vec![Expected::Open];
                }
                one(low(if quotient { a / b } else { a % b }, width))
            })
        }
        "abs" => whole(form, ty, 1, |s| s[0].abs()),
        "neg" => whole(form, ty, 1, |s| -s[0]),
        "min" => {
            whole(form, ty, 2, move |s| floor(s[0].min(s[1]))).needs(if relu { 90 } else { 75 })
        }
        "max" => {
            whole(form, ty, 2, move |s| floor(s[0].max(s[1]))).needs(if relu { 90 } else { 75 })
        }
        "popc" | "clz" | "bfind" => {
            let shift_amount = has("shiftamt");
            let what = base;
            Row::new(form, &[Register::Bits(32)], &[Kind::Integer(width)], move |s| {
                let digits =
                    |wanted: bool| (0..width).filter(move |at| (s[0] >> at & 1 == 1) == wanted);
                one(match what {
                    "popc" => digits(true).count() as u64,
                    "clz" => digits(true).next_back().map_or(width, |at| width - 1 - at).into(),
                    // Of a negative number the most significant zero.
                    _ => match digits(value(s[0], ty) >= 0).next_back() {
                        None => 0xffff_ffff,
                        Some(at) if shift_amount => u64::from(width - 1 - at),
                        Some(at) => at.into(),
                    },
                })
            })
        }
        "brev" => Row::new(form, &[Register::Bits(width)], &[Kind::Integer(width)], move |s| {
            one((0..width).filter(|at| s[0] >> at & 1 == 1).map(|at| 1 << (width - 1 - at)).sum())
        }),
        "bfe" => Row::new(
            form,
            &[Register::Bits(width)],
            &[Kind::Integer(width), Kind::Amount, Kind::Amount],
            move |s| {
                let (at, length) = ((s[1] & 255) as u32, (s[2] & 255) as u32);
                let top = width - 1;
                let fill = ty.starts_with('s')
                    && length > 0
                    && s[0] >> (at + length - 1).min(top) & 1 == 1;
                one((0..width)
                    .filter(|&i| {
                        if i < length && at + i <= top { s[0] >> (at + i) & 1 == 1 } else { fill }
                    })
                    .map(|i| 1 << i)
                    .sum())
            },
        ),
        "bfi" => Row::new(
            form,
            &[Register::Bits(width)],
            &[Kind::Integer(width), Kind::Integer(width), Kind::Amount, Kind::Amount],
            move |s| {
                let (at, length) = ((s[2] & 255) as u32, (s[3] & 255) as u32);
                let mut out = s[1];
                for i in (0..length).take_while(|i| at + i < width) {
                    out = out & !(1 << (at + i)) | (s[0] >> i & 1) << (at + i);
                }
                one(out)
            },
        ),
        "dp4a" => {
            let (x, y) = (words[1], words[2]);
            Row::new(form, &[Register::Bits(32)], &[Kind::Integer(32); 3], move |s| {
                let byte = |word: u64, at: u32, ty: &str| {
                    value(word >> (8 * at) & 255, if ty == "s32" { "s8" } else { "u8" })
                };
                let sum: i128 = (0..4).map(|at| byte(s[0], at, x) * byte(s[1], at, y)).sum();
                one(low(sum + i128::from(s[2]), 32))
            })
        }
        "dp2a" => {
            let (x, y) = (words[2], words[3]);
            let first = if has("hi") { 2 } else { 0 };
            Row::new(form, &[Register::Bits(32)], &[Kind::Integer(32); 3], move |s| {
                let sum: i128 = (0..2)
                    .map(|at| {
                        let half = if x == "s32" { "s16" } else { "u16" };
                        let byte = if y == "s32" { "s8" } else { "u8" };
                        value(s[0] >> (16 * at) & 0xffff, half)
                            * value(s[1] >> (8 * (at + first)) & 255, byte)
                    })
                    .sum();
                one(low(sum + i128::from(s[2]), 32))
            })
        }
        "cnot" => whole(form, ty, 1, |s| i128::from(s[0] == 0)),
        "not" => whole(form, ty, 1, |s| !s[0]),
        "and" => whole(form, ty, 2, |s| s[0] & s[1]),
        "or" => whole(form, ty, 2, |s| s[0] | s[1]),
        "xor" => whole(form, ty, 2, |s| s[0] ^ s[1]),
        "lop3" => return Some(lookups(form)),
        // Amounts beyond the width are the width.
        "shl" | "shr" => {
            let left = base == "shl";
            Row::new(
                form,
                &[Register::Bits(width)],
                &[Kind::Integer(width), Kind::Amount],
                move |s| {
                    let by = s[1].min(u64::from(width)) as u32;
                    one(low(
                        if left { value(s[0], ty) << by } else { value(s[0], ty) >> by },
                        width,
                    ))
                },
            )
        }
        "shf" => {
            let (left, wrap) = (has("l"), has("wrap"));
            Row::new(
                form,
                &[Register::Bits(32)],
                &[Kind::Integer(32), Kind::Integer(32), Kind::Amount],
                move |s| {
                    let by = if wrap { s[2] & 31 } else { s[2].min(32) };
                    let both = u128::from(s[1]) << 32 | u128::from(s[0]);
                    one((if left { both << by >> 32 } else { both >> by }) as u64 & 0xffff_ffff)
                },
            )
        }
        _ => return None,
    }])
}

fn product(a: i128, b: i128, shift: u32) -> i128 {
    // 64-bit unsigned factors fill 128 bits.
    match a.checked_mul(b) {
        Some(product) => product >> shift,
        None => ((a as u128).wrapping_mul(b as u128) >> shift) as i128,
    }
}

/// Some tables of `lop3`: each input, parity, majority, selection, and two without a name.
fn lookups(form: &'static str) -> Vec<Row> {
    [0x00u64, 0xf0, 0xcc, 0xaa, 0x96, 0xe8, 0xca, 0x3c, 0x1b, 0xff]
        .into_iter()
        .map(|table| {
            Row::new(form, &[Register::Bits(32)], &[Kind::Integer(32); 3], move |s| {
                let row = |at: u32| (s[0] >> at & 1) << 2 | (s[1] >> at & 1) << 1 | s[2] >> at & 1;
                one((0..32).map(|at| (table >> row(at) & 1) << at).sum())
            })
            .body(format!("{form} {{d0}}, {{s0}}, {{s1}}, {{s2}}, {table:#x};"))
            .variant(format!("{table:#04x}"))
        })
        .collect()
}

/// `prmt`, whose mode stands behind the type.
pub(super) fn permute(form: &'static str) -> Option<Vec<Row>> {
    let mode = form.strip_prefix("prmt.b32")?.trim_start_matches('.');
    // For each value of the selector's low bits the source bytes of result bytes 3 to 0, as the
    // manual tabulates them.
    let table: [[u32; 4]; 4] = match mode {
        "f4e" => [[3, 2, 1, 0], [4, 3, 2, 1], [5, 4, 3, 2], [6, 5, 4, 3]],
        "b4e" => [[5, 6, 7, 0], [6, 7, 0, 1], [7, 0, 1, 2], [0, 1, 2, 3]],
        "rc8" => [[0; 4], [1; 4], [2; 4], [3; 4]],
        "ecl" => [[3, 2, 1, 0], [3, 2, 1, 1], [3, 2, 2, 2], [3, 3, 3, 3]],
        "ecr" => [[0, 0, 0, 0], [1, 1, 1, 0], [2, 2, 1, 0], [3, 2, 1, 0]],
        "rc16" => [[1, 0, 1, 0], [3, 2, 3, 2], [1, 0, 1, 0], [3, 2, 3, 2]],
        _ => [[0; 4]; 4],
    };
    let plain = mode.is_empty();
    Some(vec![Row::new(form, &[Register::Bits(32)], &[Kind::Integer(32); 3], move |s| {
        let both = s[1] << 32 | s[0];
        let byte = |index: u32| both >> (8 * index) & 255;
        let out = (0..4u32).map(|at| {
            let value = if plain {
                let control = (s[2] >> (4 * at) & 15) as u32;
                let value = byte(control & 7);
                match control & 8 != 0 {
                    true if value >= 128 => 255,
                    true => 0,
                    false => value,
                }
            } else {
                byte(table[(s[2] & 3) as usize][3 - at as usize])
            };
            value << (8 * at)
        });
        one(out.sum())
    })])
}

/// Additions with carry. The carry that goes in is made by an addition before, the one that comes
/// out is read by one after. That of a subtraction is set where nothing was borrowed: the manual
/// speaks of a borrow, but compiled code reads the flag with `addc`.
fn carries(form: &'static str, words: &[&'static str], ty: &'static str) -> Option<Vec<Row>> {
    let base = words[0];
    let writes = words.contains(&"cc");
    let reads = matches!(base, "addc" | "subc" | "madc");
    if !(writes || reads) {
        return None;
    }
    let width = bits(ty);
    let count = if base.starts_with("mad") { 3 } else { 2 };
    let high = words.contains(&"hi");
    let sources: Vec<String> = (0..count).map(|at| format!("{{s{at}}}")).collect();
    let mut kinds = vec![Kind::Integer(width); count];
    kinds.push(Kind::Predicate);
    let body = format!(
        "{{ .reg .b32 %in, %made;\n selp.b32 %in, 0xffffffff, 0, {{s{count}}};\n \
         add.cc.u32 %made, %in, 1;\n {form} {{d0}}, {};\n addc.u32 {{d1}}, 0, 0; }}",
        sources.join(", ")
    );
    Some(vec![
        Row::new(form, &[Register::Bits(width), Register::Bits(32)], &kinds, move |s| {
            let carry = i128::from(s[count]);
            let modulus = u64::MAX >> (64 - width);
            let (a, b) = (i128::from(s[0] & modulus), i128::from(s[1] & modulus));
            let going_in = if reads { carry } else { i128::from(base == "sub") };
            let total = match base {
                "add" | "addc" => a + b + going_in,
                "sub" | "subc" => a + i128::from(!s[1] & modulus) + going_in,
                _ => {
                    let shift = if high { width } else { 0 };
                    let part = low(product(value(s[0], ty), value(s[1], ty), shift), width);
                    i128::from(part) + i128::from(s[2] & modulus) + going_in
                }
            };
            let out = if writes { (total >> width & 1) as u64 } else { s[count] };
            vec![Expected::Bits(low(total, width)), Expected::Bits(out)]
        })
        .body(body),
    ])
}

/// `vadd2` to `vset4`: lanes of 16 or 8 bits of a word.
fn video(form: &'static str, words: &[&'static str]) -> Option<Vec<Row>> {
    let base = words[0].strip_prefix('v')?;
    let lanes: u32 = base.strip_suffix('2').map(|_| 2).or(base.strip_suffix('4').map(|_| 4))?;
    let what = &base[..base.len() - 1];
    let width = 32 / lanes;
    let narrow = move |ty: &str| -> &'static str {
        match (ty, width) {
            ("s32", 16) => "s16",
            ("u32", 16) => "u16",
            ("s32", _) => "s8",
            _ => "u8",
        }
    };
    let set = what == "set";
    let types: Vec<&'static str> =
        words[1..].iter().filter(|w| matches!(**w, "u32" | "s32")).map(|ty| narrow(ty)).collect();
    let (result, x, y) = match types[..] {
        [x, y] if set => ("u32", x, y),
        [d, x, y] => (d, x, y),
        _ => return None,
    };
    let comparison = words.last().copied().filter(|_| set).unwrap_or("");
    let comparison = if comparison == "add" { words[words.len() - 2] } else { comparison };
    let sum = words.last() == Some(&"add");
    let saturate = words.contains(&"sat");
    Some(vec![Row::new(form, &[Register::Bits(32)], &[Kind::Integer(32); 3], move |s| {
        let part = |word: u64, at: u32, ty: &str| value(word >> (at * width), ty);
        let results = (0..lanes).map(|at| {
            let (a, b) = (part(s[0], at, x), part(s[1], at, y));
            let value = match what {
                "add" => a + b,
                "sub" => a - b,
                // Rounds halves away from zero.
                "avrg" => (a + b + i128::from(a + b >= 0)) >> 1,
                "absdiff" => (a - b).abs(),
                "min" => a.min(b),
                "max" => a.max(b),
                _ => i128::from(match comparison {
                    "eq" => a == b,
                    "ne" => a != b,
                    "lt" => a < b,
                    "le" => a <= b,
                    "gt" => a > b,
                    _ => a >= b,
                }),
            };
            if saturate {
                let (least, most) = range(result);
                value.clamp(least, most)
            } else {
                value
            }
        });
        one(if sum {
            low(results.sum::<i128>() + i128::from(s[2]), 32)
        } else {
            results.enumerate().map(|(at, v)| low(v, width) << (at as u32 * width)).sum()
        })
    })])
}

/// Moves, selections and what works on predicates.
pub(super) fn moves(form: &'static str) -> Option<Vec<Row>> {
    let words: Vec<&'static str> = form.split('.').collect();
    let ty = *words.last()?;
    let predicates = || vec![Kind::Predicate; 2];
    Some(match (words[0], ty) {
        ("and" | "or" | "xor", "pred") => {
            let base = words[0];
            vec![Row::new(form, &[Register::Predicate], &predicates(), move |s| {
                one(match base {
                    "and" => s[0] & s[1],
                    "or" => s[0] | s[1],
                    _ => s[0] ^ s[1],
                })
            })]
        }
        ("not", "pred") => {
            vec![Row::new(form, &[Register::Predicate], &[Kind::Predicate], |s| one(1 - s[0]))]
        }
        ("mov", "pred") => {
            vec![Row::new(form, &[Register::Predicate], &[Kind::Predicate], |s| one(s[0]))]
        }
        ("mov", _) => {
            let kind = Kind::of(ty)?;
            let mut rows = vec![Row::new(form, &[kind.register()], &[kind], |s| one(s[0]))];
            let parts: &[(u32, usize)] = match ty {
                "b32" => &[(16, 2)],
                "b64" => &[(32, 2), (16, 4)],
                _ => &[],
            };
            for &(width, count) in parts {
                rows.push(pack(form, width, count));
                rows.push(unpack(form, width, count));
            }
            rows
        }
        ("selp", _) => {
            let kind = Kind::of(ty)?;
            let kinds = [kind, kind, Kind::Predicate];
            vec![Row::new(form, &[kind.register()], &kinds, |s| {
                one(s[if s[2] == 1 { 0 } else { 1 }])
            })]
        }
        ("slct", by) => {
            let kind = Kind::of(words[words.len() - 2])?;
            let flush = words.contains(&"ftz");
            let by = Kind::of(by)?;
            vec![Row::new(form, &[kind.register()], &[kind, kind, by], move |s| {
                let c = s[2] as u32;
                let first = if by == Kind::F32 {
                    let c = if flush && c & 0x7f80_0000 == 0 { c & 0x8000_0000 } else { c };
                    f32::from_bits(c) >= 0.0
                } else {
                    c >> 31 == 0
                };
                one(s[if first { 0 } else { 1 }])
            })]
        }
        _ => return None,
    })
}

fn pack(form: &'static str, width: u32, count: usize) -> Row {
    let parts: Vec<String> = (0..count).map(|at| format!("{{s{at}}}")).collect();
    Row::new(
        form,
        &[Register::Bits(width * count as u32)],
        &vec![Kind::Integer(width); count],
        move |s| one(s.iter().enumerate().map(|(at, part)| part << (width * at as u32)).sum()),
    )
    .body(format!("{form} {{d0}}, {{{}}};", parts.join(", ")))
    .variant(format!("from {count} x {width}"))
}

fn unpack(form: &'static str, width: u32, count: usize) -> Row {
    let parts: Vec<String> = (0..count).map(|at| format!("{{d{at}}}")).collect();
    Row::new(
        form,
        &vec![Register::Bits(width); count],
        &[Kind::Integer(width * count as u32)],
        move |s| {
            let part = |at: usize| s[0] >> (width * at as u32) & u64::MAX >> (64 - width);
            (0..count).map(|at| Expected::Bits(part(at))).collect()
        },
    )
    .body(format!("{form} {{{}}}, {{s0}};", parts.join(", ")))
    .variant(format!("to {count} x {width}"))
}
