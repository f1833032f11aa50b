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

/// # Safety
/// The registers have the slots that the operation names.
#[inline(always)]
unsafe fn run<L: Lane, H: Host>(registers: &mut Registers, op: &Op, mask: u32) {
    let mut out = [L::D::default(); 32];
    // SAFETY: the caller's.
    unsafe {
        let a = registers.operand::<L::A>(op.s[0]);
        let b = registers.operand::<L::B>(op.s[1]);
        let c = registers.operand::<L::C>(op.s[2]);
        for lane in 0..32 {
            out[lane] = L::lane::<H>(a[lane], b[lane], c[lane], op.imm);
        }
        registers.put_result(op.d[0], &out, mask);
    }
}

/// # Safety
/// As for `run`.
#[inline(always)]
unsafe fn compare<T: Test>(registers: &mut Registers, op: &Op, mask: u32) {
    // SAFETY: the caller's.
    let (a, b) =
        unsafe { (registers.operand::<T::A>(op.s[0]), registers.operand::<T::A>(op.s[1])) };
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

/// # Safety
/// As for `run`.
unsafe fn run_plain<L: Lane>(registers: &mut Registers, ops: &[Op], mask: u32) {
    for op in ops {
        // SAFETY: the caller's.
        unsafe { run::<L, Plain>(registers, op, mask) }
    }
}

/// # Safety
/// [`wide_is_available`] must have said yes; and as for `run`.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,bmi1,bmi2,popcnt,lzcnt")]
unsafe fn run_wide<L: Lane>(registers: &mut Registers, ops: &[Op], mask: u32) {
    for op in ops {
        // SAFETY: the caller's.
        unsafe { run::<L, Wide>(registers, op, mask) }
    }
}

/// # Safety
/// As for `run`.
unsafe fn compare_plain<T: Test>(registers: &mut Registers, ops: &[Op], mask: u32) {
    for op in ops {
        // SAFETY: the caller's.
        unsafe { compare::<T>(registers, op, mask) }
    }
}

/// # Safety
/// [`wide_is_available`] must have said yes; and as for `run`.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,bmi1,bmi2,popcnt,lzcnt")]
unsafe fn compare_wide<T: Test>(registers: &mut Registers, ops: &[Op], mask: u32) {
    for op in ops {
        // SAFETY: the caller's.
        unsafe { compare::<T>(registers, op, mask) }
    }
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

/// `whole!(wide, function)`: a function of all registers, compiled for a wide processor and any. The
/// function is `#[inline(always)]`.
macro_rules! whole {
    ($wide:expr, $function:expr) => {{
        use $crate::{op::Op, registers::Registers};
        fn on_any(registers: &mut Registers, ops: &[Op], mask: u32) {
            for op in ops {
                $function(registers, op, mask);
            }
        }
        /// # Safety
        /// `wide_is_available` must have said yes.
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,fma,f16c,bmi1,bmi2,popcnt,lzcnt")]
        unsafe fn on_wide(registers: &mut Registers, ops: &[Op], mask: u32) {
            for op in ops {
                $function(registers, op, mask);
            }
        }
        #[cfg(target_arch = "x86_64")]
        let exec: $crate::op::Exec = if $wide { on_wide } else { on_any };
        #[cfg(not(target_arch = "x86_64"))]
        let exec: $crate::op::Exec = {
            let _ = $wide;
            on_any
        };
        exec
    }};
}
pub(crate) use whole;

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

#[cfg(test)]
mod tests {
    use super::wide_is_available;
    use crate::{Argument, Launch, Memory, Module, Options, launch::launch_on};

    /// Three words in, a chain of everything whose code differs between processors, words out.
    const KERNEL: &str = ".version 8.0\n.target sm_80\n.address_size 64
        .visible .entry k(.param .u64 in, .param .u64 out) {
        .reg .b32 %r<8>; .reg .f32 %f<16>; .reg .b64 %l<4>; .reg .b16 %h<4>; .reg .f64 %d<4>; .reg .pred %p;
        mov.u32 %r0, %tid.x; ld.param.u64 %l0, [in]; mad.wide.u32 %l0, %r0, 12, %l0;
        ld.global.f32 %f0, [%l0]; ld.global.f32 %f1, [%l0+4]; ld.global.f32 %f2, [%l0+8];
        fma.rn.f32 %f3, %f0, %f1, %f2; fma.rn.ftz.f32 %f4, %f1, %f2, %f0; ex2.approx.ftz.f32 %f5, %f0;
        cvt.f64.f32 %d0, %f0; cvt.f64.f32 %d1, %f1; fma.rn.f64 %d2, %d0, %d1, %d0; cvt.rn.f32.f64 %f6, %d2;
        cvt.rn.f16x2.f32 %r1, %f0, %f1; cvt.rn.f16x2.f32 %r2, %f1, %f2; fma.rn.f16x2 %r3, %r1, %r2, %r1;
        min.f32 %f7, %f0, %f1; div.rn.f32 %f8, %f0, %f1; sqrt.rn.f32 %f9, %f2; cvt.rni.s32.f32 %r4, %f1;
        ld.param.u64 %l1, [out]; mad.wide.u32 %l1, %r0, 36, %l1;
        st.global.f32 [%l1], %f3; st.global.f32 [%l1+4], %f4; st.global.f32 [%l1+8], %f5; st.global.f32 [%l1+12], %f6;
        st.global.u32 [%l1+16], %r3; st.global.f32 [%l1+20], %f7; st.global.f32 [%l1+24], %f8; st.global.f32 [%l1+28], %f9;
        st.global.u32 [%l1+32], %r4; ret; }";

    fn outputs(words: &[u32], wide: bool) -> Vec<u8> {
        let module = Module::parse_for(KERNEL, wide).expect("valid");
        let mut memory = Memory::new();
        let input = memory.allocate("in", 4 * words.len()).expect("small");
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        memory.write(input, &bytes).expect("in range");
        let mut out = vec![0; 12 * words.len()];
        let output = memory.allocate("out", out.len()).expect("small");
        let what = Launch {
            kernel: "k",
            grid: [1, 1, 1],
            block: [words.len() as u32 / 3, 1, 1],
            dynamic_shared_bytes: 0,
            arguments: &[Argument::U64(input), Argument::U64(output)],
        };
        let report = launch_on(&module, &mut memory, &what, &Options::default(), wide);
        assert!(report.expect("launch").findings.is_empty());
        memory.read(output, &mut out).expect("in range");
        out
    }

    /// The exact fused multiply-add in plain arithmetic, and everything else, against the
    /// processor's own instructions.
    #[test]
    fn every_processor_computes_the_same_bits() {
        if !wide_is_available() {
            println!("SKIP: this processor has no AVX2 and FMA to compare with");
            return;
        }
        let mut state = 1u64;
        for round in 0..400u32 {
            let words: Vec<u32> = (0..3 * 256)
                .map(|_| {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(99);
                    let any = (state >> 32) as u32;
                    // Odd rounds keep exponents close, where cancellation and ties happen.
                    if round % 2 == 0 { any } else { any & 0x81ff_f00f | 0x3e00_0000 }
                })
                .collect();
            assert_eq!(outputs(&words, true), outputs(&words, false), "round {round}");
        }
    }
}
