//! Races: every rule of ordering with a kernel that keeps it and a twin that does not. Both run
//! under many schedules: a race is found whatever the schedule, and a correct kernel never has one.

use spanforge_emulator::{Check, Finding, Module, Options};

use crate::kernels::{Buffer, Ran, kernel, run_with};

const SEEDS: u64 = 24;

fn runs(module: &Module, words: usize, grid: u32, block: u32) -> impl Iterator<Item = Ran> {
    (0..SEEDS).map(move |seed| {
        let options = Options { seed, instruction_budget: 1 << 22, ..Options::default() };
        run_with(module, vec![Buffer::Words(vec![0; words])], grid, block, 0, &options)
    })
}

/// No schedule finds anything.
fn clean(body: &str, grid: u32, block: u32) {
    let module = kernel(1, body);
    runs(&module, 512, grid, block).for_each(|ran| drop(ran.clean()));
}

/// Every schedule finds this.
fn racy(check: Check, body: &str, grid: u32, block: u32) -> Finding {
    let module = kernel(1, body);
    let mut found = None;
    for ran in runs(&module, 512, grid, block) {
        let finding = ran.report.findings.first().expect("a finding").clone();
        assert_eq!(finding.check, check, "{finding}");
        found.get_or_insert(finding);
    }
    found.expect("at least one schedule")
}

/// Thread t writes word t of shared memory and reads that of a neighbour: `between` stands between.
fn neighbours(distance: u32, between: &str) -> String {
    format!(
        ".shared .align 4 .b8 s[1024]; mov.u32 %r0, s; shl.b32 %r1, %t, 2; add.u32 %r2, %r0, %r1;
         st.shared.u32 [%r2], 0; bar.sync 0; st.shared.u32 [%r2], %t; {between} xor.b32 %r3, %r1, {distance}; add.u32 %r3, %r3, %r0;
         ld.shared.u32 %r4, [%r3]; mad.wide.u32 %l0, %t, 4, %p0; st.global.u32 [%l0], %r4; ret;"
    )
}

#[test]
fn between_warps_a_barrier_orders_and_nothing_less() {
    clean(&neighbours(128, "bar.sync 0;"), 2, 64);
    clean(&neighbours(128, "barrier.sync 3, 64;"), 2, 64);
    for between in ["", "bar.warp.sync -1;", "membar.gl;", "shfl.sync.idx.b32 %r5, %t, 0, 31, -1;"]
    {
        let finding = racy(Check::Race, &neighbours(128, between), 1, 64);
        let other = finding.other.as_ref().expect("two parties");
        assert_ne!(finding.warp, other.warp);
    }
}

#[test]
fn a_producer_arrives_and_a_consumer_waits() {
    // Warp 0 writes and arrives at barrier 1, warp 1 waits there, reads, and arrives at barrier 2.
    let body = |full: &str, empty: &str| {
        format!(
            ".shared .align 4 .b8 s[128]; mov.u32 %r0, s; and.b32 %r1, %t, 31; shl.b32 %r1, %r1, 2;
             add.u32 %r2, %r0, %r1; setp.lt.u32 %q0, %t, 32; mov.u32 %r5, 0; @!%q0 bra CONSUME;
             PRODUCE: st.shared.u32 [%r2], %r5; {full} {empty} add.u32 %r5, %r5, 1; setp.lt.u32 %q1, %r5, 3;
             @%q1 bra PRODUCE; bra END;
             CONSUME: bar.sync 1, 64; ld.shared.u32 %r3, [%r2]; bar.arrive 2, 64; add.u32 %r5, %r5, 1;
             setp.lt.u32 %q1, %r5, 3; @%q1 bra CONSUME; END: ret;"
        )
    };
    clean(&body("bar.arrive 1, 64;", "bar.sync 2, 64;"), 1, 64);
    // The producer does not wait until its last value has been read.
    racy(
        Check::Race,
        &body("bar.arrive 1, 64; st.shared.u32 [%r2], 9; bar.sync 2, 64;", ""),
        1,
        64,
    );
}

