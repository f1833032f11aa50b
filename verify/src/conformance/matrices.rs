//! Matrix instructions. Where an element of a matrix stands is written as the manual draws it
//! (section 9.7.15.5): by the lane's group, `lane / 4`, and its place in the group, `lane % 4`.

use super::exact::{BF16, E4M3, E5M2, F16, F32, F64, Format, Mode, Number, TF32};
use super::integers::{low, value};
use super::row::{Expected, Kind, Modest, Precision, Register, Row};

/// The rows of matrix instructions.
pub(super) fn row(form: &'static str) -> Option<Vec<Row>> {
    let words: Vec<&'static str> = form.split('.').collect();
    match words[0] {
        "ldmatrix" | "stmatrix" => Some(vec![moves(form, &words)]),
        "movmatrix" => Some(vec![transpose(form)]),
        "mma" => products(form, &words).map(|row| vec![row]),
        _ => None,
    }
}

/// A lane keeps two 16-bit elements of each 8x8 matrix: of row `lane / 4`, or of that column if the
/// matrix is transposed. Rows are 16 bytes at the address of a lane: of lane 8 i + r for row r of
/// matrix i.
fn moves(form: &'static str, words: &[&'static str]) -> Row {
    let count: usize = words.iter().find_map(|w| w.strip_prefix('x')?.parse().ok()).unwrap_or(1);
    let transposed = words.contains(&"trans");
    let load = words[0] == "ldmatrix";
    // Row and column of the element of a lane in the low or the high half of its register.
    let place = move |lane: usize, high: usize| {
        let (line, at) = (lane / 4, 2 * (lane % 4) + high);
        if transposed { (at, line) } else { (line, at) }
    };
    let names: Vec<String> =
        (0..count).map(|at| format!("{{{}{at}}}", if load { 'd' } else { 's' })).collect();
    let list = format!("{{{}}}", names.join(", "));
    let begin = "{ .shared .align 16 .b8 rows[2048];\n .reg .b64 %row, %lane;\n .reg .b32 %thread, %at;\n \
                 mov.u32 %thread, %tid.x;\n mul.wide.u32 %lane, %thread, 16;\n mov.u64 %row, rows;\n \
                 add.u64 %row, %row, %lane;\n cvt.u32.u64 %at, %row;\n";
    if load {
        return Row::warp(
            form,
            &vec![Register::Bits(32); count],
            &[Kind::Integer(64); 2],
            move |s| {
                let element = |matrix: usize, row: usize, column: usize| {
                    s[8 * matrix + row][column / 4] >> (16 * (column % 4)) & 0xffff
                };
                (0..32)
                    .map(|lane| {
                        (0..count)
                            .map(|matrix| {
                                let half = |high| {
                                    let (row, column) = place(lane, high);
                                    element(matrix, row, column)
                                };
                                Expected::Bits(half(0) | half(1) << 16)
                            })
                            .collect()
                    })
                    .collect()
            },
        )
        .body(format!(
            "{begin} st.shared.b64 [%at], {{s0}};\n st.shared.b64 [%at+8], {{s1}};\n \
             bar.warp.sync 0xffffffff;\n {form} {list}, [%at]; }}"
        ));
    }
    Row::warp(form, &[Register::Bits(64); 2], &vec![Kind::Integer(32); count], move |s| {
        let mut rows = vec![[0u64; 2]; 32];
        for (lane, registers) in s.iter().enumerate() {
            for matrix in 0..count {
                for high in 0..2 {
                    let (row, column) = place(lane, high);
                    let value = registers[matrix] >> (16 * high) & 0xffff;
                    rows[8 * matrix + row][column / 4] |= value << (16 * (column % 4));
                }
            }
        }
        rows.into_iter().map(|row| row.map(Expected::Bits).to_vec()).collect()
    })
    .body(format!(
        "{begin} st.shared.b64 [%at], 0;\n st.shared.b64 [%at+8], 0;\n bar.warp.sync 0xffffffff;\n \
         {form} [%at], {list};\n bar.warp.sync 0xffffffff;\n \
         ld.shared.b64 {{d0}}, [%at];\n ld.shared.b64 {{d1}}, [%at+8]; }}"
    ))
    .needs(90)
}

