//! What cannot be loaded or launched is refused with its place, and nothing panics.

use proptest::prelude::*;
use spanforge_emulator::{Argument, Launch, LaunchError, Memory, Module, Options, launch};

use crate::kernels::source;

fn refused(body: &str) -> String {
    let text = source(".param .u64 o", body);
    Module::parse(&text).expect_err("should be refused").to_string()
}

#[test]
fn unknown_opcodes_modifiers_and_names_are_named() {
    let wmma = refused(".reg .b32 %r<4>;\nmov.u32 %r0, 1;\nwmma.fence.sync.aligned;\nret;");
    assert_eq!(wmma, "PTX line 8: opcode `wmma` is not supported: `wmma.fence.sync.aligned;`");
    let modifier = refused(".reg .b32 %r<4>;\nadd.wrong.u32 %r0, %r1, %r2;");
    assert!(modifier.contains("line 7") && modifier.contains("`.wrong` of `add`"), "{modifier}");
    let register = refused(".reg .b32 %r<4>;\nadd.u32 %r0, %r1, %r4;");
    assert!(register.contains("`%r4` is not declared"), "{register}");
    let label = refused("bra NOWHERE;");
    assert!(label.contains("label `NOWHERE` is not declared"), "{label}");
    let width = refused(".reg .b32 %r<4>; .reg .b64 %l<4>;\nadd.u32 %r0, %r1, %l0;");
    assert!(width.contains("`%l0` is 64 bits wide, 32 were expected"), "{width}");
    let recursion = Module::parse(
        ".version 8.0\n.target sm_80\n.address_size 64\n.func f() { call f; ret; }\n.visible .entry k() { call f; ret; }",
    );
    assert!(recursion.expect_err("recursive").reason.contains("recursive"));
}

#[test]
fn labels_and_registers_are_scoped() {
    let text = source(
        ".param .u64 o",
        ".reg .b32 %r<2>; .reg .pred %q; { .reg .b64 %r0; mov.u64 %r0, 5; bra OUT; OUT: } { .reg .b16 %r1; mov.u16 %r1, 5; bra OUT; OUT: } mov.u32 %r0, 1; ret;",
    );
    Module::parse(&text).unwrap_or_else(|error| panic!("{error}"));
}

const SAMPLE: &str = r#"
// A little of everything the parser knows.
.version 9.0
.target sm_90a, debug
.address_size 64
.extern .shared .align 128 .b8 dynamic[];
.global .align 4 .f32 g[3] = {0f3F800000, 1.5, -2};
.const .align 8 .u64 c = g;
.func (.param .b32 r) f(.param .b32 a) { .reg .b32 %r<2>; ld.param.u32 %r0, [a]; st.param.b32 [r+0], %r0; ret; }
.visible .entry k(.param .u64 .ptr .global .align 16 p, .param .align 8 .b8 s[24])
.maxntid 128, 1, 1
.minnctapersm 2
{
 .reg .pred %p<4>; .reg .b16 %h<4>; .reg .b32 %r<16>; .reg .f32 %f<4>; .reg .b64 %l<4>;
 .local .align 16 .b8 depot[64];
 .loc 1 10 3, function_name $L__info_string0, inlined_at 1 30 2
 ld.param.u64 %l0, [p]; cvta.to.global.u64 %l1, %l0;
 @%p0 bra $L1; /* a comment */
 setp.lt.and.s32 %p1|%p2, %r0, -0x1F, !%p0;
 mov.b64 {%r1, %r2}, %l1; ld.global.nc.L1::no_allocate.L2::128B.v2.f32 {%f0, %f1}, [%l1+-8];
 { .param .b32 a0; st.param.b32 [a0], %r1; .param .b32 r0; call.uni (r0), f, (a0); ld.param.b32 %r3, [r0]; }
 ts: .branchtargets $L1, $L2;
 brx.idx %r3, ts;
$L1: shfl.sync.bfly.b32 %r4|%p3, %r1, 1, 31, -1;
$L2: ret;
}
.section .debug_str { $L__info_string0: .b8 95, 90 }
.file 1 "x.cu"
"#;