#[test]
fn within_a_warp_bar_warp_sync_orders_and_shuffles_do_not() {
    clean(&neighbours(4, "bar.warp.sync -1;"), 1, 32);
    clean(&neighbours(4, "bar.sync 0;"), 1, 32);
    // Neighbours are in one half of the warp; each half meets for itself.
    let halves =
        "setp.lt.u32 %q0, %t, 16; selp.u32 %r6, 65535, 0xffff0000, %q0; bar.warp.sync %r6;";
    clean(&neighbours(4, halves), 1, 32);
    racy(Check::Race, &neighbours(64, halves), 1, 32);
    let finding =
        racy(Check::Race, &neighbours(4, "shfl.sync.bfly.b32 %r5, %t, 1, 31, -1;"), 1, 32);
    assert_eq!(finding.instruction, "ld.shared.u32 %r4, [%r3];");
    let other = finding.other.expect("the write");
    assert_eq!(other.instruction, "st.shared.u32 [%r2], %t;");
    assert_eq!((other.warp, finding.warp), (0, 0));
}

/// Lane 0 of each eight writes a word, all eight read it, and then one writes it again, of the same
/// warp or the one `distance` threads on.
fn eight_readers(before: &str, after: &str, distance: u32) -> String {
    format!(
        ".shared .align 4 .b8 s[64]; mov.u32 %r0, s; shr.u32 %r1, %t, 3; mad.lo.u32 %r2, %r1, 4, %r0;
         and.b32 %r3, %t, 7; setp.eq.u32 %q0, %r3, 0; @%q0 st.shared.u32 [%r2], 0;
         {before} ld.shared.u32 %r4, [%r2];
         {after} setp.eq.u32 %q1, %r3, 5; xor.b32 %r5, %t, {distance}; shr.u32 %r5, %r5, 3;
         mad.lo.u32 %r6, %r5, 4, %r0; @%q1 st.shared.u32 [%r6], %t;
         mad.wide.u32 %l0, %t, 4, %p0; st.global.u32 [%l0], %r4; ret;"
    )
}

#[test]
fn lanes_that_read_one_address_together_are_all_remembered() {
    let (warp, block) = ("bar.warp.sync -1;", "bar.sync 0;");
    clean(&eight_readers(warp, warp, 0), 2, 64);
    clean(&eight_readers(block, block, 32), 2, 64);
    // What one of them wrote is not ordered before the others.
    let finding = racy(Check::Race, &eight_readers("", warp, 0), 1, 64);
    assert!(finding.instruction.starts_with("ld.shared"), "{finding}");
    assert_eq!(finding.lanes[..7], [1, 2, 3, 4, 5, 6, 7], "all but the writer: {finding}");
    // All but the writer itself read it, unordered, before the write.
    let finding = racy(Check::Race, &eight_readers(warp, "", 0), 1, 64);
    let other = finding.other.as_ref().expect("the readers");
    assert_eq!((other.action.as_str(), other.lanes.len()), ("read", 8), "{finding}");
    let finding = racy(Check::Race, &eight_readers(block, warp, 32), 1, 64);
    assert_ne!(finding.other.as_ref().map(|other| other.warp), Some(finding.warp), "{finding}");
}

