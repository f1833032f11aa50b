//! What lanes of a warp tell each other. Each instruction runs with all lanes, and those that take a
//! set of members also with the even ones only.

use super::row::{Expected, Kind, Register, Row};

const WORD: Register = Register::Bits(32);

/// The members of a variant: all lanes, or the even ones.
fn members(even: bool) -> u32 {
    if even { 0x5555_5555 } else { u32::MAX }
}

/// The instruction for its members only; the results of others are zero.
fn guarded(instruction: &str, results: &[Register], even: bool) -> String {
    if !even {
        return instruction.to_owned();
    }
    let clear: String = results
        .iter()
        .enumerate()
        .map(|(at, register)| match register {
            Register::Predicate => format!(" setp.ne.u32 {{d{at}}}, %lane, %lane;\n"),
            Register::Bits(_) => format!(" mov.b32 {{d{at}}}, 0;\n"),
        })
        .collect();
    format!(
        "{{ .reg .pred %even; .reg .b32 %lane;\n mov.u32 %lane, %laneid;\n \
         and.b32 %lane, %lane, 1;\n setp.eq.u32 %even, %lane, 0;\n{clear} @%even {instruction} }}"
    )
}

/// Rows of an instruction over the members, all and even: the model gives the results of a lane from
/// the members' operands.
fn over_members(
    form: &'static str,
    instruction: &str,
    results: &'static [Register],
    kinds: &[Kind],
    model: impl Fn(&[&[u64]], usize, u32) -> Vec<u64> + Clone + Send + Sync + 'static,
) -> Vec<Row> {
    [false, true]
        .into_iter()
        .map(|even| {
            let model = model.clone();
            let text = instruction.replace("{members}", &format!("{:#x}", members(even)));
            Row::warp(form, results, kinds, move |s| {
                (0..s.len())
                    .map(|lane| {
                        let values = if members(even) >> lane & 1 == 1 {
                            model(s, lane, members(even))
                        } else {
                            vec![0; results.len()]
                        };
                        values.into_iter().map(Expected::Bits).collect()
                    })
                    .collect()
            })
            .body(guarded(&text, results, even))
            .variant(if even { "even lanes" } else { "" })
        })
        .collect()
}

fn lanes_of(mask: u32) -> impl Iterator<Item = usize> + Clone {
    (0..32).filter(move |lane| mask >> lane & 1 == 1)
}

