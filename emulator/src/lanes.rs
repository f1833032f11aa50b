//! From the meaning of an instruction on one lane to a function that runs it on 32.
//!
//! Each function exists twice: for any processor, and for x86-64 with AVX2 and FMA, chosen when a
//! kernel is decoded. Both compute the same bits.

use crate::math::Host;
use crate::op::{Exec, Op};
use crate::registers::{Registers, Word};

/// Any processor.
pub(crate) struct Plain;
impl Host for Plain {
    const FUSED: bool = cfg!(target_arch = "aarch64");
}

/// x86-64 with the features that [`wide_is_available`] checks.
pub(crate) struct Wide;
impl Host for Wide {
    const FUSED: bool = true;
}

/// Whether the running processor has AVX2, FMA, F16C and BMI.
pub(crate) fn wide_is_available() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c")
            && is_x86_feature_detected!("bmi1")
            && is_x86_feature_detected!("bmi2")
            && is_x86_feature_detected!("popcnt")
            && is_x86_feature_detected!("lzcnt")
    }
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// One lane of an instruction with a register result. `k` is the operation's immediate.
pub(crate) trait Lane {
    type A: Word;
    type B: Word;
    type C: Word;
    type D: Word;
    fn lane<H: Host>(a: Self::A, b: Self::B, c: Self::C, k: i64) -> Self::D;
}

/// One lane of a comparison.
pub(crate) trait Test {
    type A: Word;
    fn test(a: Self::A, b: Self::A) -> bool;
}

#[inline(always)]
fn run<L: Lane, H: Host>(registers: &mut Registers, op: &Op, mask: u32) {
    let mut out = [L::D::default(); 32];
    {
        let a = registers.read::<L::A>(op.s[0]);
        let b = registers.read::<L::B>(op.s[1]);
        let c = registers.read::<L::C>(op.s[2]);
        for lane in 0..32 {
            out[lane] = L::lane::<H>(a[lane], b[lane], c[lane], op.imm);
        }
    }
    registers.put(op.d[0], &out, mask);
}

#[inline(always)]
fn compare<T: Test>(registers: &mut Registers, op: &Op, mask: u32) {
    let a = registers.read::<T::A>(op.s[0]);
    let b = registers.read::<T::A>(op.s[1]);
    let mut bits = 0u32;
    for lane in 0..32 {
        bits |= u32::from(T::test(a[lane], b[lane])) << lane;
    }
    finish_compare(registers, op, bits, mask);
}

/// Codes of the boolean a `setp` combines its result with.
pub(crate) const COMBINE: [&str; 4] = ["", "and", "or", "xor"];

#[inline(always)]
fn finish_compare(registers: &mut Registers, op: &Op, bits: u32, mask: u32) {
    let other = if op.count == 0 {
        0
    } else {
        let other = registers.predicates[op.s[2] as usize];
        if op.flags != 0 { !other } else { other }
    };
    let combine = |bits: u32| match op.count {
        0 => bits,
        1 => bits & other,
        2 => bits | other,
        _ => bits ^ other,
    };
    registers.put_predicate(op.d[1], combine(!bits), mask);
    registers.put_predicate(op.d[0], combine(bits), mask);
}

fn run_plain<L: Lane>(registers: &mut Registers, op: &Op, mask: u32) {
    run::<L, Plain>(registers, op, mask);
}

/// # Safety
/// [`wide_is_available`] must have said yes.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,bmi1,bmi2,popcnt,lzcnt")]
unsafe fn run_wide<L: Lane>(registers: &mut Registers, op: &Op, mask: u32) {
    run::<L, Wide>(registers, op, mask);
}

fn compare_plain<T: Test>(registers: &mut Registers, op: &Op, mask: u32) {
    compare::<T>(registers, op, mask);
}

/// # Safety
/// [`wide_is_available`] must have said yes.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,bmi1,bmi2,popcnt,lzcnt")]
unsafe fn compare_wide<T: Test>(registers: &mut Registers, op: &Op, mask: u32) {
    compare::<T>(registers, op, mask);
}

/// The function for a lane, for a wide processor or any.
pub(crate) fn of_lane<L: Lane>(wide: bool) -> Exec {
    #[cfg(target_arch = "x86_64")]
    if wide {
        return run_wide::<L>;
    }
    let _ = wide;
    run_plain::<L>
}

/// The function for a comparison.
pub(crate) fn of_test<T: Test>(wide: bool) -> Exec {
    #[cfg(target_arch = "x86_64")]
    if wide {
        return compare_wide::<T>;
    }
    let _ = wide;
    compare_plain::<T>
}

/// `lane!(wide, |a: u32, b: u32| -> u32 { a.wrapping_add(b) })`: the function that runs the body
/// on every lane. One to three operands of u32 or u64; `[k]` names the immediate; `H` is the host.
macro_rules! lane {
    ($wide:expr, |$a:ident: $A:ty| -> $D:ty $body:block) => {
        lane!(@ $wide, $a $A, _b u32, _c u32, _k, $D, $body)
    };
    ($wide:expr, |$a:ident: $A:ty, $b:ident: $B:ty| -> $D:ty $body:block) => {
        lane!(@ $wide, $a $A, $b $B, _c u32, _k, $D, $body)
    };
    ($wide:expr, |$a:ident: $A:ty, $b:ident: $B:ty, $c:ident: $C:ty| -> $D:ty $body:block) => {
        lane!(@ $wide, $a $A, $b $B, $c $C, _k, $D, $body)
    };
    ($wide:expr, [$k:ident] |$a:ident: $A:ty| -> $D:ty $body:block) => {
        lane!(@ $wide, $a $A, _b u32, _c u32, $k, $D, $body)
    };
    ($wide:expr, [$k:ident] |$a:ident: $A:ty, $b:ident: $B:ty| -> $D:ty $body:block) => {
        lane!(@ $wide, $a $A, $b $B, _c u32, $k, $D, $body)
    };
    ($wide:expr, [$k:ident] |$a:ident: $A:ty, $b:ident: $B:ty, $c:ident: $C:ty| -> $D:ty $body:block) => {
        lane!(@ $wide, $a $A, $b $B, $c $C, $k, $D, $body)
    };
    (@ $wide:expr, $a:ident $A:ty, $b:ident $B:ty, $c:ident $C:ty, $k:ident, $D:ty, $body:block) => {{
        struct It;
        impl $crate::lanes::Lane for It {
            type A = $A;
            type B = $B;
            type C = $C;
            type D = $D;
            #[inline(always)]
            #[allow(clippy::extra_unused_type_parameters)]
            fn lane<H: $crate::math::Host>($a: $A, $b: $B, $c: $C, $k: i64) -> $D $body
        }
        $crate::lanes::of_lane::<It>($wide)
    }};
}
pub(crate) use lane;

/// `test!(wide, |a: u32, b| a == b)`: the function that compares every lane.
macro_rules! test {
    ($wide:expr, |$a:ident, $b:ident: $A:ty| $body:expr) => {{
        struct It;
        impl $crate::lanes::Test for It {
            type A = $A;
            #[inline(always)]
            fn test($a: $A, $b: $A) -> bool {
                $body
            }
        }
        $crate::lanes::of_test::<It>($wide)
    }};
}
pub(crate) use test;