#[test]
fn warps_that_read_the_same_row_are_all_remembered() {
    // Warps read the same 32 words, lane by lane, and one of them writes them.
    let body = |between: &str, writer: u32| {
        format!(
            ".shared .align 4 .b8 s[128]; mov.u32 %r0, s; and.b32 %r1, %t, 31; shr.u32 %r5, %t, 5;
             mad.lo.u32 %r2, %r1, 4, %r0; setp.lt.u32 %q0, %t, 32; @%q0 st.shared.u32 [%r2], 0;
             bar.sync 0; ld.shared.u32 %r4, [%r2]; {between} setp.eq.u32 %q1, %r5, {writer};
             @%q1 st.shared.u32 [%r2], %t; mad.wide.u32 %l0, %t, 4, %p0; st.global.u32 [%l0], %r4;
             ret;"
        )
    };
    for (warps, writer) in [(2, 0), (2, 1), (4, 0), (4, 3)] {
        clean(&body("bar.sync 0;", writer), 1, 32 * warps);
        let finding = racy(Check::Race, &body("bar.warp.sync -1;", writer), 1, 32 * warps);
        let other = finding.other.as_ref().expect("two parties");
        assert!(finding.warp == writer || other.warp == writer, "{finding}");
        assert_ne!(finding.warp, other.warp, "{finding}");
    }
    // Two rows, as far as the second warp goes, of which the end is read by one more.
    let rows = body("bar.warp.sync -1;", 1).replace("and.b32 %r1, %t, 31", "min.u32 %r1, %t, 31");
    racy(Check::Race, &rows, 1, 64);
}

#[test]
fn bytes_are_told_apart() {
    let halves = |size: u32| {
        format!(
            ".shared .align 4 .b8 s[256]; mov.u32 %r0, s; mad.lo.u32 %r1, %t, {size}, %r0;
             cvt.u16.u32 %h0, %t; st.shared.u16 [%r1], %h0; ld.shared.u16 %h1, [%r1];
             mad.wide.u32 %l0, %t, 4, %p0; cvt.u32.u16 %r2, %h1; st.global.u32 [%l0], %r2; ret;"
        )
    };
    clean(&halves(2), 1, 64);
    racy(
        Check::Race,
        &halves(1)
            .replace(".u16 [", ".u8 [")
            .replace(".u16 %h1, [", ".u8 %h1, [")
            .replace("%t, 1,", "0, 1,"),
        1,
        64,
    );
}

#[test]
fn lanes_that_store_one_value_agree_and_others_do_not() {
    clean("st.global.u32 [%p0], 7; ret;", 3, 64);
    let finding = racy(Check::Race, "st.global.u32 [%p0], %t; ret;", 1, 32);
    assert!(finding.message.contains("different values"), "{finding}");
}

#[test]
fn a_barrier_between_reads_and_the_next_write() {
    let again = |between: &str| {
        format!(
            ".shared .align 4 .b8 s[4]; mov.u32 %r0, 0;
             LOOP: setp.eq.u32 %q0, %t, 0; @%q0 st.shared.u32 [s], %r0; bar.sync 0;
             ld.shared.u32 %r1, [s]; {between} add.u32 %r0, %r0, 1; setp.lt.u32 %q1, %r0, 3; @%q1 bra LOOP;
             mad.wide.u32 %l0, %t, 4, %p0; st.global.u32 [%l0], %r1; ret;"
        )
    };
    clean(&again("bar.sync 0;"), 1, 64);
    let finding = racy(Check::Race, &again(""), 1, 64);
    assert!(finding.instruction.contains("shared.u32"), "{finding}");
}

/// Every block writes its word, says so by an atomic, and the last one to say it reads them all.
fn last_arriver(before: &str, after: &str) -> String {
    format!(
        "mov.u32 %r0, %ctaid.x; mad.wide.u32 %l0, %r0, 4, %p0; mov.u32 %r1, %nctaid.x;
         setp.ne.u32 %q0, %t, 0; @%q0 bra END;
         add.u32 %r9, %r0, 100; st.global.u32 [%l0+4], %r9; {before}
         atom.global.add.u32 %r2, [%p0], 1; {after} sub.u32 %r1, %r1, 1; setp.ne.u32 %q1, %r2, %r1; @%q1 bra END;
         mov.u32 %r3, 0; mov.u32 %r5, 0; LOOP: mad.wide.u32 %l1, %r3, 4, %p0; ld.global.u32 %r4, [%l1+4]; add.u32 %r5, %r5, %r4;
         add.u32 %r3, %r3, 1; setp.le.u32 %q2, %r3, %r1; @%q2 bra LOOP;
         st.global.u32 [%p0+256], %r5; st.global.u32 [%p0], 0; END: ret;"
    )
}