/// The element of row i and column j goes to where that of row j and column i was.
fn transpose(form: &'static str) -> Row {
    Row::warp(form, &[Register::Bits(32)], &[Kind::Integer(32)], |s| {
        let element =
            |row: usize, column: usize| s[4 * row + column / 2][0] >> (16 * (column % 2)) & 0xffff;
        (0..32)
            .map(|lane| {
                let (group, place) = (lane / 4, 2 * (lane % 4));
                let word = element(place, group) | element(place + 1, group) << 16;
                vec![Expected::Bits(word)]
            })
            .collect()
    })
    .body(format!("{form} {{d0}}, {{s0}};"))
    .version(78)
}

/// What the elements of a matrix are.
#[derive(Clone, Copy)]
enum Element {
    Float(Format, Modest),
    Byte(&'static str),
}

impl Element {
    fn of(ty: &str) -> Option<Self> {
        Some(match ty {
            "f64" => Self::Float(F64, Modest::F64),
            "tf32" => Self::Float(TF32, Modest::F32),
            "f16" => Self::Float(F16, Modest::F16x2),
            "bf16" => Self::Float(BF16, Modest::Bf16x2),
            "e4m3" => Self::Float(E4M3, Modest::E4m3x4),
            "e5m2" => Self::Float(E5M2, Modest::E5m2x4),
            "s8" => Self::Byte("s8"),
            "u8" => Self::Byte("u8"),
            _ => return None,
        })
    }

    fn kind(self) -> Kind {
        match self {
            Self::Float(_, modest) => Kind::Modest(modest),
            Self::Byte(_) => Kind::Integer(32),
        }
    }

    /// Elements of one register.
    fn per_register(self) -> usize {
        match self {
            Self::Float(F64 | TF32, _) => 1,
            Self::Float(F16 | BF16, _) => 2,
            _ => 4,
        }
    }

