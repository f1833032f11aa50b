//! What lasts from its issue to its wait: bulk copies and warpgroup products against the other
//! threads of their block. Every rule with a kernel that keeps it, which no schedule may report, and
//! twins that do not, which every schedule must.

use spanforge_emulator::{Check, Finding, Module, Options};

use crate::kernels::{Buffer, Ran, kernel, run_with};

const SEEDS: u64 = 24;

fn runs(module: &Module, threads: u32) -> impl Iterator<Item = Ran> {
    (0..SEEDS).map(move |seed| {
        let options = Options { seed, instruction_budget: 1 << 22, ..Options::default() };
        let buffers = vec![Buffer::Words((0..4096).collect()), Buffer::Words(vec![0; 4096])];
        run_with(module, buffers, 2, threads, 0, &options)
    })
}

fn clean(body: &str, threads: u32) {
    let module = kernel(2, body);
    runs(&module, threads).for_each(|ran| drop(ran.clean()));
}

/// Every schedule finds something, mostly an `async-hazard`: some may come to the other side of it
/// first, which is `or`.
fn hazard_or(or: Option<Check>, body: &str, threads: u32) -> Finding {
    let module = kernel(2, body);
    let mut out = None;
    for ran in runs(&module, threads) {
        let finding = ran.report.findings.first().unwrap_or_else(|| panic!("nothing in {body}"));
        if finding.check == Check::AsyncHazard {
            out.get_or_insert(finding.clone());
        } else {
            assert_eq!(Some(finding.check), or, "{finding}");
        }
    }
    out.expect("at least one schedule")
}

fn hazard(body: &str, threads: u32) -> Finding {
    hazard_or(None, body, threads)
}

const COPY: &str =
    "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r0], [%p0], 128, [%r1];";

fn wait(label: &str, barrier: &str, parity: &str) -> String {
    format!(
        "{label}: mbarrier.try_wait.parity.shared::cta.b64 %q5, [{barrier}], {parity}; @!%q5 bra {label};"
    )
}

/// Warp 0 fetches 128 bytes three times into one buffer, warp 1 uses them. `%r1` is full, `%r2` empty.
fn ring(start: &str, refill: &str, full: &str, release_first: &str, release: &str) -> String {
    format!(
        ".shared .align 128 .b8 s[128]; .shared .align 8 .b8 bar[16]; mov.u32 %r0, s; mov.u32 %r1, bar;
         add.u32 %r2, %r1, 8; and.b32 %r3, %t, 31; setp.ne.u32 %q0, %t, 0; @%q0 bra INIT;
         mbarrier.init.shared::cta.b64 [%r1], 1; mbarrier.init.shared::cta.b64 [%r2], 32;
         INIT: {start} mov.u32 %r5, 0; mov.u32 %r8, 0; setp.ge.u32 %q1, %t, 32; @%q1 bra USE;
         @%q0 bra END;
         FILL: xor.b32 %r6, %r5, 1; {refill} mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r1], 128; {COPY}
         xor.b32 %r5, %r5, 1; add.u32 %r8, %r8, 1; setp.lt.u32 %q2, %r8, 3; @%q2 bra FILL; bra END;
         USE: {full} {release_first} mad.lo.u32 %r7, %r3, 4, %r0; ld.shared.u32 %r9, [%r7]; {release}
         xor.b32 %r5, %r5, 1; add.u32 %r8, %r8, 1; setp.lt.u32 %q2, %r8, 3; @%q2 bra USE;
         mad.wide.u32 %l1, %r3, 4, %p1; st.global.u32 [%l1], %r9;
         END: bar.sync 0; ret;"
    )
}

#[test]
fn a_buffer_is_refilled_once_it_has_been_released() {
    let (empty, full) = (wait("EMPTY", "%r2", "%r6"), wait("FULL", "%r1", "%r5"));
    let release = "mbarrier.arrive.shared::cta.b64 _, [%r2];";
    clean(&ring("bar.sync 0;", &empty, &full, "", release), 64);
    // The refill does not wait; the release comes before the read; the reader does not wait.
    let unasked = ring("bar.sync 0;", "", &full, "", release);
    hazard_or(Some(Check::InvalidArgument), &unasked, 64);
    let early = hazard(&ring("bar.sync 0;", &empty, &full, release, ""), 64);
    let lines = [&early.instruction, &early.other.as_ref().expect("two sides").instruction];
    assert!(lines.iter().any(|line| line.starts_with("ld.shared")), "{early}");
    assert!(lines.iter().any(|line| line.starts_with("cp.async.bulk")), "{early}");
    let blind = ring("bar.sync 0;", &empty, "", "", release);
    hazard_or(Some(Check::Uninitialised), &blind, 64);
}

