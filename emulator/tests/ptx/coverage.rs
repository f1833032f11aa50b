//! Lines of CUDA source: which were executed, and where inlined code came from.

use spanforge_emulator::{Module, Options};

use crate::kernels::{Buffer, run_with};

/// `g`, line 20 of b.cuh, is inlined into `f` at its line 10, and that into the kernel at line 3 of
/// a.cu. Thread 0 alone comes by line 11; line 12 is for threads that are not there.
const PTX: &str = r#".version 9.0
.target sm_80
.address_size 64
.visible .entry k(.param .u64 o)
{
.reg .pred %p<3>; .reg .b32 %r<4>; .reg .b64 %rd<4>;
	.loc	1 3 5
	.loc	2 10 5, function_name $L__info_string0, inlined_at 1 3 5
	.loc	2 20 9, function_name $L__info_string1, inlined_at 2 10 5
ld.param.u64 %rd0, [o];
mov.u32 %r0, %tid.x;
mul.wide.u32 %rd1, %r0, 4;
add.s64 %rd2, %rd0, %rd1;
st.global.u32 [%rd2], %r0;
	.loc	2 0 9
setp.ne.u32 %p0, %r0, 0;
@%p0 bra $L1;
	.loc	2 11 5, function_name $L__info_string0, inlined_at 1 3 5
mov.u32 %r1, 1;
$L1:
setp.lt.u32 %p1, %r0, 1000;
@%p1 bra $L2;
	.loc	2 12 5, function_name $L__info_string0, inlined_at 1 3 5
mov.u32 %r2, 1;
$L2:
	.loc	1 4 1
ret;
}
	.file	1 "a.cu"
	.file	2 "b.cuh"
"#;

#[test]
fn a_finding_names_the_calls_that_led_to_it() {
    let module = Module::parse(PTX).unwrap();
    let ran = run_with(&module, vec![Buffer::Blank(4)], 1, 2, 0, &Options::default());
    let finding = &ran.report.findings[0];
    let text = finding.to_string();
    assert!(
        text.contains(", b.cuh:20, inlined at b.cuh:10, inlined at a.cu:3) of kernel"),
        "{text}"
    );
    assert_eq!(finding.source.as_ref().unwrap().to_string(), "b.cuh:20");
    let json = serde_json::to_value(finding).unwrap();
    assert_eq!(json["inlined_at"][1], serde_json::json!({"file": "a.cu", "line": 3}));
}

#[test]
fn lines_are_counted_with_the_calls_that_were_inlined_at_them() {
    let module = Module::parse(PTX).unwrap();
    let options = Options { lines: true, ..Options::default() };
    let ran = run_with(&module, vec![Buffer::Blank(256)], 1, 64, 0, &options).clean();
    let counts = module.kernel("k").unwrap().line_counts(&ran.report.executed);
    let counts: Vec<_> =
        counts.iter().map(|c| (c.line.to_string(), c.warps, c.instructions)).collect();
    let expected = [
        ("a.cu:3", 2, 0),
        ("a.cu:4", 2, 2),
        ("b.cuh:10", 2, 0),
        // The two instructions after the branch target are of line 11 too, for all threads.
        ("b.cuh:11", 2, 5),
        ("b.cuh:12", 0, 0),
        ("b.cuh:20", 2, 10),
    ];
    assert_eq!(counts, expected.map(|(line, warps, all)| (line.to_owned(), warps, all)));
    let none = run_with(&module, vec![Buffer::Blank(256)], 1, 64, 0, &Options::default());
    assert!(none.report.executed.is_empty(), "only where it is asked for");
}

#[test]
fn calls_that_go_in_circles_end() {
    let mut text = PTX.to_owned();
    let circle = "\t.loc\t2 10 5, function_name $L__info_string0, inlined_at 2 10 5\n".repeat(1000);
    text = text.replacen("ld.param", &format!("{circle}ld.param"), 1);
    let module = Module::parse(&text).unwrap();
    let ran = run_with(&module, vec![Buffer::Blank(4)], 1, 2, 0, &Options::default());
    assert!(ran.report.findings[0].inlined_at.len() <= 64);
}
