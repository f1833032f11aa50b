//! Registers that nothing has written: what depends on one is reported, with its name and lanes,
//! and moving one about is not.

use spanforge_emulator::{Check, Finding};

use crate::kernels::{Buffer, Ran, kernel, run};

/// Runs a body whose `%l0` is the address of the thread's word of 32, and which has two buffers.
fn ran(body: &str) -> Ran {
    let body = format!("mad.wide.u32 %l0, %t, 4, %p0; {body} ret;");
    run(&kernel(2, &body), vec![Buffer::Blank(256), Buffer::Words((0..64).collect())], 32)
}

fn clean(body: &str) -> Ran {
    let ran = ran(body);
    assert!(ran.report.findings.is_empty(), "{body}: {}", ran.report.findings[0]);
    ran
}

/// The finding of a body, which must be of this register and these lanes.
fn reported(body: &str, register: &str, lanes: impl IntoIterator<Item = u32>) -> Finding {
    let finding = ran(body).report.findings.into_iter().next();
    let finding = finding.unwrap_or_else(|| panic!("no finding in {body}"));
    assert_eq!(finding.check, Check::Uninitialised, "{finding}");
    assert!(finding.message.contains(&format!("`{register}`")), "{finding}");
    assert_eq!(finding.lanes, lanes.into_iter().collect::<Vec<u32>>(), "{finding}");
    finding
}

#[test]
fn a_value_stored_to_global_memory() {
    let finding = reported("add.u32 %r1, %r0, 1; st.global.u32 [%l0], %r1;", "%r0", 0..32);
    assert!(finding.instruction.starts_with("st.global"), "{finding}");
    let other = finding.other.as_ref().expect("what read it first");
    assert_eq!(other.instruction, "add.u32 %r1, %r0, 1;");
    assert!(finding.to_string().contains("come by the read `add.u32"), "{finding}");
    assert!(reported("st.global.u32 [%l0], %r0;", "%r0", 0..32).other.is_none());
    clean("mov.u32 %r0, 0; add.u32 %r1, %r0, 1; st.global.u32 [%l0], %r1;");
    clean("add.u32 %r1, %r0, 1; st.global.u32 [%l0], %t;");
    // The word of a vector that is defined does not excuse the other one.
    reported("setp.eq.u32 %q0, %t, 0; @%q0 st.global.v2.u32 [%p0], {%t, %r1};", "%r1", 0..1);
}

#[test]
fn only_the_lanes_that_have_not_written() {
    let body = |first: u32| {
        format!(
            "setp.ge.u32 %q0, %t, {first}; @%q0 mov.u32 %r0, 5; bar.warp.sync -1;
             mul.lo.u32 %r1, %r0, 3; st.global.u32 [%l0], %r1;"
        )
    };
    reported(&body(8), "%r0", 0..8);
    clean(&body(0));
}

#[test]
fn addresses_and_what_others_are_told() {
    let with = |text: &str| {
        let body =
            format!("and.b32 %r1, %r0, 3; cvt.u64.u32 %l1, %r1; add.u64 %l1, %l1, %p1; {text}");
        let finding = reported(&body, "%r0", 0..32);
        clean(&format!("mov.u32 %r0, 0; {body}"));
        finding.message
    };
    assert!(with("ld.global.u8 %r2, [%l1];").starts_with("the address of a read"));
    assert!(with("st.global.u8 [%l1], 0;").starts_with("the address of a write"));
    with("red.global.add.u32 [%p1], %r1;");
    with("bar.sync %r1;");
    with(
        "add.u32 %r2, %r1, -1; vote.sync.ballot.b32 %r3, 1, %r2;"
            .replace("-1", "0xffffffff")
            .as_str(),
    );
    with("shfl.sync.idx.b32 %r2, %t, %r1, 0x1f, 0xffffffff;");
    with(
        ".shared .align 16 .b8 s[128]; mov.u32 %r8, s; mad.lo.u32 %r8, %t, 4, %r8;
         cp.async.ca.shared.global [%r8], [%p1], 4, %r1; cp.async.wait_all;",
    );
}

#[test]
fn guards_and_branches() {
    for text in ["@%q0 bra END;", "@!%q0 st.global.u32 [%l0], 1;", "@%q0 mov.u32 %r1, 0;"] {
        let body = format!("setp.eq.u32 %q0, %r0, 7; {text} END:");
        assert!(reported(&body, "%r0", 0..32).message.starts_with("a guard"));
        clean(&format!("mov.u32 %r0, 0; {body}"));
    }
    // A predicate that nothing has written itself.
    reported("@%q1 bra END; END:", "%q1", 0..32);
}

#[test]
fn a_value_that_is_not_selected() {
    let body = |first: u32| {
        format!(
            "setp.lt.u32 %q0, %t, {first}; add.u32 %r1, %r0, 1; selp.u32 %r2, %r1, 9, %q0;
             st.global.u32 [%l0], %r2;"
        )
    };
    assert_eq!(clean(&body(0)).words(0, 32), [9; 32]);
    reported(&body(3), "%r0", 0..3);
    // Who does not know which one takes an unknown one.
    reported(
        "setp.eq.u32 %q0, %r0, 0; selp.u32 %r2, 1, 2, %q0; st.global.u32 [%l0], %r2;",
        "%r0",
        0..32,
    );
}

