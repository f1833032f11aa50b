//! A block that stands still is reported with every barrier that somebody waits at: who is there, who
//! is not, and where those stand.

use spanforge_emulator::{Check, Finding, Module, Options};

use crate::kernels::{Buffer, run_with, source};

/// What a block of so many threads reports.
fn report_under(seed: u64, body: &str, threads: u32) -> Finding {
    let registers = ".reg .pred %q<8>; .reg .b32 %r<8>; .shared .align 8 .b8 bar[8];\n\
                     mov.u32 %r0, %tid.x; shr.u32 %r1, %r0, 5;\n";
    let text = source(".param .u64 o", &format!("{registers}{body}"));
    let module = Module::parse(&format!("{text}\n.file 1 \"k.cu\"\n")).expect("valid");
    let options = Options { seed, instruction_budget: 20_000, ..Options::default() };
    let ran = run_with(&module, vec![Buffer::Blank(4)], 1, threads, 0, &options);
    ran.report.findings.first().expect("a finding").clone()
}

/// The same where no schedule makes a difference.
fn report(body: &str, threads: u32) -> Finding {
    let first = report_under(0, body, threads);
    for seed in 1..8 {
        assert_eq!(report_under(seed, body, threads).message, first.message, "seed {seed}");
    }
    first
}

#[test]
fn named_barriers_that_wait_for_each_other() {
    let finding = report(
        "setp.eq.u32 %q0, %r1, 1; @%q0 bra OTHER;
.loc 1 20 1
bar.sync 1, 64;
bar.sync 2, 64; ret;
OTHER:
.loc 1 30 1
bar.sync 2, 64;
bar.sync 1, 64; ret;",
        64,
    );
    assert_eq!(finding.check, Check::Deadlock);
    assert_eq!(
        finding.message,
        "barrier 1 never opens, because others wait at another barrier\
         ; barrier 1 has 32 of the 64 threads it waits for: warp 0 (PTX line 10, k.cu:20), \
         but not warp 1 (at barrier 2, PTX line 14, k.cu:30)\
         ; barrier 2 has 32 of the 64 threads it waits for: warp 1 (PTX line 14, k.cu:30), \
         but not warp 0 (at barrier 1, PTX line 10, k.cu:20)"
    );
}

#[test]
fn warps_that_arrived_and_went_on_or_exited() {
    // Warps 0, 1, 4 and 7, of half as many threads, want six at barrier 1. Warps 2 and 3 want four at
    // barrier 2, where warp 5 has only arrived; warp 6 exits at once.
    let finding = report(
        "setp.eq.u32 %q1, %r1, 6; @%q1 ret; setp.eq.u32 %q1, %r1, 5; @%q1 bra FIVE;
setp.eq.u32 %q2, %r1, 2; @%q2 bra TWO; setp.eq.u32 %q2, %r1, 3; @%q2 bra TWO;
bar.sync 1, 192; ret;
FIVE: bar.arrive 2, 128; ret;
TWO: bar.sync 2, 128; ret;",
        240,
    );
    assert_eq!(finding.check, Check::BarrierDivergence);
    assert_eq!(
        finding.message,
        "barrier 1 never opens, because 64 threads of the block have exited\
         ; barrier 1 has 128 of the 192 threads it waits for: warps 0 to 1, 4, 7 (PTX line 10), \
         but not warps 2 to 3 (at barrier 2, PTX line 12), warps 5 to 6 (exited)\
         ; barrier 2 has 96 of the 128 threads it waits for: warps 2 to 3 (PTX line 12), \
         warp 5 (exited), but not warps 0 to 1, 4, 7 (at barrier 1, PTX line 10), warp 6 (exited)"
    );
}

#[test]
fn a_part_of_a_warp_is_missing() {
    // Without `.aligned`, lanes may come one by one; these wait for each other at two barriers.
    let finding = report(
        "setp.lt.u32 %q0, %r0, 8; @%q0 bra FEW; barrier.sync 0; ret; FEW: barrier.sync 3, 32; ret;",
        72,
    );
    assert_eq!(finding.check, Check::Deadlock);
    assert_eq!(
        finding.message,
        "barrier 0 never opens, because others wait at another barrier\
         ; barrier 0 has 64 of the 72 threads it waits for: warps 1 to 2, \
         lanes 8 to 31 of warp 0 (PTX line 8), but not lanes 0 to 7 of warp 0 (at barrier 3, PTX line 8)\
         ; barrier 3 has 8 of the 32 threads it waits for: lanes 0 to 7 of warp 0 (PTX line 8), \
         but not warps 1 to 2, lanes 8 to 31 of warp 0 (at barrier 0, PTX line 8)"
    );
}

#[test]
fn an_mbarrier_and_a_block_barrier() {
    let finding = report(
        "setp.ne.u32 %q0, %r0, 0; mov.u32 %r2, bar;
@!%q0 mbarrier.init.shared::cta.b64 [%r2], 2; bar.sync 0; setp.ge.u32 %q1, %r1, 1; @%q1 bra ON;
WAIT: mbarrier.try_wait.parity.shared::cta.b64 %q2, [%r2], 0; @!%q2 bra WAIT;
ON: bar.sync 0; ret;",
        96,
    );
    assert_eq!(finding.check, Check::Deadlock);
    let states = "; barrier 0 has 64 of the 96 threads it waits for: warps 1 to 2 (PTX line 11), \
                  but not warp 0 (at `mbarrier.try_wait.parity.shared::cta.b64 %q2, [%r2], 0;`, \
                  PTX line 10)";
    assert!(finding.message.contains("phase 0 waits for 2 of 2 arrivals"), "{finding}");
    assert!(finding.message.ends_with(states), "{finding}");
}

#[test]
fn a_spent_budget_shows_who_waits_for_the_one_that_loops() {
    let finding =
        report_under(0, "setp.eq.u32 %q0, %r1, 1; LOOP: @%q0 bra LOOP; bar.sync 4; ret;", 64);
    assert_eq!(finding.check, Check::Deadlock);
    let states = "; barrier 4 has 32 of the 64 threads it waits for: warp 0 (PTX line 8), \
                  but not warp 1 (at `";
    assert!(finding.message.contains(states), "{finding}");
}
