//! The list of opcode forms: every opcode with every order of modifiers and types that computes
//! something, or moves it. `decode` refuses what is not in it, so that whoever tests each form of
//! the list has tested all that can be loaded.
//!
//! Cache and ordering hints of memory operations are no part of a form: they change no result.

use std::collections::HashSet;
use std::sync::LazyLock;

use crate::syntax::Type;

/// `{a|b}` stands for `a` or `b`; an alternative may be empty.
const GRAMMAR: &[&str] = &[
    // Integers.
    "add.{u16|u32|u64|s16|s32|s64|u16x2|s16x2}",
    "add.sat.s32",
    "sub.{u16|u32|u64|s16|s32|s64}",
    "sub.sat.s32",
    "mul.{lo|hi}.{u16|u32|u64|s16|s32|s64}",
    "mul.wide.{u16|u32|s16|s32}",
    "mul24.{lo|hi}.{u32|s32}",
    "mad.lo.{u16|u32|u64|s16|s32|s64}",
    "mad.hi.{u32|s32}",
    "mad.wide.{u16|u32|s16|s32}",
    "mad24.lo.{u32|s32}",
    "sad.{u16|u32|s32}",
    "{div|rem}.{u16|u32|u64|s16|s32|s64}",
    "{abs|neg}.{s16|s32|s64}",
    "{min|max}.{u16|u32|u64|s16|s32|s64|u16x2|s16x2}",
    "{min|max}.relu.{s16x2|s32}",
    "{popc|clz|brev}.{b32|b64}",
    "bfind.{u32|u64|s32|s64}",
    "bfind.shiftamt.{u32|u64|s32|s64}",
    "bfe.{u32|u64|s32|s64}",
    "bfi.{b32|b64}",
    "dp4a.{u32|s32}.{u32|s32}",
    "dp2a.{lo|hi}.{u32|s32}.{u32|s32}",
    "{add|sub}.cc.{u32|s32|u64|s64}",
    "{addc|subc}{|.cc}.{u32|s32|u64|s64}",
    "mad.{lo|hi}.cc.{u32|s32|u64|s64}",
    "madc.{lo|hi}{|.cc}.{u32|s32|u64|s64}",
    "{vadd2|vsub2|vavrg2|vabsdiff2|vmin2|vmax2}.{u32|s32}.{u32|s32}.{u32|s32}{|.sat|.add}",
    "{vadd4|vsub4|vavrg4|vabsdiff4|vmin4|vmax4}.{u32|s32}.{u32|s32}.{u32|s32}{|.sat|.add}",
    "{vset2|vset4}.{u32|s32}.{u32|s32}.{eq|ne|lt|le|gt|ge}{|.add}",
    // Bits and moves.
    "{and|or|xor}.{pred|b16|b32|b64}",
    "not.{pred|b16|b32|b64}",
    "cnot.{b16|b32|b64}",
    "lop3.b32",
    "shl.{b16|b32|b64}",
    "shr.{b16|b32|b64|u16|u32|u64|s16|s32|s64}",
    "shf.{l|r}.{wrap|clamp}.b32",
    "prmt.b32{|.f4e|.b4e|.rc8|.ecl|.ecr|.rc16}",
    "mov.{pred|b16|b32|b64|u16|u32|u64|s16|s32|s64|f32|f64}",
    "selp.{b16|b32|b64|u16|u32|u64|s16|s32|s64|f32|f64}",
    "slct.{b32|b64|u32|u64|s32|s64|f32|f64}.s32",
    "slct{|.ftz}.{b32|b64|u32|u64|s32|s64|f32|f64}.f32",
    "cvta{|.to}.{global|shared|local|const|param}.u64",
    "isspacep.{global|shared|local|param}",
    // Floats.
    "{add|sub|mul}{|.rn|.rz|.rm|.rp}{|.ftz}{|.sat}.f32",
    "{add|sub|mul}{|.rn|.rz|.rm|.rp}.f64",
    "{add|sub|mul}{|.rn}{|.ftz}{|.sat}.{f16|f16x2}",
    "{add|sub|mul}{|.rn}.{bf16|bf16x2}",
    "{fma|mad}{.rn|.rz|.rm|.rp}{|.ftz}{|.sat}.f32",
    "{fma|mad}{.rn|.rz|.rm|.rp}.f64",
    "fma.rn{|.ftz}{|.sat|.relu}.{f16|f16x2}",
    "fma.rn{|.relu}.{bf16|bf16x2}",
    "div{.approx|.full|.rn|.rz|.rm|.rp}{|.ftz}.f32",
    "div{.rn|.rz|.rm|.rp}.f64",
    "{abs|neg}{|.ftz}.{f32|f16|f16x2}",
    "{abs|neg}.{f64|bf16|bf16x2}",
    "{min|max}{|.ftz}{|.NaN}.{f32|f16|f16x2}",
    "{min|max}{|.NaN}.{bf16|bf16x2}",
    "{min|max}.f64",
    "{rcp|sqrt}{.approx|.rn|.rz|.rm|.rp}{|.ftz}.f32",
    "{rcp|sqrt}{.rn|.rz|.rm|.rp}.f64",
    "rsqrt.approx{|.ftz}.f32",
    "rsqrt.approx.f64",
    "{rcp|rsqrt}.approx.ftz.f64",
    "{sin|cos|lg2|ex2}.approx{|.ftz}.f32",
    "tanh.approx.f32",
    "ex2.approx.{f16|f16x2}",
    "ex2.approx.ftz.{bf16|bf16x2}",
    "tanh.approx.{f16|f16x2|bf16|bf16x2}",
    "copysign.{f32|f64}",
    "testp.{finite|infinite|number|notanumber|normal|subnormal}.{f32|f64}",
    // Comparisons.
    "setp.{eq|ne}{|.and|.or|.xor}.{b16|b32|b64}",
    "setp.{eq|ne|lt|le|gt|ge}{|.and|.or|.xor}.{s16|s32|s64}",
    "setp.{eq|ne|lt|le|gt|ge|lo|ls|hi|hs}{|.and|.or|.xor}.{u16|u32|u64}",
    "setp.{eq|ne|lt|le|gt|ge|equ|neu|ltu|leu|gtu|geu|num|nan}{|.and|.or|.xor}{|.ftz}.{f32|f16}",
    "setp.{eq|ne|lt|le|gt|ge|equ|neu|ltu|leu|gtu|geu|num|nan}{|.and|.or|.xor}.{f64|bf16}",
    "setp.{eq|ne|lt|le|gt|ge|equ|neu|ltu|leu|gtu|geu|num|nan}{|.ftz}.f16x2",
    "setp.{eq|ne|lt|le|gt|ge|equ|neu|ltu|leu|gtu|geu|num|nan}.bf16x2",
    "set.{eq|ne}.{u32|s32|f32}.{b16|b32|b64}",
    "set.{eq|ne|lt|le|gt|ge}.{u32|s32|f32}.{s16|s32|s64}",
    "set.{eq|ne|lt|le|gt|ge|lo|ls|hi|hs}.{u32|s32|f32}.{u16|u32|u64}",
    "set.{eq|ne|lt|le|gt|ge|equ|neu|ltu|leu|gtu|geu|num|nan}{|.ftz}.{u32|s32|f32}.f32",
    "set.{eq|ne|lt|le|gt|ge|equ|neu|ltu|leu|gtu|geu|num|nan}.{u32|s32|f32}.f64",
    "set.{eq|ne|lt|le|gt|ge|equ|neu|ltu|leu|gtu|geu|num|nan}{|.ftz}.{f16|u16|s16|u32|s32}.f16",
    "set.{eq|ne|lt|le|gt|ge|equ|neu|ltu|leu|gtu|geu|num|nan}.{bf16|u16|s16|u32|s32}.bf16",
    "set.{eq|ne|lt|le|gt|ge|equ|neu|ltu|leu|gtu|geu|num|nan}{|.ftz}.{f16x2|u32|s32}.f16x2",
    "set.{eq|ne|lt|le|gt|ge|equ|neu|ltu|leu|gtu|geu|num|nan}.{bf16x2|u32|s32}.bf16x2",
    // Conversions.
    "cvt.{u8|u16|u32|u64|s8|s16|s32|s64}.{u8|u16|u32|u64|s8|s16|s32|s64}",
    "cvt.sat.u8.{u16|u32|u64|s8|s16|s32|s64}",
    "cvt.sat.u16.{u32|u64|s8|s16|s32|s64}",
    "cvt.sat.u32.{u64|s8|s16|s32|s64}",
    "cvt.sat.u64.{s8|s16|s32|s64}",
    "cvt.sat.s8.{u8|u16|u32|u64|s16|s32|s64}",
    "cvt.sat.s16.{u16|u32|u64|s32|s64}",
    "cvt.sat.s32.{u32|u64|s64}",
    "cvt.sat.s64.u64",
    "cvt{.rn|.rz|.rm|.rp}{|.sat}.{f16|f32|f64}.{u8|u16|u32|u64|s8|s16|s32|s64}",
    "cvt{.rn|.rz|.rm|.rp}.bf16.{u16|u32|u64|s16|s32|s64}",
    "cvt{.rni|.rzi|.rmi|.rpi}{|.sat}.{u8|u16|u32|u64|s8|s16|s32|s64}.{f16|f64}",
    "cvt{.rni|.rzi|.rmi|.rpi}{|.ftz}{|.sat}.{u8|u16|u32|u64|s8|s16|s32|s64}.f32",
    "cvt{.rni|.rzi|.rmi|.rpi}.{u16|u32|u64|s16|s32|s64}.bf16",
    "cvt{.rn|.rz|.rm|.rp}{|.ftz}{|.sat}.f16.f32",
    "cvt{.rn|.rz}.relu.{f16|bf16}.f32",
    "cvt{.rn|.rz|.rm|.rp}.bf16.f32",
    "cvt{.rn|.rz|.rm|.rp}{|.ftz}{|.sat}.f32.f64",
    "cvt{.rn|.rz|.rm|.rp}{|.sat}.f16.f64",
    "cvt{.rn|.rz|.rm|.rp}.bf16.f64",
    "cvt{|.ftz}{|.sat}.{f32.f16|f64.f32}",
    "cvt{|.sat}.f64.f16",
    "cvt.{f32|f64}.bf16",
    "cvt{.rn|.rz|.rm|.rp}.{bf16.f16|f16.bf16}",
    "cvt{|.rni|.rzi|.rmi|.rpi}{|.ftz}{|.sat}.f32.f32",
    "cvt{|.rni|.rzi|.rmi|.rpi}{|.sat}.{f64.f64|f16.f16}",
    "cvt{.rni|.rzi|.rmi|.rpi}.bf16.bf16",
    "cvt{.rn|.rz}{|.relu}.{f16x2|bf16x2}.f32",
    "cvt{.rna|.rn|.rz}.tf32.f32",
    "cvt.rn.satfinite{|.relu}.{e4m3x2|e5m2x2}.{f32|f16x2}",
    "cvt.rn{|.relu}.f16x2.{e4m3x2|e5m2x2}",
    "cvt.pack.sat.{u16|s16}.s32",
    "cvt.pack.sat.{u8|s8}.s32.b32",
    // Between lanes.
    "shfl.sync.{up|down|bfly|idx}.b32",
    "vote.sync.{all|any|uni}.pred",
    "vote.sync.ballot.b32",
    "match.{any|all}.sync.{b32|b64}",
    "activemask.b32",
    "redux.sync.{add|min|max}.{u32|s32}",
    "redux.sync.{and|or|xor}.b32",
    "elect.sync",
    // Memory.
    "ld{|.global|.shared|.local|.const|.param}.{b8|b16|b32|b64|u8|u16|u32|u64|s8|s16|s32|s64|f32|f64}",
    "ld{|.global|.shared|.local|.const|.param}.v2.{b8|b16|b32|b64|u8|u16|u32|u64|s8|s16|s32|s64|f32|f64}",
    "ld{|.global|.shared|.local|.const|.param}.v4.{b8|b16|b32|u8|u16|u32|s8|s16|s32|f32}",
    "ldu{|.global}{|.v2}.{b8|b16|b32|b64|u8|u16|u32|u64|s8|s16|s32|s64|f32|f64}",
    "ldu{|.global}.v4.{b8|b16|b32|u8|u16|u32|s8|s16|s32|f32}",
    "st{|.global|.shared|.local|.param}.{b8|b16|b32|b64|u8|u16|u32|u64|s8|s16|s32|s64|f32|f64}",
    "st{|.global|.shared|.local|.param}.v2.{b8|b16|b32|b64|u8|u16|u32|u64|s8|s16|s32|s64|f32|f64}",
    "st{|.global|.shared|.local|.param}.v4.{b8|b16|b32|u8|u16|u32|s8|s16|s32|f32}",
    "atom{|.global|.shared}.{and|or|xor}.{b32|b64}",
    "atom{|.global|.shared}.exch.{b32|b64}",
    "atom{|.global|.shared}.cas.{b16|b32|b64}",
    "atom{|.global|.shared}.add.{u32|s32|u64|f32|f64|f16|f16x2|bf16|bf16x2}",
    "atom{|.global|.shared}.{min|max}.{u32|s32|u64|s64}",
    "atom{|.global|.shared}.{inc|dec}.u32",
    "atom{|.global}.{v2|v4}.add.f32",
    "atom{|.global}.{v2|v4|v8}.add.{f16|bf16}",
    "atom{|.global}.{v2|v4}.add.{f16x2|bf16x2}",
    "red{|.global|.shared}.{and|or|xor}.{b32|b64}",
    "red{|.global|.shared}.add.{u32|s32|u64|f32|f64|f16|f16x2|bf16|bf16x2}",
    "red{|.global|.shared}.{min|max}.{u32|s32|u64|s64}",
    "red{|.global|.shared}.{inc|dec}.u32",
    "red{|.global}.{v2|v4}.add.f32",
    "red{|.global}.{v2|v4|v8}.add.{f16|bf16}",
    "red{|.global}.{v2|v4}.add.{f16x2|bf16x2}",
    // Matrices.
    "{ldmatrix|stmatrix}.sync.aligned.m8n8.{x1|x2|x4}{|.trans}.shared.b16",
    "movmatrix.sync.aligned.m8n8.trans.b16",
    "mma.sync.aligned.{m16n8k16|m16n8k8}.row.col.{f32.f16.f16.f32|f16.f16.f16.f16|f32.bf16.bf16.f32}",
    "mma.sync.aligned.{m16n8k8|m16n8k4}.row.col.f32.tf32.tf32.f32",
    "mma.sync.aligned.{m16n8k32|m16n8k16|m8n8k16}.row.col{|.satfinite}.s32.{s8|u8}.{s8|u8}.s32",
    "mma.sync.aligned.m16n8k32.row.col.f32.{e4m3|e5m2}.{e4m3|e5m2}.f32",
    "mma.sync.aligned.m16n8k32.row.col.f16.{e4m3|e5m2}.{e4m3|e5m2}.f16",
    "mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64",
];