#[test]
fn blocks_are_ordered_by_fences_around_atomics() {
    for (before, after) in [
        ("membar.gl;", "membar.gl;"),
        ("fence.acq_rel.gpu;", "fence.acq_rel.gpu;"),
        ("fence.sc.sys;", "fence.acq_rel.gpu;"),
    ] {
        clean(&last_arriver(before, after), 5, 32);
    }
    clean(&last_arriver("", "").replace("atom.global.add", "atom.acq_rel.gpu.global.add"), 5, 32);
    for (before, after) in [("", "membar.gl;"), ("membar.gl;", ""), ("membar.cta;", "membar.gl;")] {
        let finding = racy(Check::Race, &last_arriver(before, after), 5, 32);
        let other = finding.other.as_ref().expect("the write of another block");
        assert_ne!(finding.block, other.block, "{finding}");
    }
}

#[test]
fn a_block_may_wait_for_one_that_starts_later() {
    // Block 0 spins until block 3 has set a flag, with acquire and release.
    let body = "mov.u32 %r0, %ctaid.x; setp.eq.u32 %q0, %r0, 3; setp.ne.u32 %q1, %r0, 0; setp.ne.u32 %q2, %t, 0;
         @%q2 bra END; @!%q0 bra WAIT; st.global.u32 [%p0+4], 9; st.release.gpu.global.u32 [%p0], 1; bra END;
         WAIT: @%q1 bra END; SPIN: ld.acquire.gpu.global.u32 %r1, [%p0]; setp.eq.u32 %q3, %r1, 0; @%q3 bra SPIN;
         ld.global.u32 %r2, [%p0+4]; st.global.u32 [%p0+8], %r2; END: ret;";
    clean(body, 4, 32);
    racy(Check::Race, &body.replace("ld.acquire.gpu", "ld.relaxed.gpu"), 4, 32);
    racy(Check::Race, &body.replace("st.release.gpu", "st.relaxed.gpu"), 4, 32);
}

#[test]
fn compare_and_swap_loops_may_guess() {
    let body = |end: &str| {
        format!(
            "ld.global.u32 %r0, [%p0]; LOOP: add.u32 %r1, %r0, 1; atom.global.cas.b32 %r2, [%p0], %r0, %r1;
             setp.ne.u32 %q0, %r2, %r0; mov.u32 %r0, %r2; @%q0 bra LOOP; {end} ret;"
        )
    };
    clean(&body(""), 3, 64);
    racy(Check::Race, &body("ld.global.u32 %r3, [%p0]; st.global.u32 [%p0+4], %r3;"), 3, 64);
}

#[test]
fn atomics_and_what_reads_their_sum() {
    let sum = |between: &str| {
        format!(
            ".shared .align 4 .b8 s[4]; setp.eq.u32 %q0, %t, 0; @%q0 st.shared.u32 [s], 0; bar.sync 0;
             red.shared.add.u32 [s], %t; {between} ld.shared.u32 %r1, [s];
             mad.wide.u32 %l0, %t, 4, %p0; st.global.u32 [%l0], %r1; ret;"
        )
    };
    clean(&sum("bar.sync 0;"), 1, 96);
    racy(Check::Race, &sum(""), 1, 96);
}

#[test]
fn the_constant_path_reads_nothing_that_is_written() {
    let body = |path: &str| {
        format!(
            "mad.wide.u32 %l0, %t, 4, %p0; st.global.u32 [%l0], %t; ld.global{path}.u32 %r0, [%l0];
             st.global.u32 [%l0+1024], %r0; ret;"
        )
    };
    clean(&body(""), 1, 64);
    let finding = racy(Check::Race, &body(".nc"), 1, 64);
    assert!(finding.message.contains("ld.global.nc"), "{finding}");
}