    fn number(self, register: u64, at: usize) -> Number {
        match self {
            Self::Float(F64, _) => F64.number(register),
            // The low 13 bits do not count.
            Self::Float(TF32, _) => TF32.number(register >> 13 & 0x7ffff),
            Self::Float(format, _) => {
                let bits = format.bits as usize;
                format.number(register >> (bits * at) & ((1 << bits) - 1))
            }
            Self::Byte(ty) => Number::integer(value(register >> (8 * at), ty)),
        }
    }
}

fn products(form: &'static str, words: &[&'static str]) -> Option<Row> {
    let shape = *words.iter().find(|w| w.starts_with('m') && w.contains('n') && **w != "mma")?;
    let (rows, depth): (usize, usize) = {
        let (m, rest) = shape[1..].split_once('n')?;
        (m.parse().ok()?, rest.split_once('k')?.1.parse().ok()?)
    };
    let [.., to, a, b, c] = words[..] else { return None };
    if to != c {
        return None;
    }
    let (left, right) = (Element::of(a)?, Element::of(b)?);
    let per = left.per_register();
    let a_registers = rows * depth / 32 / per;
    let b_registers = 8 * depth / 32 / per;
    let c_elements = rows * 8 / 32;
    let sum_format = match to {
        "f64" => F64,
        "f16" => F16,
        _ => F32,
    };
    let (c_kind, c_registers) = match to {
        "f64" => (Kind::Modest(Modest::F64), c_elements),
        "f16" => (Kind::Modest(Modest::F16x2), c_elements / 2),
        "s32" => (Kind::Integer(32), c_elements),
        _ => (Kind::Modest(Modest::F32), c_elements),
    };
    let mut kinds = vec![left.kind(); a_registers];
    kinds.extend(vec![right.kind(); b_registers]);
    kinds.extend(vec![c_kind; c_registers]);
    let saturate = words.contains(&"satfinite");
    let results = vec![c_kind.register(); c_registers];
    let eighth = matches!(a, "e4m3" | "e5m2");

    let model = move |s: &[&[u64]]| {
        // Row i of A is spread over the four lanes of group i % 8: their registers hold `per`
        // neighbouring columns each, then the lower eight rows, then the next 4 * per columns.
        let in_a = |row: usize, k: usize| {
            let lane = 4 * (row % 8) + k % (4 * per) / per;
            let register = if rows == 16 { row / 8 + 2 * (k / (4 * per)) } else { k / (4 * per) };
            left.number(s[lane][register], k % per)
        };
        let in_b = |k: usize, column: usize| {
            let lane = 4 * column + k % (4 * per) / per;
            right.number(s[lane][a_registers + k / (4 * per)], k % per)
        };
        let first_c = a_registers + b_registers;
        (0..32usize)
            .map(|lane| {
                let element = |index: usize| {
                    let (row, column) = (lane / 4 + 8 * (index / 2), 2 * (lane % 4) + index % 2);
                    let terms: Vec<Number> =
                        (0..depth).map(|k| in_a(row, k).times(in_b(k, column))).collect();
                    if to == "s32" {
                        let whole = |n: &Number| n.clamped(-(1 << 100), 1 << 100).unwrap_or(0);
                        let sum: i128 = terms.iter().map(whole).sum();
                        let sum = sum + value(s[lane][first_c + index], "s32");
                        let sum = if saturate {
                            sum.clamp(i32::MIN.into(), i32::MAX.into())
                        } else {
                            sum
                        };
                        return Expected::Bits(low(sum, 32));
                    }
                    let start = if to == "f16" {
                        F16.number(s[lane][first_c + index / 2] >> (16 * (index % 2)) & 0xffff)
                    } else {
                        sum_format.number(s[lane][first_c + index])
                    };
                    if to == "f64" {
                        let sum = terms.iter().fold(start, |sum, &term| {
                            // A fused multiply-add for each.
                            F64.number(F64.round(sum.plus(term, Mode::Nearest), Mode::Nearest))
                        });
                        return Expected::Bits(F64.round(sum, Mode::Nearest));
                    }
                    bound(start, &terms, sum_format, eighth)
                };
                match to {
                    "f16" => (0..c_registers)
                        .map(|at| Expected::Pair(Box::new([element(2 * at), element(2 * at + 1)])))
                        .collect(),
                    _ => (0..c_registers).map(element).collect(),
                }
            })
            .collect()
    };
    let part = |prefix: char, first: usize, count: usize| {
        let names: Vec<String> =
            (first..first + count).map(|at| format!("{{{prefix}{at}}}")).collect();
        format!("{{{}}}", names.join(", "))
    };
    let body = format!(
        "{form} {}, {}, {}, {};",
        part('d', 0, c_registers),
        part('s', 0, a_registers),
        part('s', a_registers, b_registers),
        part('s', a_registers + b_registers, c_registers),
    );
    let needs = match a {
        "e4m3" | "e5m2" => 89,
        "f16" if shape == "m16n8k8" => 75,
        "s8" | "u8" if shape == "m8n8k16" => 75,
        _ => 80,
    };
    let version = if eighth && to == "f16" { 87 } else { 78 };
    let row = Row::warp(form, &results, &kinds, model).body(body).needs(needs).version(version);
    Some(match to {
        "s32" | "f64" => row,
        _ => Row { precision: Precision::Approximate("9.7.15.5", sum_format), ..row },
    })
}

/// A sum whose order and rounding the manual leaves open: "accumulation ... with at least single
/// precision". Each of the additions may cut off what is below the 24th bit (of 8-bit floats on
/// Ada below the 14th).
fn bound(start: Number, terms: &[Number], format: Format, eighth: bool) -> Expected {
    let value = |n: &Number| f64::from_bits(F64.round(*n, Mode::Nearest));
    // Products of f32 and narrower are exact in f64, and so, within these exponents, are their sums.
    let all: Vec<f64> = terms.iter().chain([&start]).map(value).collect();
    let exact: f64 = all.iter().sum();
    let size: f64 = all.iter().map(|v| v.abs()).sum();
    let bits = if eighth { -13 } else { -23 };
    let mut error = size * 2f64.powi(bits) * (all.len() as f64);
    if format == F16 {
        // Rounded to f16 once per step of eight terms, or after all.
        error += 2.0 * (exact.abs() + size / 2.0) * 2f64.powi(-11) + 2f64.powi(-25);
    }
    Expected::Near { format, exact, error }
}