#[test]
fn a_barrier_is_used_after_its_init() {
    let (empty, full) = (wait("EMPTY", "%r2", "%r6"), wait("FULL", "%r1", "%r5"));
    let release = "mbarrier.arrive.shared::cta.b64 _, [%r2];";
    let cluster = "fence.mbarrier_init.release.cluster; barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;";
    clean(&ring(cluster, &empty, &full, "", release), 64);
    // Which side comes first, and so what is wrong with it, is the schedule's choice.
    let module = kernel(2, &ring("", &empty, &full, "", release));
    for ran in runs(&module, 64) {
        let finding = ran.report.findings.first().expect("a finding");
        assert!(matches!(finding.check, Check::Race | Check::InvalidArgument), "{finding}");
    }
}

/// Thread 0 fetches and waits; `between` stands before every thread of two warps reads.
fn shared_wait(between: &str) -> String {
    let wait = wait("FULL", "%r1", "0");
    format!(
        ".shared .align 128 .b8 s[128]; .shared .align 8 .b8 bar[8]; mov.u32 %r0, s; mov.u32 %r1, bar;
         setp.ne.u32 %q0, %t, 0; @%q0 bra ON; mbarrier.init.shared::cta.b64 [%r1], 1;
         mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r1], 128; {COPY}
         {wait} ON: {between} and.b32 %r3, %t, 31; mad.lo.u32 %r7, %r3, 4, %r0; ld.shared.u32 %r9, [%r7];
         mad.wide.u32 %l1, %t, 4, %p1; st.global.u32 [%l1], %r9; ret;"
    )
}

#[test]
fn who_waited_may_read_and_who_met_him() {
    clean(&shared_wait("bar.sync 0;"), 64);
    // The second warp meets nobody who waited; its read can also come before the copy is issued.
    hazard_or(Some(Check::Uninitialised), &shared_wait("bar.warp.sync -1;"), 64);
}

/// Every thread writes its word of shared memory, thread 0 stores all of them to global memory.
fn store(before: &str, issued: &str, after: &str) -> String {
    format!(
        ".shared .align 128 .b8 s[256]; .reg .b32 %c; mov.u32 %c, %ctaid.x; mov.u32 %r0, s; mad.lo.u32 %r1, %t, 4, %r0; cvt.u64.u32 %l3, %c;
         mad.lo.u64 %l3, %l3, 256, %p1; setp.ne.u32 %q0, %t, 0; st.shared.u32 [%r1], %t; {before}
         @%q0 bra ON; {issued} cp.async.bulk.global.shared::cta.bulk_group [%l3], [%r0], 256;
         cp.async.bulk.commit_group; ON: {after} @%q0 ret; cp.async.bulk.wait_group 0; ret;"
    )
}

#[test]
fn what_a_copy_reads_was_fenced_for_it() {
    let fence = "fence.proxy.async.shared::cta;";
    clean(&store(&format!("{fence} bar.sync 0;"), "", ""), 64);
    clean(&store("bar.sync 0;", fence, ""), 64);
    let finding = hazard(&store("bar.sync 0;", "", ""), 64);
    assert!(finding.message.contains("fence.proxy.async"), "{finding}");
    // Without the barrier it is not ordered, whatever is fenced.
    hazard_or(Some(Check::Uninitialised), &store(fence, "", ""), 64);
}

#[test]
fn what_a_copy_reads_is_left_alone_until_it_is_read() {
    let before = "fence.proxy.async.shared::cta; bar.sync 0;";
    let again = |wait: &str, barrier: &str| {
        store(before, "", &format!("{wait} {barrier} st.shared.u32 [%r1], 5;"))
    };
    let (read, all) =
        ("@!%q0 cp.async.bulk.wait_group.read 0;", "@!%q0 cp.async.bulk.wait_group 0;");
    clean(&again(read, "bar.sync 0;"), 64);
    clean(&again(all, "bar.sync 0;"), 64);
    hazard(&again("", "bar.sync 0;"), 64);
    hazard(&again("@!%q0 cp.async.bulk.wait_group.read 1;", "bar.sync 0;"), 64);
    // Only the thread itself has waited.
    hazard(&again(read, ""), 64);
}