#[test]
fn a_use_under_the_condition_of_the_write() {
    let body = |condition: &str| {
        format!(
            "setp.lt.u32 %q0, %t, 20; setp.lt.u32 %q1, %t, 24; @%q0 ld.global.u32 %r0, [%p1];
             {condition} add.u32 %r1, %r0, 1; {condition} st.global.u32 [%l0], %r1;"
        )
    };
    clean(&body("@%q0"));
    reported(&body("@%q1"), "%r0", 20..24);
}

#[test]
fn an_accumulator_of_the_first_trip() {
    let body = |sum: &str| {
        format!(
            "mov.u32 %r0, 0; LOOP: setp.eq.u32 %q0, %r0, 0; {sum} add.u32 %r0, %r0, 1;
             setp.lt.u32 %q1, %r0, 4; @%q1 bra LOOP; st.global.u32 [%l0], %r1;"
        )
    };
    let ran = clean(&body("selp.u32 %r2, 0, %r1, %q0; add.u32 %r1, %r2, %r0;"));
    assert_eq!(ran.words(0, 32), [6; 32]);
    reported(&body("add.u32 %r1, %r1, %r0;"), "%r1", 0..32);
}

#[test]
fn a_word_of_which_half_is_written() {
    // %h1 is never written; each of these moves the lower half of %r0 about.
    let half = "mov.u16 %h0, 7; mov.b32 %r0, {%h0, %h1};";
    for text in [
        "mov.b32 {%h2, %h3}, %r0; cvt.u32.u16 %r1, %h2;",
        "and.b32 %r1, %r0, 0xffff;",
        "shl.b32 %r1, %r0, 16; shr.u32 %r1, %r1, 16;",
        "bfe.u32 %r1, %r0, 0, 16;",
        "prmt.b32 %r1, %r0, 0, 0x4410;",
        "shf.r.wrap.b32 %r1, 0, %r0, 16;",
        "bfi.b32 %r1, %r0, 0, 0, 16;",
        "or.b32 %r1, %r0, 0xffff0000;",
        "add.u32 %r1, %r0, 5; cvt.u16.u32 %h2, %r1; cvt.u32.u16 %r1, %h2;",
        "add.f16x2 %r1, %r0, %r0; and.b32 %r1, %r1, 0xffff;",
    ] {
        clean(&format!("{half} {text} st.global.u32 [%l0], %r1;"));
    }
    clean(&format!("{half} st.global.u16 [%l0], %r0;"));
    for text in [
        "mov.u32 %r1, %r0;",
        "mov.b32 {%h2, %h3}, %r0; cvt.u32.u16 %r1, %h3;",
        "and.b32 %r1, %r0, 0x1ffff;",
        "shr.u32 %r1, %r0, 16;",
        "shf.l.wrap.b32 %r1, %r0, 0, 16;",
        "bfe.u32 %r1, %r0, 8, 16;",
        "prmt.b32 %r1, %r0, 0, 0x4421;",
        "or.b32 %r1, %r0, 0x7fff0000;",
        "xor.b32 %r1, %r0, %r0;",
        "shl.b32 %r1, %t, %r0;",
        "mul.hi.u32 %r1, %r0, 2;",
        "mul.f16x2 %r1, %r0, %r0; shr.u32 %r1, %r1, 16;",
    ] {
        reported(&format!("{half} {text} st.global.u32 [%l0], %r1;"), "%h1", 0..32);
    }
    // Each half of a packed conversion comes from one source.
    let packed = "mov.f32 %f0, 0f3f800000; cvt.rn.f16x2.f32 %r0, %f1, %f0;";
    clean(&format!("{packed} st.global.u16 [%l0], %r0;"));
    reported(&format!("{packed} st.global.u32 [%l0], %r0;"), "%f1", 0..32);
}

#[test]
fn a_condition_that_the_other_one_decides() {
    let body = |first: &str, then: &str| {
        format!("setp.lt.u32 %q0, %t, {first}; setp.eq.u32 %q1, %r0, 0; {then} @%q2 bra END; END:")
    };
    for (and, decides, undecided) in [
        ("and.pred %q2, %q0, %q1;", "0", "40"),
        ("and.pred %q2, %q1, !%q0;", "40", "0"),
        ("or.pred %q2, %q0, %q1;", "40", "0"),
        ("setp.eq.and.u32 %q2, %r0, 3, %q0;", "0", "40"),
        ("setp.eq.or.u32 %q2, %r0, 3, !%q0;", "0", "40"),
    ] {
        clean(&body(decides, and));
        reported(&body(undecided, and), "%r0", 0..32);
    }
}