/// Opcodes whose forms the grammar does not list: control, synchronisation and asynchronous copies,
/// whose meaning is in what they order and not in a value they compute.
const ORDERING: &[&str] = &[
    "applypriority",
    "bar",
    "barrier",
    "bra",
    "brkpt",
    "brx",
    "call",
    "clusterlaunchcontrol",
    "cp",
    "createpolicy",
    "discard",
    "exit",
    "fence",
    "getctarank",
    "griddepcontrol",
    "mapa",
    "mbarrier",
    "membar",
    "multimem",
    "nanosleep",
    "pmevent",
    "prefetch",
    "prefetchu",
    "ret",
    "setmaxnreg",
    "tensormap",
    "trap",
    "wgmma",
];

/// Words that [`GRAMMAR`] has by another spelling.
fn canonical(word: &str) -> &str {
    match word {
        "shared::cta" | "shared::cluster" => "shared",
        "param::entry" | "param::func" => "param",
        other => other,
    }
}

/// What the grammar expands a pattern to.
fn expand(pattern: &str) -> Vec<String> {
    let mut out = vec![String::new()];
    for (at, part) in pattern.split('{').enumerate() {
        let (choices, rest) = match part.split_once('}') {
            Some((choices, rest)) if at > 0 => (choices, rest),
            _ => ("", part),
        };
        out = out
            .iter()
            .flat_map(|head| choices.split('|').map(move |choice| format!("{head}{choice}{rest}")))
            .collect();
    }
    out
}