/// The rows of exchanges.
pub(super) fn row(form: &'static str) -> Option<Vec<Row>> {
    let words: Vec<&'static str> = form.split('.').collect();
    let ty = *words.last()?;
    Some(match words[0] {
        "shfl" => shuffles(form, words[2]),
        "vote" => {
            let mode = words[2];
            let ballot = mode == "ballot";
            let results: &'static [Register] =
                if ballot { &[WORD] } else { &[Register::Predicate] };
            let rows = |negated: bool| {
                let text = format!(
                    "{form} {{d0}}, {}{{s0}}, {{members}};",
                    if negated { "!" } else { "" }
                );
                over_members(form, &text, results, &[Kind::Predicate], move |s, _, mask| {
                    let yes = lanes_of(mask).filter(|&lane| (s[lane][0] == 1) != negated);
                    let count = yes.clone().count();
                    vec![match mode {
                        "all" => u64::from(count == mask.count_ones() as usize),
                        "any" => u64::from(count > 0),
                        "uni" => u64::from(count == 0 || count == mask.count_ones() as usize),
                        _ => yes.map(|lane| 1 << lane).sum(),
                    }]
                })
            };
            let mut all = rows(false);
            for row in rows(true) {
                let variant =
                    if row.variant.is_empty() { "negated" } else { "negated, even lanes" };
                all.push(row.variant(variant));
            }
            all
        }
        "match" => {
            let kind = Kind::of(ty)?;
            // Few different values, so that lanes match.
            let same = |s: &[&[u64]], a: usize, b: usize| s[a][0] == s[b][0];
            if words[1] == "any" {
                let text = format!("{form} {{d0}}, {{s0}}, {{members}};");
                over_members(form, &text, &[WORD], &[kind], move |s, lane, mask| {
                    vec![lanes_of(mask).filter(|&o| same(s, lane, o)).map(|o| 1 << o).sum()]
                })
            } else {
                let text = format!("{form} {{d0}}|{{d1}}, {{s0}}, {{members}};");
                over_members(
                    form,
                    &text,
                    &[WORD, Register::Predicate],
                    &[kind],
                    move |s, lane, mask| {
                        let all = lanes_of(mask).all(|o| same(s, lane, o));
                        vec![if all { mask.into() } else { 0 }, all.into()]
                    },
                )
            }
        }
        "activemask" => {
            // Which lanes run together is the hardware's choice, but this one is among them.
            vec![Row::new(form, &[WORD], &[Kind::Predicate], |_| vec![Expected::Bits(1)]).body(
                format!(
                    "{{ .reg .b32 %lane;\n mov.u32 %lane, %laneid;\n {form} {{d0}};\n \
                         shr.u32 {{d0}}, {{d0}}, %lane;\n and.b32 {{d0}}, {{d0}}, 1; }}"
                ),
            )]
        }
        "redux" => {
            let what = words[2];
            let text = format!("{form} {{d0}}, {{s0}}, {{members}};");
            let rows =
                over_members(form, &text, &[WORD], &[Kind::Integer(32)], move |s, _, mask| {
                    let values = lanes_of(mask).map(|lane| s[lane][0]);
                    let value = |bits: u64| super::integers::value(bits, ty);
                    let out = match what {
                        "add" => values.fold(0, |sum: u64, v| sum.wrapping_add(v)),
                        "and" => values.fold(u64::MAX, |sum, v| sum & v),
                        "or" => values.fold(0, |sum, v| sum | v),
                        "xor" => values.fold(0, |sum, v| sum ^ v),
                        "min" => values.min_by_key(|&v| value(v)).unwrap_or(0),
                        _ => values.max_by_key(|&v| value(v)).unwrap_or(0),
                    };
                    vec![out & 0xffff_ffff]
                });
            rows.into_iter().map(|row| row.needs(80)).collect()
        }
        "elect" => {
            // One lane, the hardware's choice; all are told which.
            vec![
                Row::new(form, &[WORD, WORD], &[Kind::Predicate], |_| {
                    vec![Expected::Bits(1), Expected::Bits(1)]
                })
                .body(
                    "{ .reg .pred %leads; .reg .b32 %leader, %votes;\n \
                     elect.sync %leader|%leads, 0xffffffff;\n \
                     vote.sync.ballot.b32 %votes, %leads, 0xffffffff;\n \
                     popc.b32 {d0}, %votes;\n \
                     shr.u32 {d1}, %votes, %leader; }",
                )
                .needs(90),
            ]
        }
        _ => return None,
    })
}

/// `shfl.sync`: the manual's pseudocode. Amount and segments differ from lane to lane.
fn shuffles(form: &'static str, mode: &'static str) -> Vec<Row> {
    let model = move |s: &[&[u64]], by: &dyn Fn(usize) -> u64, segment: &dyn Fn(usize) -> u64| {
        (0..s.len() as i64)
            .map(|lane| {
                let (b, c) = (by(lane as usize), segment(lane as usize));
                let (b, clamp, mask) = ((b & 31) as i64, (c & 31) as i64, (c >> 8 & 31) as i64);
                let most = lane & mask | clamp & !mask & 31;
                let (from, fits) = match mode {
                    "up" => (lane - b, lane - b >= most),
                    "down" => (lane + b, lane + b <= most),
                    "bfly" => (lane ^ b, lane ^ b <= most),
                    _ => {
                        let from = lane & mask | b & !mask & 31;
                        (from, from <= most)
                    }
                };
                let from = if fits { from } else { lane };
                vec![Expected::Bits(s[from as usize][0]), Expected::Bits(fits.into())]
            })
            .collect::<Vec<_>>()
    };
    let results = [WORD, Register::Predicate];
    let mut rows = vec![
        Row::warp(
            form,
            &results,
            &[Kind::Integer(32), Kind::Amount, Kind::Integer(32)],
            move |s| model(s, &|lane| s[lane][1], &|lane| s[lane][2]),
        )
        .body(format!("{form} {{d0}}|{{d1}}, {{s0}}, {{s1}}, {{s2}}, 0xffffffff;")),
    ];
    // As compilers write it: one distance, the whole warp or parts of it.
    let whole = if mode == "up" { 0 } else { 0x1f };
    for (by, segment) in
        [(1u64, whole), (16, whole), (31, whole), (2, whole | 0x1800), (5, whole | 0x1c00)]
    {
        rows.push(
            Row::warp(form, &results, &[Kind::Integer(32)], move |s| {
                model(s, &|_| by, &|_| segment)
            })
            .body(format!("{form} {{d0}}|{{d1}}, {{s0}}, {by}, {segment:#x}, 0xffffffff;"))
            .variant(format!("by {by}, {segment:#x}")),
        );
    }
    rows
}
