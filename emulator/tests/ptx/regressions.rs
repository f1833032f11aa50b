//! Bugs that the conformance table found, each with the operands that showed it.

use crate::kernels::Function;

/// The result of one instruction on `inputs`; sizes of the operands and the result in bytes.
fn one(text: &str, sizes: [usize; 4], inputs: [u64; 3]) -> u64 {
    Function::new(text, sizes).apply(&[inputs])[0]
}

#[test]
fn sums_that_are_zero_are_negative_when_rounded_down() {
    let add = |a, b| one("add.rm.f32 %d, %a, %b;", [4; 4], [a, b, 0]);
    assert_eq!(add(0, 0x8000_0000), 0x8000_0000);
    assert_eq!(add(0x3f80_0000, 0xbf80_0000), 0x8000_0000);
    assert_eq!(add(0, 0), 0);
    assert_eq!(one("sub.rm.f64 %d, %a, %b;", [8; 4], [0; 3]), 1 << 63);
    let fma = one("fma.rm.f32 %d, %a, %b, %c;", [4; 4], [0x8000_0000, 0x3f80_0000, 0]);
    assert_eq!(fma, 0x8000_0000);
}

#[test]
fn directed_doubles_round_where_the_rounding_error_is_subnormal() {
    assert_eq!(one("mul.rp.f64 %d, %a, %b;", [8; 4], [1, 1, 0]), 1);
    assert_eq!(one("mul.rz.f64 %d, %a, %b;", [8; 4], [1, 0x3fef_ffff_ffff_ffff, 0]), 0);
    let root = one("sqrt.rz.f64 %d, %a;", [8; 4], [0x0008_0000_0000_0001, 0, 0]);
    assert_eq!(root, 0x1ff6_a09e_667f_3bcd);
    let quotient = one("div.rp.f64 %d, %a, %b;", [8; 4], [1, 0x0008_0000_0000_0001, 0]);
    assert_eq!(quotient, 0x3cbf_ffff_ffff_fffd);
    let one_and_more = one(
        "fma.rp.f64 %d, %a, %b, %c;",
        [8; 4],
        [0xbca0_0000_0000_0000, 0x8010_0000_0000_0000, 0x3ff0_0000_0000_0000],
    );
    assert_eq!(one_and_more, 0x3ff0_0000_0000_0001);
}

#[test]
fn relu_keeps_nan_and_drops_minus_zero() {
    let nan = 0x7e01;
    assert_eq!(one("fma.rn.relu.f16 %d, %a, %b, %c;", [2; 4], [nan, nan, nan]), 0x7fff);
    assert_eq!(one("fma.rn.relu.bf16 %d, %a, %b, %c;", [2; 4], [0x7fc1, 0, 0]), 0x7fff);
    assert_eq!(one("cvt.rn.relu.f16.f32 %d, %a;", [4, 4, 4, 2], [0x7fc0_0000, 0, 0]), 0x7fff);
    let pair = one("cvt.rn.relu.bf16x2.f32 %d, %a, %b;", [4; 4], [0x7fc0_0000, 0xbf80_0000, 0]);
    assert_eq!(pair, 0x7fff_0000);
    assert_eq!(one("cvt.rn.relu.f16x2.e5m2x2 %d, %a;", [2, 2, 2, 4], [0x807f, 0, 0]), 0x7fff);
}

#[test]
fn zeros_are_normal_numbers_to_testp() {
    for zero in [0, 0x8000_0000] {
        let text = "testp.normal.f32 %q0, %a; selp.b32 %d, 1, 0, %q0;";
        assert_eq!(one(text, [4; 4], [zero, 0, 0]), 1);
    }
}

#[test]
fn comparisons_of_halves_flush_subnormals() {
    let text = "setp.eq.ftz.f16 %q0, %a, %b; selp.b32 %d, 1, 0, %q0;";
    assert_eq!(one(text, [2, 2, 2, 4], [0, 1, 0]), 1);
    let text = "set.geu.ftz.u32.f16x2 %d, %a, %b;";
    assert_eq!(one(text, [4; 4], [0x1400_0000, 0x3800_0001, 0]), 0xffff);
}

#[test]
fn integers_fill_a_wider_register_with_their_sign() {
    assert_eq!(one("cvt.s16.u16 %d, %a;", [2, 2, 2, 4], [0x8000, 0, 0]), 0xffff_8000);
    assert_eq!(one("cvt.s16.u16 %d, %a;", [2, 2, 2, 8], [0x8000, 0, 0]), 0xffff_ffff_ffff_8000);
    assert_eq!(one("cvt.s8.s32 %d, %a;", [4, 4, 4, 2], [0x80, 0, 0]), 0xff80);
    let text = "cvt.s8.s32 %d, %a; setp.eq.b16 %q0, %d, 0xff80; selp.b16 %d, 1, 0, %q0;";
    assert_eq!(one(text, [4, 4, 4, 2], [0x80, 0, 0]), 1);
}

#[test]
fn sums_of_differences_of_16_bits_wrap() {
    let text = "sad.u16 %d, %a, %b, %c; setp.eq.u16 %q0, %d, 0; selp.b16 %d, 7, 0, %q0;";
    assert_eq!(one(text, [2; 4], [1, 0, 0xffff]), 7);
}

#[test]
fn approximate_quotients_give_up_beyond_2_to_the_126() {
    let quotient = |a, b| one("div.approx.f32 %d, %a, %b;", [4; 4], [a, b, 0]);
    assert_eq!(quotient(0x7f80_0000, 0x7f7f_ffff), 0x7fff_ffff);
    assert_eq!(quotient(0xbf80_0000, 0x7f7f_ffff), 0x8000_0000);
    assert_eq!(quotient(0x4040_0000, 0x4000_0000), 0x3fc0_0000);
}

#[test]
fn gross_approximations_have_an_upper_word_only() {
    let reciprocal = |a| one("rcp.approx.ftz.f64 %d, %a;", [8; 4], [a, 0, 0]);
    assert_eq!(reciprocal(3f64.to_bits()), 0x3fd5_5555_0000_0000);
    assert_eq!(reciprocal(0x0008_0000_0000_0001), 0x7ff0_0000_0000_0000);
    assert_eq!(reciprocal(0x7ff8_0000_0000_0001), 0x7fff_ffff_0000_0000);
    let root = one("rsqrt.approx.ftz.f64 %d, %a;", [8; 4], [1, 0, 0]);
    assert_eq!(root, 0x7ff0_0000_0000_0000);
}

#[test]
fn atomic_sums_in_global_memory_flush_subnormals() {
    let text = "ld.param.u64 %l, [pd]; mad.wide.u32 %l, %t, 4, %l; st.global.b32 [%l], %a; red.global.add.f32 [%l], %b; \
                ld.global.b32 %d, [%l];";
    assert_eq!(one(text, [4; 4], [0x0040_0000, 0x8000_0001, 0]), 0);
}

#[test]
fn the_list_of_forms_has_no_gaps() {
    assert_eq!(one("bfind.shiftamt.s32 %d, %a;", [4; 4], [0xffff_0000, 0, 0]), 16);
    let text = "slct.ftz.f64.f32 %d, %a, %b, %c;";
    assert_eq!(one(text, [8, 8, 4, 8], [1, 2, 0x8000_0001]), 1);
}