/// The opcode with its modifiers sorted and its types in their order behind them: two spellings of
/// one form have one key.
fn key(base: &str, words: &[&str]) -> String {
    let hinted = matches!(base, "ld" | "ldu" | "st" | "atom" | "red");
    let (mut modifiers, mut types) = (Vec::new(), Vec::new());
    for &word in words {
        if hinted && (crate::decode::MEMORY_HINTS.contains(&word) || word == "L2::cache_hint") {
            continue;
        }
        if Type::parse(word).is_some() { &mut types } else { &mut modifiers }.push(canonical(word));
    }
    modifiers.sort_unstable();
    let mut out = base.to_owned();
    for word in modifiers.iter().chain(&types) {
        out.push('.');
        out.push_str(word);
    }
    out
}

struct Index {
    forms: Vec<String>,
    keys: HashSet<String>,
    bases: HashSet<String>,
}

static INDEX: LazyLock<Index> = LazyLock::new(|| {
    let forms: Vec<String> = GRAMMAR.iter().flat_map(|pattern| expand(pattern)).collect();
    let split = |form: &str| -> (String, String) {
        let words: Vec<&str> = form.split('.').collect();
        let (base, rest) = words.split_first().map_or(("", &words[..]), |(b, rest)| (*b, rest));
        (base.to_owned(), key(base, rest))
    };
    let (bases, keys) = forms.iter().map(|form| split(form)).unzip();
    Index { forms, keys, bases }
});