#[test]
fn every_truncation_is_an_answer() {
    Module::parse(SAMPLE).unwrap_or_else(|error| panic!("{error}"));
    for end in 0..SAMPLE.len() {
        // Complete only where nothing but the tail of comments and tables is missing.
        let _ = Module::parse(&SAMPLE[..end]);
    }
    let cut = &SAMPLE[..SAMPLE.find("$L2: ret").expect("there")];
    let error = Module::parse(cut).expect_err("the body is open");
    assert!(error.reason.contains("the file ends here"), "{error}");
}

proptest! {
    #[test]
    fn damaged_text_never_panics(at in 0..SAMPLE.len(), length in 0usize..12, with in "[ -~\n]{0,6}") {
        let end = (at + length).min(SAMPLE.len());
        let _ = Module::parse(&format!("{}{with}{}", &SAMPLE[..at], &SAMPLE[end..]));
    }

    #[test]
    fn swapped_words_never_panic(a in 0usize..300, b in 0usize..300) {
        let mut words: Vec<&str> = SAMPLE.split_inclusive([' ', ',', ';', '.']).collect();
        let n = words.len();
        words.swap(a % n, b % n);
        let _ = Module::parse(&words.concat());
    }
}

#[test]
fn launches_are_checked() {
    let module = Module::parse(SAMPLE).expect("valid");
    assert_eq!(module.kernel_names(), ["k"]);
    assert_eq!(module.target(), "sm_90a");
    let parameters = module.kernel("k").expect("there").parameters();
    assert_eq!(
        parameters.iter().map(|p| (p.offset, p.bytes)).collect::<Vec<_>>(),
        [(0, 8), (8, 24)]
    );
    let try_launch = |kernel: &str, block: u32, shared: u32, arguments: &[Argument]| {
        let what = Launch {
            kernel,
            grid: [1, 1, 1],
            block: [block, 1, 1],
            dynamic_shared_bytes: shared,
            arguments,
        };
        launch(&module, &mut Memory::new(), &what, &Options::default()).expect_err("refused")
    };
    let fine = [Argument::U64(0), Argument::Bytes(vec![0; 24])];
    assert!(matches!(try_launch("q", 32, 0, &fine), LaunchError::UnknownKernel { .. }));
    assert!(matches!(
        try_launch("k", 32, 0, &fine[..1]),
        LaunchError::ArgumentCount { expected: 2, given: 1, .. }
    ));
    let wrong = [Argument::U32(0), fine[1].clone()];
    assert!(matches!(
        try_launch("k", 32, 0, &wrong),
        LaunchError::ArgumentSize { index: 0, expected: 8, given: 4, .. }
    ));
    assert!(matches!(
        try_launch("k", 129, 0, &fine),
        LaunchError::Dimensions { what: "block", .. }
    ));
    assert!(matches!(try_launch("k", 0, 0, &fine), LaunchError::Dimensions { .. }));
    assert!(matches!(try_launch("k", 32, 1 << 20, &fine), LaunchError::SharedMemory { .. }));
}

#[test]
fn memory_refuses_what_it_cannot_do() {
    let mut memory = Memory::new();
    assert!(memory.allocate("huge", usize::MAX).is_err());
    assert!(memory.allocate("large", 1 << 50).is_err());
    let a = memory.allocate("a", 8).expect("small");
    assert!(memory.write(a + 4, &[0; 5]).is_err());
    assert!(memory.write(a + 4, &[1; 4]).is_ok());
    assert!(memory.read(a - 1, &mut [0]).is_err());
    assert!(memory.free(a + 1).is_err());
    memory.free(a).expect("live");
    assert!(memory.free(a).is_err());
    assert!(memory.read(a, &mut [0]).is_err());
}

#[test]
fn what_is_refused_is_named() {
    let with = |body: &str| {
        crate::kernels::source(
            ".param .u64 a",
            &format!(".reg .b32 %r<9>; .reg .b64 %l<9>; .reg .f32 %f<9>; {body} ret;"),
        )
    };
    for (body, reason) in [
        ("tex.1d.v4.f32.s32 {%f0, %f1, %f2, %f3}, [%l0, {%r0}];", "opcode `tex` is not supported"),
        ("p: .callprototype (.param .b32 _) _ (.param .b32 _);", "calls through pointers"),
        ("call (%r0), %l1, (%r1), p;", "calls through pointers"),
    ] {
        let error = Module::parse(&with(body)).expect_err(body);
        assert!(error.to_string().contains(reason), "{error}");
    }
}