#[test]
fn what_a_copy_writes_is_read_after_it_is_written() {
    let before = "fence.proxy.async.shared::cta; bar.sync 0;";
    let read_back = |wait: &str, barrier: &str| {
        store(
            before,
            "",
            &format!(
                "{wait} {barrier} mad.wide.u32 %l4, %t, 4, %l3; ld.global.u32 %r4, [%l4];
                 mad.wide.u32 %l5, %t, 4, %p1; add.u64 %l5, %l5, 4096; cvt.u64.u32 %l6, %c;
                 mad.lo.u64 %l5, %l6, 256, %l5; st.global.u32 [%l5], %r4;"
            ),
        )
    };
    clean(&read_back("@!%q0 cp.async.bulk.wait_group 0;", "bar.sync 0;"), 64);
    hazard(&read_back("@!%q0 cp.async.bulk.wait_group.read 0;", "bar.sync 0;"), 64);
    hazard(&read_back("@!%q0 cp.async.bulk.wait_group 0;", ""), 64);
}

/// A producer warp fills A and B, a warpgroup multiplies twice; `%r1` is full, `%r2` empty.
fn multiply(full: &str, release_first: &str, release: &str, written: &str) -> String {
    let (d, zero): (Vec<_>, String) =
        (0..4).map(|i| (format!("%d{i}"), format!("mov.f32 %d{i}, 0f00000000;"))).unzip();
    let d = d.join(", ");
    let empty = wait("EMPTY", "%r2", "%r6");
    format!(
        ".shared .align 128 .b8 s[2304]; .shared .align 8 .b8 bar[16]; .reg .f32 %d<4>;
         mov.u32 %r0, s; mov.u32 %r1, bar; add.u32 %r2, %r1, 8; setp.ne.u32 %q0, %t, 128; {zero}
         mov.u32 %r5, 0; mov.u32 %r8, 0; setp.ge.u32 %q1, %t, 128; setp.eq.u32 %q4, %t, 0;
         @%q0 bra INIT; mbarrier.init.shared::cta.b64 [%r1], 1; mbarrier.init.shared::cta.b64 [%r2], 1;
         INIT: bar.sync 0; @!%q1 bra USE; @%q0 bra END;
         FILL: xor.b32 %r6, %r5, 1; {empty} mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r1], 2304;
         cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r0], [%p0], 2304, [%r1];
         xor.b32 %r5, %r5, 1; add.u32 %r8, %r8, 1; setp.lt.u32 %q2, %r8, 2; @%q2 bra FILL; bra END;
         USE: {full} {written} shr.u32 %r9, %r0, 4; cvt.u64.u32 %l4, %r9; or.b64 %l4, %l4, 0x0000001000080000;
         add.u64 %l5, %l4, 128; setp.eq.u32 %q3, %t, %t;
         wgmma.fence.sync.aligned;
         wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16 {{{d}}}, %l4, %l5, %q3, 1, 1, 0, 0;
         wgmma.commit_group.sync.aligned; {release_first} wgmma.wait_group.sync.aligned 0; {release}
         xor.b32 %r5, %r5, 1; add.u32 %r8, %r8, 1; setp.lt.u32 %q2, %r8, 2; @%q2 bra USE;
         END: bar.sync 0; ret;"
    )
}

#[test]
fn operands_of_a_product_are_left_alone_until_it_is_done() {
    let full = wait("FULL", "%r1", "%r5");
    let release = "@%q4 mbarrier.arrive.shared::cta.b64 _, [%r2];";
    clean(&multiply(&full, "", release, ""), 160);
    let finding = hazard(&multiply(&full, release, "", ""), 160);
    assert!(finding.instruction.starts_with("cp.async.bulk"), "{finding}");
    assert!(
        finding
            .other
            .as_ref()
            .is_some_and(|other| other.instruction.starts_with("wgmma.mma_async")),
        "{finding}"
    );
    // Three of the four warps do not wait for the operands.
    let one = format!("setp.ge.u32 %q6, %t, 32; @%q6 bra SKIP; {full} SKIP:");
    hazard_or(Some(Check::Uninitialised), &multiply(&one, "", release, ""), 160);
}

#[test]
fn operands_that_threads_wrote_are_fenced_for_a_product() {
    let full = wait("FULL", "%r1", "%r5");
    let release = "@%q4 mbarrier.arrive.shared::cta.b64 _, [%r2];";
    let write = "mad.lo.u32 %r10, %t, 4, %r0; st.shared.u32 [%r10], 0;";
    let fenced = format!("{write} fence.proxy.async.shared::cta; bar.sync 1, 128;");
    clean(&multiply(&full, "", release, &fenced), 160);
    let finding = hazard(&multiply(&full, "", release, &format!("{write} bar.sync 1, 128;")), 160);
    assert!(finding.message.contains("fence.proxy.async"), "{finding}");
}