/// Every opcode form with a value to compute or to move that [`crate::Module::parse`] accepts, such
/// as `fma.rn.ftz.f32`, in the spelling of the PTX manual. Cache and ordering hints of memory
/// operations are left out.
pub fn opcode_forms() -> impl Iterator<Item = &'static str> {
    INDEX.forms.iter().map(String::as_str)
}

/// The form of an opcode as [`opcode_forms`] spells it; `None` for the opcodes that order things
/// (control, barriers, asynchronous copies) and for what is not known.
pub fn form_of(opcode: &str) -> Option<&'static str> {
    let words: Vec<&str> = opcode.split('.').collect();
    let (base, rest) = words.split_first()?;
    let wanted = key(base, rest);
    INDEX.forms.iter().map(String::as_str).find(|form| {
        let words: Vec<&str> = form.split('.').collect();
        words.split_first().is_some_and(|(base, rest)| key(base, rest) == wanted)
    })
}

/// Why an opcode with these modifiers is not to be decoded; `None` if it is.
pub(crate) fn refusal(base: &str, words: &[&str]) -> Option<String> {
    if ORDERING.contains(&base) {
        return None;
    }
    if !INDEX.bases.contains(base) {
        return Some(format!("opcode `{base}` is not supported"));
    }
    let form = key(base, words);
    (!INDEX.keys.contains(&form)).then(|| {
        let near = words.iter().copied().filter(|w| Type::parse(w).is_none()).find(|word| {
            let fewer: Vec<&str> = words.iter().copied().filter(|w| w != word).collect();
            INDEX.keys.contains(&key(base, &fewer))
        });
        match near {
            Some(word) => format!("modifier `.{word}` of `{base}` is not supported here"),
            None => format!("this form of `{base}` is not supported"),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_expand_to_every_choice() {
        assert_eq!(expand("a.b"), ["a.b"]);
        assert_eq!(
            expand("{x|y}.m{|.s}.{u|v}"),
            ["x.m.u", "x.m.v", "x.m.s.u", "x.m.s.v", "y.m.u", "y.m.v", "y.m.s.u", "y.m.s.v"]
        );
    }

    #[test]
    fn no_form_is_listed_twice() {
        assert_eq!(INDEX.keys.len(), INDEX.forms.len());
        assert!(INDEX.forms.len() > 3000);
    }

    #[test]
    fn spellings_of_one_form_meet_and_types_keep_their_order() {
        for (opcode, form) in [
            ("ld.global.nc.L1::no_allocate.L2::128B.v4.u32", Some("ld.global.v4.u32")),
            ("ld.relaxed.gpu.shared::cta.u32", Some("ld.shared.u32")),
            ("add.ftz.rn.f32", Some("add.rn.ftz.f32")),
            ("cvt.s64.s32", Some("cvt.s64.s32")),
            ("cvt.s32.s64", Some("cvt.s32.s64")),
            ("bar.sync", None),
            ("add.rz.f16", None),
        ] {
            assert_eq!(form_of(opcode), form, "{opcode}");
        }
    }

    #[test]
    fn what_is_not_listed_is_refused() {
        let refuse = |opcode: &str| {
            let words: Vec<&str> = opcode.split('.').collect();
            refusal(words[0], &words[1..])
        };
        assert_eq!(refuse("bra.uni"), None);
        assert_eq!(refuse("add.s32"), None);
        let refused = refuse("add.rz.f16").expect("refused");
        assert!(refused.contains("`.rz` of `add`"), "{refused}");
        assert!(refuse("add.f8").expect("refused").contains("this form of `add`"));
        assert!(refuse("frob.x").expect("refused").contains("opcode `frob`"));
    }
}
