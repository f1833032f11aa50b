//! Integer, logic and bit instructions against Rust's own arithmetic.

use proptest::prelude::*;

use crate::kernels::{Buffer, Function, kernel, run};

/// Values that break things: borders of every width, few bits, all bits.
fn value() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        (0u32..64, -2i64..3).prop_map(|(bit, near)| (1u64 << bit).wrapping_add(near as u64)),
        (-70i64..70).prop_map(|small| small as u64),
    ]
}

fn rows() -> impl Strategy<Value = Vec<[u64; 3]>> {
    prop::collection::vec([value(), value(), value()], 1..200)
}

type Wanted = Box<dyn Fn(u64, u64, u64) -> u64>;

/// (text, bytes of a b c d, the meaning). Values arrive truncated to their size.
fn table() -> Vec<(&'static str, [usize; 4], Wanted)> {
    let mut out: Vec<(&'static str, [usize; 4], Wanted)> = Vec::new();
    macro_rules! at32 {
        ($text:expr, |$a:ident, $b:ident, $c:ident| $e:expr) => {
            out.push((
                $text,
                [4, 4, 4, 4],
                Box::new(|$a, $b, $c| {
                    let ($a, $b, $c) = ($a as u32, $b as u32, $c as u32);
                    let _ = ($a, $b, $c);
                    u64::from(({ $e }) as u32)
                }),
            ));
        };
    }
    macro_rules! at64 {
        ($text:expr, |$a:ident, $b:ident, $c:ident| $e:expr) => {
            out.push((
                $text,
                [8, 8, 8, 8],
                Box::new(|$a: u64, $b: u64, $c: u64| {
                    let _ = ($a, $b, $c);
                    ({ $e }) as u64
                }),
            ));
        };
    }
    macro_rules! at16 {
        ($text:expr, |$a:ident, $b:ident, $c:ident| $e:expr) => {
            out.push((
                $text,
                [2, 2, 2, 2],
                Box::new(|$a, $b, $c| {
                    let ($a, $b, $c) = ($a as u16, $b as u16, $c as u16);
                    let _ = ($a, $b, $c);
                    u64::from(({ $e }) as u16)
                }),
            ));
        };
    }
    at32!("add.s32 %d, %a, %b;", |a, b, c| a.wrapping_add(b));
    at32!("add.sat.s32 %d, %a, %b;", |a, b, c| (a as i32).saturating_add(b as i32));
    at32!("sub.u32 %d, %a, %b;", |a, b, c| a.wrapping_sub(b));
    at32!("sub.s32 %d, %a, -5;", |a, b, c| a.wrapping_add(5));
    at32!("mul.lo.s32 %d, %a, %b;", |a, b, c| a.wrapping_mul(b));
    at32!("mul.hi.u32 %d, %a, %b;", |a, b, c| (a as u64 * b as u64) >> 32);
    at32!("mul.hi.s32 %d, %a, %b;", |a, b, c| (a as i32 as i64 * b as i32 as i64) >> 32);
    at32!("mad.lo.u32 %d, %a, %b, %c;", |a, b, c| a.wrapping_mul(b).wrapping_add(c));
    at32!("mul24.lo.u32 %d, %a, %b;", |a, b, c| (a & 0xff_ffff).wrapping_mul(b & 0xff_ffff));
    at32!("div.u32 %d, %a, %b;", |a, b, c| a.checked_div(b).unwrap_or(u32::MAX));
    at32!("div.s32 %d, %a, %b;", |a, b, c| if b == 0 {
        -1
    } else {
        (a as i32).wrapping_div(b as i32)
    });
    at32!("rem.s32 %d, %a, %b;", |a, b, c| if b == 0 {
        a as i32
    } else {
        (a as i32).wrapping_rem(b as i32)
    });
    at32!("min.s32 %d, %a, %b;", |a, b, c| (a as i32).min(b as i32));
    at32!("max.u32 %d, %a, %b;", |a, b, c| a.max(b));
    at32!("abs.s32 %d, %a;", |a, b, c| (a as i32).wrapping_abs());
    at32!("neg.s32 %d, %a;", |a, b, c| a.wrapping_neg());
    at32!("not.b32 %d, %a;", |a, b, c| !a);
    at32!("cnot.b32 %d, %a;", |a, b, c| a == 0);
    at32!("and.b32 %d, %a, %b;", |a, b, c| a & b);
    at32!("xor.b32 %d, %a, 0x55;", |a, b, c| a ^ 0x55);
    at32!("shl.b32 %d, %a, %b;", |a, b, c| a.checked_shl(b).unwrap_or(0));
    at32!("shr.u32 %d, %a, %b;", |a, b, c| a.checked_shr(b).unwrap_or(0));
    at32!("shr.s32 %d, %a, %b;", |a, b, c| (a as i32) >> b.min(31));
    at32!("shf.l.wrap.b32 %d, %a, %b, %c;", |a, b, c| if c & 31 == 0 {
        b
    } else {
        b << (c & 31) | a >> (32 - (c & 31))
    });
    at32!("shf.r.clamp.b32 %d, %a, %b, %c;", |a, b, c| match c.min(32) {
        0 => a,
        32 => b,
        n => a >> n | b << (32 - n),
    });
    at32!("popc.b32 %d, %a;", |a, b, c| a.count_ones());
    at32!("clz.b32 %d, %a;", |a, b, c| a.leading_zeros());
    at32!("brev.b32 %d, %a;", |a, b, c| a.reverse_bits());
    at32!("bfind.u32 %d, %a;", |a, b, c| if a == 0 { u32::MAX } else { a.ilog2() });
    at32!("bfind.shiftamt.u32 %d, %a;", |a, b, c| if a == 0 { u32::MAX } else { 31 - a.ilog2() });
    at32!("sad.u32 %d, %a, %b, %c;", |a, b, c| (a.max(b) - a.min(b)).wrapping_add(c));
    at32!("lop3.b32 %d, %a, %b, %c, 0xe8;", |a, b, c| a & b | a & c | b & c);
    at32!("prmt.b32 %d, %a, %b, 0x7531;", |a, b, c| {
        let s = [a.to_le_bytes(), b.to_le_bytes()].concat();
        u32::from_le_bytes([s[1], s[3], s[5], s[7]])
    });
    at32!("prmt.b32 %d, %a, %b, 0x9a08;", |a, b, c| {
        let s = [a.to_le_bytes(), b.to_le_bytes()].concat();
        let sign = |v: u8| if v & 0x80 != 0 { 0xff } else { 0 };
        u32::from_le_bytes([sign(s[0]), s[0], sign(s[2]), sign(s[1])])
    });
    at32!("bfe.u32 %d, %a, 4, 9;", |a, b, c| a >> 4 & 0x1ff);
    at32!("bfe.s32 %d, %a, 28, 9;", |a, b, c| (a as i32) >> 28);
    at32!("bfi.b32 %d, %a, %b, 5, 7;", |a, b, c| b & !(0x7f << 5) | (a & 0x7f) << 5);
    at32!("dp4a.s32.u32 %d, %a, %b, %c;", |a, b, c| {
        let dot: i32 =
            (0..4).map(|i| (a >> (8 * i)) as u8 as i8 as i32 * ((b >> (8 * i)) as u8 as i32)).sum();
        c.wrapping_add(dot as u32)
    });
    at32!(
        "setp.lt.s32 %q0, %a, %b; selp.b32 %d, %a, %c, %q0;",
        |a, b, c| if (a as i32) < b as i32 { a } else { c }
    );
    at32!("setp.ge.u32 %q0|%q1, %a, %b; selp.u32 %d, 1, 0, %q1;", |a, b, c| a < b);
    at32!(
        "setp.eq.u32 %q1, %b, %c; setp.hi.and.u32 %q0, %a, %b, !%q1; selp.u32 %d, 1, 0, %q0;",
        |a, b, c| a > b && b != c
    );
    at32!("set.lt.u32.s32 %d, %a, %b;", |a, b, c| if (a as i32) < b as i32 { u32::MAX } else { 0 });
    at32!("slct.s32.s32 %d, %a, %b, %c;", |a, b, c| if c as i32 >= 0 { a } else { b });
    at32!("add.cc.u32 %r1, %a, %b; addc.u32 %d, %c, 0;", |a, b, c| c
        .wrapping_add(a.checked_add(b).is_none() as u32));
    at32!("sub.cc.u32 %r1, %a, %b; subc.u32 %d, %c, 0;", |a, b, c| c.wrapping_sub((a < b) as u32));
    at64!("add.s64 %d, %a, %b;", |a, b, c| a.wrapping_add(b));
    at64!("mul.lo.s64 %d, %a, %b;", |a, b, c| a.wrapping_mul(b));
    at64!("mul.hi.s64 %d, %a, %b;", |a, b, c| (a as i64 as i128 * b as i64 as i128) >> 64);
    at64!("div.s64 %d, %a, %b;", |a, b, c| if b == 0 {
        -1
    } else {
        (a as i64).wrapping_div(b as i64)
    });
    at64!("rem.u64 %d, %a, %b;", |a, b, c| a.checked_rem(b).unwrap_or(a));
    at64!("min.s64 %d, %a, %b;", |a, b, c| (a as i64).min(b as i64));
    at64!("or.b64 %d, %a, %b;", |a, b, c| a | b);
    at64!("cvt.u32.u64 %r1, %b; shl.b64 %d, %a, %r1;", |a, b, c| if b as u32 >= 64 {
        0
    } else {
        a << (b as u32)
    });
    at64!("cvt.u32.u64 %r1, %b; shr.s64 %d, %a, %r1;", |a, b, c| (a as i64) >> (b as u32).min(63));
    at64!("bfe.s64 %d, %a, 60, 3;", |a, b, c| ((a << 1) as i64) >> 61);
    at64!("mov.b64 {%r1, %r2}, %a; mov.b64 %d, {%r2, %r1};", |a, b, c| a.rotate_left(32));
    at64!("cvt.u32.u64 %r1, %a; mul.wide.s32 %d, %r1, -7;", |a, b, c| (a as u32 as i32 as i64)
        .wrapping_mul(-7));
    at64!("cvt.s64.s8 %d, %a;", |a, b, c| a as i8 as i64);
    at64!("cvt.sat.u64.s64 %d, %a;", |a, b, c| (a as i64).max(0));
    at16!("add.s16 %d, %a, %b;", |a, b, c| a.wrapping_add(b));
    at16!("mul.lo.u16 %d, %a, %b;", |a, b, c| a.wrapping_mul(b));
    at16!("max.s16 %d, %a, %b;", |a, b, c| (a as i16).max(b as i16));
    at16!("shr.s16 %d, %a, 3;", |a, b, c| (a as i16) >> 3);
    at16!("setp.lt.s16 %q0, %a, -1; selp.b16 %d, %a, -2, %q0;", |a, b, c| if (a as i16) < -1 {
        a
    } else {
        0xfffe
    });
    at16!("cvt.sat.s8.s16 %d, %a;", |a, b, c| (a as i16).clamp(-128, 127));
    out
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    #[test]
    fn integer_instructions_agree_with_rust(rows in rows()) {
        for (text, bytes, wanted) in table() {
            let function = Function::new(text, bytes);
            for (row, got) in rows.iter().zip(function.apply(&rows)) {
                let [a, b, c] = *row;
                let mask = u64::MAX >> (64 - 8 * bytes[3]);
                prop_assert_eq!(got, wanted(a, b, c) & mask, "{} of {:x?}", text, row);
            }
        }
    }
}

#[test]
fn packed_halves_split_and_join() {
    let function = Function::new(
        ".reg .b16 %h<3>; mov.b32 {%h0, %h1}, %a; mov.b32 %d, {%h1, %h0};",
        [4, 4, 4, 4],
    );
    assert_eq!(function.apply(&[[0x1234_5678, 0, 0]]), [0x5678_1234]);
}

/// NVRTC writes the reciprocal of `t % 3` on 16 bits as a negative immediate, which once reached the
/// product sign-extended and made ring indices of 32,772.
#[test]
fn negative_immediates_of_widening_16_bit_products_have_16_bits() {
    let unsigned = Function::new("mul.wide.u16 %d, %a, -21845;", [2, 4, 4, 4]);
    assert_eq!(unsigned.apply(&[[5, 0, 0], [255, 0, 0]]), [5 * 43691, 255 * 43691]);
    let added = Function::new("mad.wide.u16 %d, %a, -21845, %b;", [2, 4, 4, 4]);
    assert_eq!(added.apply(&[[5, 7, 0]]), [5 * 43691 + 7]);
    let signed = Function::new("mul.wide.s16 %d, %a, -3;", [2, 4, 4, 4]);
    assert_eq!(signed.apply(&[[5, 0, 0]]), [u64::from(-15i32 as u32)]);
}

#[test]
fn a_borrow_is_a_carry_that_is_not_set() {
    // As NVRTC's 128-bit division reads it: `addc` after `subc.cc` gives 1 where nothing was
    // borrowed. What is not `.cc` leaves the carry alone.
    let module = kernel(
        1,
        "mad.wide.u32 %l0, %t, 16, %p0; sub.cc.u32 %r0, %t, 3; subc.cc.u32 %r1, 7, 7; addc.u32 %r2, 0, 0;
         subc.u32 %r3, 10, 0; st.global.u32 [%l0], %r0; st.global.u32 [%l0+4], %r1;
         st.global.u32 [%l0+8], %r2; st.global.u32 [%l0+12], %r3; ret;",
    );
    let ran = run(&module, vec![Buffer::Blank(512)], 32).clean();
    let wanted: Vec<u32> = (0..32u32)
        .flat_map(|t| if t < 3 { [t.wrapping_sub(3), u32::MAX, 0, 9] } else { [t - 3, 0, 1, 10] })
        .collect();
    assert_eq!(ran.words(0, 128), wanted);
}