#[test]
fn a_value_that_lanes_pass_on() {
    // Lane 3 alone has nothing to pass on.
    let from = |lane: &str, then: &str| {
        format!(
            "setp.ne.u32 %q0, %t, 3; @%q0 mov.u32 %r0, %t; bar.warp.sync -1;
             shfl.sync.{lane}, 0x1f, 0xffffffff; {then} st.global.u32 [%l0], %r1;"
        )
    };
    clean(&from("idx.b32 %r1, %r0, 2", ""));
    reported(&from("idx.b32 %r1, %r0, 3", ""), "%r0", 0..32);
    reported(&from("bfly.b32 %r1, %r0, 1", ""), "%r0", [2]);
    reported(&from("idx.b32 %r1, %r0, 2", "redux.sync.add.u32 %r1, %r0, -1;"), "%r0", 0..32);
    let vote =
        |text: &str| from("idx.b32 %r1, %r0, 2", &format!("setp.eq.u32 %q1, %r0, 99; {text}"));
    reported(&vote("vote.sync.ballot.b32 %r1, %q1, -1;"), "%r0", 0..32);
    clean(&vote("vote.sync.ballot.b32 %r1, %q1, -1; and.b32 %r1, %r1, 0xfffffff7;"));
    reported(&vote("vote.sync.any.pred %q2, %q1, -1; selp.u32 %r1, 1, 0, %q2;"), "%r0", 0..32);
}

#[test]
fn bytes_of_shared_and_local_memory() {
    let shared = ".shared .align 16 .b8 s[128]; mov.u32 %r8, s; mad.lo.u32 %r8, %t, 4, %r8;";
    let local = ".local .align 16 .b8 s[16]; mov.u32 %r8, s;";
    for (declared, store, load) in [
        (shared, "st.shared.u32 [%r8], %r1;", "ld.shared.u32 %r2, [%r8];"),
        (
            shared,
            "cvt.u64.u32 %l1, %r8; cvta.shared.u64 %l1, %l1; st.u32 [%l1], %r1;",
            "ld.shared.u32 %r2, [%r8];",
        ),
        (local, "st.local.u32 [%r8], %r1;", "ld.local.u32 %r2, [%r8];"),
    ] {
        let undefined = format!("{declared} add.u32 %r1, %r0, %t; {store}");
        clean(&undefined);
        let finding = reported(&format!("{undefined} {load}"), "%r0", 0..1);
        assert!(finding.instruction.starts_with("ld."), "{finding}");
        assert!(finding.address.is_some(), "{finding}");
        let other = finding.other.as_ref().expect("what read it first");
        assert!(other.instruction.starts_with("add.u32"), "{finding}");
        // Written again, they count as written.
        clean(&format!("{undefined} mov.u32 %r1, 1; {store} {load} st.global.u32 [%l0], %r2;"));
    }
    // Only the half that is not written.
    let half =
        format!("{shared} mov.u16 %h0, 7; mov.b32 %r1, {{%h0, %h1}}; st.shared.u32 [%r8], %r1;");
    clean(&format!("{half} ld.shared.u16 %h2, [%r8];"));
    reported(&format!("{half} ld.shared.u16 %h2, [%r8+2];"), "%h1", 0..1);
}

#[test]
fn rows_and_columns_of_a_matrix_product() {
    // A is in %r0 and %r1, the lower rows in the latter; B in %r2, C in %f4 to %f7.
    let body = |missing: &str, result: &str| {
        format!(
            "setp.ne.u32 %q0, %t, 5; mov.u32 %r8, 0; mov.f32 %f8, 0f00000000;
             {missing}
             mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32
                 {{%f0, %f1, %f2, %f3}}, {{%r0, %r1}}, {{%r2}}, {{%f4, %f5, %f6, %f7}};
             st.global.f32 [%l0], {result};"
        )
    };
    let without = |missing: &str| {
        let words = (0..3).map(|at| (format!("%r{at}"), "mov.u32", "%r8"));
        let sums = (4..8).map(|at| (format!("%f{at}"), "mov.f32", "%f8"));
        let all = words.chain(sums).map(|(name, mov, zero)| {
            let guard = if name == missing { "@%q0 " } else { "" };
            format!("{guard}{mov} {name}, {zero}; ")
        });
        all.collect::<String>()
    };
    // Nothing of lane 5: it holds of A part of rows 1 and 9, of B part of column 1.
    for (missing, clean_result, result, lanes) in [
        ("%r0", "%f2", "%f1", vec![4, 5, 6, 7]),
        ("%r1", "%f1", "%f2", vec![4, 5, 6, 7]),
        ("%r2", "%f0", "%f1", (0..32).step_by(4).collect()),
        ("%f6", "%f0", "%f2", vec![5]),
    ] {
        clean(&body(&without(missing), clean_result));
        reported(&body(&without(missing), result), missing, lanes);
    }
    clean(&body(&without(""), "%f3"));
}

#[test]
fn a_carry_that_is_not_taken() {
    // `add.cc` only writes the carry, `addc` reads it.
    clean("add.cc.u32 %r0, %t, 1; addc.u32 %r1, 0, 0; st.global.u32 [%l0], %r1;");
    reported("addc.u32 %r1, 0, 0; st.global.u32 [%l0], %r1;", "the carry", 0..32);
}