#[test]
fn asynchronous_copies_are_ordered_from_issue_to_wait() {
    // Two stages: a copy of the next one is issued while this one is read.
    let body = |wait: &str, before: &str| {
        format!(
            ".shared .align 16 .b8 s[4096]; mov.u32 %r0, s; shl.b32 %r1, %t, 4; add.u32 %r2, %r0, %r1;
             mad.wide.u32 %l0, %t, 16, %p0; mov.u32 %r5, 0; mov.u32 %r6, 0;
             LOOP: {before} and.b32 %r3, %r5, 1; shl.b32 %r3, %r3, 10; add.u32 %r4, %r2, %r3;
             cp.async.cg.shared.global [%r4], [%l0], 16; cp.async.commit_group;
             {wait} xor.b32 %r7, %r1, 16; add.u32 %r7, %r7, %r3; add.u32 %r7, %r7, %r0;
             ld.shared.u32 %r8, [%r7]; add.u32 %r6, %r6, %r8; add.u32 %r5, %r5, 1;
             setp.lt.u32 %q0, %r5, 4; @%q0 bra LOOP;
             mad.wide.u32 %l1, %t, 4, %p0; ret;"
        )
    };
    clean(&body("cp.async.wait_group 0; bar.sync 0;", ""), 1, 64);
    racy(Check::AsyncHazard, &body("bar.sync 0;", ""), 1, 64);
    racy(Check::AsyncHazard, &body("cp.async.wait_group 1; bar.sync 0;", ""), 1, 64);
    // Waited for by the thread that issued it, but read by another.
    racy(Check::Race, &body("cp.async.wait_group 0;", "bar.sync 0;"), 1, 32);
    // One stage: the copy overwrites what a neighbour may be reading still.
    let one = body("cp.async.wait_group 0; bar.sync 0;", "")
        .replace("and.b32 %r3, %r5, 1", "mov.u32 %r3, 0");
    racy(Check::AsyncHazard, &one, 1, 64);
}

#[test]
fn a_copy_lands_as_the_write_of_the_lane_that_waited() {
    // Contiguous copies of every size that go over the end of a page of cells; lane t then reads what
    // lane t ^ distance copied.
    for (size, form) in [(4, "ca"), (8, "ca"), (16, "cg")] {
        let body = |distance: u32, between: &str| {
            format!(
                ".shared .align 16 .b8 s[2048]; mov.u32 %r0, s; mad.lo.u32 %r1, %t, {size}, %r0;
                 mad.wide.u32 %l0, %t, {size}, %p0; add.u32 %r2, %r1, 976;
                 cp.async.{form}.shared.global [%r2], [%l0], {size}; cp.async.wait_all; {between}
                 xor.b32 %r3, %t, {distance}; mad.lo.u32 %r3, %r3, {size}, %r0;
                 ld.shared.u32 %r4, [%r3+976]; mad.wide.u32 %l1, %t, 4, %p0;
                 st.global.u32 [%l1+1024], %r4; ret;"
            )
        };
        clean(&body(0, ""), 1, 64);
        clean(&body(1, "bar.warp.sync -1;"), 1, 64);
        let finding = racy(Check::Race, &body(1, ""), 1, 64);
        assert_eq!(finding.lanes.len(), 32, "{finding}");
        clean(&body(32, "bar.sync 0;"), 1, 64);
    }
}

#[test]
fn an_atomic_does_not_hide_the_plain_write_before_it() {
    let counter = |between: &str| {
        format!(
            ".shared .align 4 .b8 s[4]; mov.u32 %r0, s; setp.ne.u32 %q0, %t, 0; @%q0 bra ON;
             st.shared.u32 [%r0], 0; red.shared.add.u32 [%r0], 1; ON: {between}
             red.shared.add.u32 [%r0], 1; ret;"
        )
    };
    clean(&counter("bar.sync 0;"), 1, 64);
    let module = kernel(1, &counter(""));
    for ran in runs(&module, 512, 1, 64) {
        let finding = ran.report.findings.first().expect("a finding");
        assert!(matches!(finding.check, Check::Race | Check::Uninitialised), "{finding}");
    }
}
