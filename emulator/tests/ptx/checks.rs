//! Every check fires on a planted bug, with the right place, and not on its correct twin.

use spanforge_emulator::{Check, Finding, Module, Options};

use crate::kernels::{Buffer, Ran, kernel, run, run_with, source};

fn finding(ran: &Ran) -> &Finding {
    ran.report.findings.first().expect("a finding")
}

fn shared(body: &str) -> Module {
    let text = source(".param .u64 o", body);
    Module::parse(&text).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn one_word_past_a_buffer() {
    let module = kernel(1, "mad.wide.u32 %l0, %t, 4, %p0;\nst.global.u32 [%l0+4], 1;\nret;");
    let ran = run(&module, vec![Buffer::Blank(128)], 32);
    let finding = finding(&ran);
    assert_eq!(finding.check, Check::OutOfBounds);
    assert_eq!(finding.lanes, [31]);
    assert_eq!(finding.address.as_deref(), Some("`buffer0` + 128"));
    assert_eq!(finding.instruction, "st.global.u32 [%l0+4], 1;");
    run(&module, vec![Buffer::Blank(132)], 32).clean();
}

#[test]
fn far_past_a_buffer_is_not_the_next_one() {
    let module = kernel(2, "st.global.u32 [%p0+1048576], 1; ret;");
    let ran = run(&module, vec![Buffer::Blank(16), Buffer::Blank(1 << 22)], 1);
    assert_eq!(finding(&ran).check, Check::OutOfBounds);
    let null = kernel(1, "mov.u64 %l0, 0; ld.global.u32 %r0, [%l0]; ret;");
    assert_eq!(finding(&run(&null, vec![Buffer::Blank(16)], 1)).check, Check::OutOfBounds);
}

#[test]
fn misaligned_vector_load() {
    let module = kernel(1, "ld.global.v4.u32 {%r0, %r1, %r2, %r3}, [%p0+8]; ret;");
    let ran = run(&module, vec![Buffer::Words(vec![0; 16])], 1);
    assert_eq!(finding(&ran).check, Check::Misaligned);
    let off = Options { checks: false, ..Options::default() };
    run_with(&module, vec![Buffer::Words(vec![0; 16])], 1, 1, 0, &off).clean();
}

#[test]
fn uninitialised_bytes_are_known_exactly() {
    // One byte of a word is written.
    let module = kernel(
        1,
        "st.global.u8 [%p0+5], 1; ld.global.u8 %r0, [%p0+5]; ld.global.u32 %r1, [%p0+4]; ret;",
    );
    let ran = run(&module, vec![Buffer::Blank(8)], 1);
    assert_eq!(finding(&ran).check, Check::Uninitialised);
    assert!(finding(&ran).instruction.starts_with("ld.global.u32"));
    assert_eq!(finding(&ran).address.as_deref(), Some("`buffer0` + 4"));
    let local = shared(
        ".reg .b32 %r<2>; .local .align 4 .b8 a[8]; st.local.u32 [a], 1; ld.local.u32 %r0, [a+4]; ret;",
    );
    let ran = run_with(&local, vec![Buffer::Blank(8)], 1, 1, 0, &Options::default());
    assert_eq!(finding(&ran).check, Check::Uninitialised);
}

#[test]
fn running_from_one_shared_variable_into_the_next() {
    let body = |offset: u32| {
        format!(
            ".reg .b32 %r<2>; .shared .align 4 .b8 a[64]; .shared .align 4 .b8 b[64];
             mov.u32 %r0, b; st.shared.u32 [%r0], 1; st.shared.u32 [a+{offset}], 1; ret;"
        )
    };
    let good = run_with(&shared(&body(60)), vec![Buffer::Blank(8)], 1, 1, 0, &Options::default());
    good.clean();
    let ran = run_with(&shared(&body(64)), vec![Buffer::Blank(8)], 1, 1, 0, &Options::default());
    assert_eq!(finding(&ran).check, Check::OutOfBounds);
    assert_eq!(finding(&ran).address.as_deref(), Some("shared `a` + 64"));
}

/// A copy of 16 bytes, `wait` between it and the read.
fn copying(wait: &str) -> Module {
    kernel(
        2,
        &format!(
            ".shared .align 16 .b8 s[512]; mov.u32 %r0, s; mad.lo.u32 %r0, %t, 16, %r0; mad.wide.u32 %l0, %t, 16, %p0;
             cp.async.cg.shared.global [%r0], [%l0], 16; cp.async.commit_group;
             {wait}
             ld.shared.u32 %r1, [%r0+4]; mad.wide.u32 %l1, %t, 4, %p1; st.global.u32 [%l1], %r1; ret;"
        ),
    )
}

#[test]
fn asynchronous_copies_land_when_waited_for() {
    let buffers = || vec![Buffer::Words((0..128).collect()), Buffer::Blank(128)];
    for wait in ["cp.async.wait_group 0;", "cp.async.wait_all;"] {
        let ran = run(&copying(wait), buffers(), 32).clean();
        assert_eq!(ran.words(1, 32), (0..32).map(|l| 4 * l + 1).collect::<Vec<u32>>());
    }
    for wait in ["", "cp.async.wait_group 1;", "bar.sync 0;"] {
        let ran = run(&copying(wait), buffers(), 32);
        assert_eq!(finding(&ran).check, Check::AsyncHazard, "{wait}");
        assert!(finding(&ran).message.contains("not been waited for"), "{}", finding(&ran));
        let other = finding(&ran).other.as_ref().expect("the copy");
        assert!(other.instruction.starts_with("cp.async.cg"), "{other}");
    }
    // Groups are each lane's own: only odd lanes commit a second, empty group, so only their
    // first one is due.
    let mixed = "and.b32 %r5, %t, 1; setp.eq.u32 %q0, %r5, 1; @%q0 cp.async.commit_group; cp.async.wait_group 1;";
    let ran = run(&copying(mixed), buffers(), 32);
    assert_eq!(finding(&ran).lanes, (0..32).step_by(2).collect::<Vec<u32>>());
}

/// Which of the two a copy reads is not said before it was waited for, so both are tried.
#[test]
fn asynchronous_copies_read_between_issue_and_wait() {
    let module = kernel(
        2,
        ".shared .align 16 .b8 s[16]; mov.u32 %r0, s; cp.async.cg.shared.global [%r0], [%p0], 16;
         mov.u32 %r1, 7; st.global.u32 [%p0], %r1; cp.async.wait_all;
         ld.shared.u32 %r2, [%r0]; st.global.u32 [%p1], %r2; ret;",
    );
    let read = |seed| {
        let options = Options { seed, ..Options::default() };
        let buffers = vec![Buffer::Words(vec![5; 4]), Buffer::Blank(4)];
        run_with(&module, buffers, 1, 1, 0, &options).words(1, 1)[0]
    };
    assert_eq!(read(0), 7);
    assert!((1..20).any(|seed| read(seed) == 5));
}

#[test]
fn zero_source_size_fills_and_is_not_bounded() {
    let module = kernel(
        2,
        ".shared .align 16 .b8 s[512]; mov.u32 %r0, s; mad.lo.u32 %r0, %t, 16, %r0; mad.wide.u32 %l0, %t, 16, %p0;
         setp.lt.u32 %q0, %t, 4; selp.u32 %r2, 16, 0, %q0; setp.eq.u32 %q1, %t, 4; selp.u32 %r2, 8, %r2, %q1;
         cp.async.cg.shared.global [%r0], [%l0], 16, %r2; cp.async.wait_all;
         ld.shared.u32 %r1, [%r0+12]; mad.wide.u32 %l1, %t, 4, %p1; st.global.u32 [%l1], %r1; ret;",
    );
    // 72 bytes: four whole rows and half of the fifth.
    let ran = run(&module, vec![Buffer::Words((1..19).collect()), Buffer::Blank(128)], 32).clean();
    let mut wanted = vec![0; 32];
    wanted[..4].copy_from_slice(&[4, 8, 12, 16]);
    assert_eq!(ran.words(1, 32), wanted);
    assert_eq!(ran.report.counters.async_copy.bytes, 72);
}

#[test]
fn barrier_that_some_threads_skip() {
    // Threads 0 to 39 go around the barrier and store what only code behind it stores.
    let module = kernel(
        1,
        "setp.lt.u32 %q0, %t, 40; mad.wide.u32 %l0, %t, 4, %p0; @%q0 bra SKIP; bar.sync 0;
         SKIP: st.global.u32 [%l0], %t; ret;",
    );
    let ran = run(&module, vec![Buffer::Blank(384)], 96);
    assert_eq!(finding(&ran).check, Check::BarrierDivergence);
    assert_eq!(finding(&ran).instruction, "bar.sync 0;");
    // Without checks, threads that have left are not waited for, as on hardware.
    let off = Options { checks: false, ..Options::default() };
    run_with(&module, vec![Buffer::Blank(384)], 1, 96, 0, &off).clean();
}

#[test]
fn threads_that_leave_before_a_barrier_are_not_waited_for() {
    // What `if (i >= n) return;` compiles to, with barriers in a loop: as GPUs do since Volta.
    let module = kernel(
        1,
        "mad.wide.u32 %l0, %t, 4, %p0; st.global.u32 [%l0], 1; setp.ge.u32 %q0, %t, 40; @%q0 bra OUT;
         mov.u32 %r0, 0; LOOP: bar.sync 0; add.u32 %r0, %r0, 1; bar.red.popc.u32 %r1, 0, %q0; setp.lt.u32 %q1, %r0, 3; @%q1 bra LOOP;
         st.global.u32 [%l0], %r0; OUT: ret;",
    );
    for seed in 0..5 {
        let options = Options { seed, ..Options::default() };
        let ran = run_with(&module, vec![Buffer::Blank(384)], 1, 96, 0, &options).clean();
        let wanted: Vec<u32> = (0..96).map(|t| if t < 40 { 3 } else { 1 }).collect();
        assert_eq!(ran.words(0, 96), wanted);
    }
}

#[test]
fn a_shuffle_that_some_members_go_around() {
    let module = kernel(
        1,
        "mad.wide.u32 %l0, %t, 4, %p0; mov.u32 %r0, 0; setp.ge.u32 %q0, %t, 16; @%q0 bra ON;
         shfl.sync.bfly.b32 %r0, %t, 1, 0x1f, 0xffffffff; ON: st.global.u32 [%l0], %r0; ret;",
    );
    let ran = run(&module, vec![Buffer::Blank(128)], 32);
    assert_eq!(finding(&ran).check, Check::ShuffleDivergence);
    assert_eq!(finding(&ran).lanes, (16..32).collect::<Vec<u32>>());
}

#[test]
fn two_barriers_that_wait_for_each_other() {
    let module = kernel(
        1,
        "setp.lt.u32 %q0, %t, 32; @%q0 bra ONE; bar.sync 2, 64; bar.sync 1, 64; ret; ONE: bar.sync 1, 64; bar.sync 2, 64; ret;",
    );
    let ran = run(&module, vec![Buffer::Blank(4)], 64);
    assert_eq!(finding(&ran).check, Check::Deadlock);
}

#[test]
fn lanes_of_a_warp_at_two_barrier_instructions() {
    let module = kernel(
        1,
        "setp.lt.u32 %q0, %t, 16; @%q0 bra ONE; bar.sync 0; bra OUT; ONE: bar.sync 0; OUT: ret;",
    );
    let ran = run(&module, vec![Buffer::Blank(4)], 32);
    assert_eq!(finding(&ran).check, Check::BarrierDivergence);
}

#[test]
fn shuffle_that_some_lanes_cannot_reach() {
    // Lanes 16 to 31 stand at a barrier that the others reach only after the shuffle.
    let module = kernel(
        1,
        "setp.ge.u32 %q0, %t, 16; @%q0 bra WAIT; shfl.sync.bfly.b32 %r0, %t, 1, 0x1f, 0xffffffff; WAIT: bar.sync 0; ret;",
    );
    let ran = run(&module, vec![Buffer::Blank(4)], 32);
    assert_eq!(finding(&ran).check, Check::ShuffleDivergence);
    assert!(finding(&ran).instruction.starts_with("shfl"));
    // Lanes that have exited are not members any more.
    let left = kernel(
        1,
        "setp.ge.u32 %q0, %t, 16; @%q0 ret; shfl.sync.bfly.b32 %r0, %t, 1, 0x1f, 0xffffffff; ret;",
    );
    run(&left, vec![Buffer::Blank(4)], 32).clean();
}

#[test]
fn endless_loops_end() {
    let module = kernel(1, "LOOP: add.u32 %r0, %r0, 1; bra LOOP;");
    let options = Options { instruction_budget: 100_000, ..Options::default() };
    let ran = run_with(&module, vec![Buffer::Blank(4)], 1, 32, 0, &options);
    assert_eq!(finding(&ran).check, Check::Deadlock);
    assert!(finding(&ran).message.contains("100000"));
}

#[test]
fn traps_and_freed_memory() {
    let module = kernel(1, "trap; ret;");
    assert_eq!(finding(&run(&module, vec![Buffer::Blank(4)], 1)).check, Check::Trap);
}

#[test]
fn findings_name_the_source_line() {
    let text = format!(
        "{}\n.file 1 \"saxpy.cu\"\n",
        source(
            ".param .u64 o",
            ".reg .b64 %l;\nld.param.u64 %l, [o];\n.loc 1 42 7\nst.global.u64 [%l+8], %l;\nret;"
        )
    );
    let module = Module::parse(&text).expect("valid");
    let ran = run_with(&module, vec![Buffer::Blank(8)], 1, 1, 0, &Options::default());
    let finding = finding(&ran);
    assert_eq!(finding.source.as_ref().map(|s| (s.file.as_str(), s.line)), Some(("saxpy.cu", 42)));
    assert_eq!(finding.ptx_line, 9);
    let text = finding.to_string();
    assert!(text.starts_with("out-of-bounds: write of 8 bytes"), "{text}");
    assert!(text.contains("saxpy.cu:42") && text.contains("`buffer0` + 8"), "{text}");
}
