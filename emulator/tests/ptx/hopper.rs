//! mbarriers and bulk copies against literal values, and each of their bugs with its kind.

use spanforge_emulator::{Check, Module, Swizzle};

use crate::kernels::{Buffer, Ran, kernel, run};

fn check(ran: &Ran) -> Check {
    ran.report.findings.first().expect("a finding").check
}

/// Thread 0 fetches 512 bytes; every thread waits for them and stores its word.
fn fetching(expect: u32, arrive: &str, parity: u32, wait: bool) -> Module {
    let wait = if wait {
        format!(
            "WAIT: mbarrier.try_wait.parity.shared::cta.b64 %q1, [%r1], {parity}; @!%q1 bra WAIT;"
        )
    } else {
        String::new()
    };
    kernel(
        2,
        &format!(
            ".shared .align 128 .b8 s[512]; .shared .align 8 .b8 bar[8];
             mov.u32 %r0, s; mov.u32 %r1, bar; setp.ne.u32 %q0, %t, 0; @%q0 bra ON;
             mbarrier.init.shared::cta.b64 [%r1], 1;
             ON: bar.sync 0; @%q0 bra GO; {arrive}
             mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%r1], {expect};
             mbarrier.arrive.shared::cta.b64 _, [%r1];
             cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r0], [%p0], 512, [%r1];
             GO: {wait}
             mad.lo.u32 %r2, %t, 4, %r0; ld.shared.u32 %r3, [%r2];
             mad.wide.u32 %l1, %t, 4, %p1; st.global.u32 [%l1], %r3; ret;"
        ),
    )
}

fn fetch(module: &Module) -> Ran {
    run(module, vec![Buffer::Words((7..135).collect()), Buffer::Blank(512)], 128)
}

#[test]
fn a_bulk_copy_lands_when_its_mbarrier_is_waited_at() {
    let ran = fetch(&fetching(512, "", 0, true)).clean();
    assert_eq!(ran.words(1, 128), (7..135).collect::<Vec<u32>>());
    assert_eq!(ran.report.counters.async_copy.bytes, 512);
    assert_eq!(ran.report.counters.async_copy.sectors, 16);
}

#[test]
fn a_skipped_wait_and_a_wrong_parity_read_too_early() {
    for module in [fetching(512, "", 0, false), fetching(512, "", 1, true)] {
        assert_eq!(check(&fetch(&module)), Check::AsyncHazard);
    }
}

#[test]
fn wrong_bytes_never_complete_and_the_barrier_is_shown() {
    for (bytes, expected) in [(528, "and 16 bytes"), (496, "16 bytes more than were expected")] {
        let ran = fetch(&fetching(bytes, "", 0, true));
        let finding = &ran.report.findings[0];
        assert_eq!(finding.check, Check::Deadlock);
        assert!(finding.message.contains(expected), "{finding}");
        assert!(finding.message.contains("shared `bar` + 0: phase 0"), "{finding}");
        assert!(ran.report.counters.warp_instructions < 100_000);
    }
}

#[test]
fn an_arrival_too_many() {
    let more =
        "mbarrier.expect_tx.shared::cta.b64 [%r1], 16; mbarrier.arrive.shared::cta.b64 _, [%r1];";
    assert_eq!(check(&fetch(&fetching(496, more, 0, true))), Check::InvalidArgument);
}

#[test]
fn a_bulk_store_is_waited_for_before_the_block_ends() {
    let store = |end: &str| {
        kernel(
            1,
            &format!(
                ".shared .align 128 .b8 s[128]; mov.u32 %r0, s; mad.lo.u32 %r1, %t, 4, %r0;
                 st.shared.u32 [%r1], %t; fence.proxy.async.shared::cta; bar.sync 0;
                 setp.ne.u32 %q0, %t, 0; @%q0 ret;
                 cp.async.bulk.global.shared::cta.bulk_group [%p0], [%r0], 128; {end} ret;"
            ),
        )
    };
    let run_it = |end: &str| run(&store(end), vec![Buffer::Blank(128)], 32);
    for wait in ["cp.async.bulk.wait_group 0;", "cp.async.bulk.wait_group.read 0;"] {
        let ran = run_it(&format!("cp.async.bulk.commit_group; {wait}")).clean();
        assert_eq!(ran.words(0, 32), (0..32).collect::<Vec<u32>>());
    }
    for end in ["", "cp.async.bulk.wait_group 0;", "cp.async.bulk.commit_group;"] {
        assert_eq!(check(&run_it(end)), Check::AsyncHazard, "{end}");
    }
}

/// D = A B + D of f16 with operands that lie in shared memory as a descriptor says: an image of
/// shared memory, A at 0 and B at 16 KiB, is copied in and multiplied.
fn product(columns: usize, swizzle: usize, across: [bool; 2], body: &str) -> Ran {
    let (span, mode) = (
        [16, 128, 64, 32][swizzle],
        [Swizzle::None, Swizzle::Bytes128, Swizzle::Bytes64, Swizzle::Bytes32][swizzle],
    );
    let mut image = vec![0u8; 32 << 10];
    let mut descriptors = [0u64; 2];
    let widths = [64, columns];
    for which in 0..2 {
        let (base, across) = (which << 14, across[which]);
        // Blocks of 8 outer elements follow each other at `near`, those of the major one at `far`.
        let far = if swizzle == 0 && across { 2048 } else { 4096 };
        let near = 8 * span;
        let (stride, leading) = match (swizzle == 0, across) {
            (true, true) => (far, near),
            _ => (near, far),
        };
        descriptors[which] = (base as u64) >> 4
            | (leading as u64 >> 4) << 16
            | (stride as u64 >> 4) << 32
            | (swizzle as u64) << 62;
        for mn in 0..widths[which] {
            for k in 0..16 {
                let (outer, major) = if across { (k, mn) } else { (mn, k) };
                let run = major / 8;
                let chunks = span / 16;
                let at =
                    outer % 8 * span + outer / 8 * near + run % chunks * 16 + run / chunks * far;
                let at = mode.apply((base + at) as u64) as usize + major % 8 * 2;
                let bits = half::f16::from_f64(element(which, mn, k)).to_le_bytes();
                image[at..at + 2].copy_from_slice(&bits);
            }
        }
    }
    let d: Vec<String> = (0..columns / 2).map(|i| format!("%d{i}")).collect();
    let d = d.join(", ");
    let stores: String =
        (0..columns / 2).map(|i| format!("st.global.f32 [%l1+{}], %d{i};\n", 4 * i)).collect();
    let zero: String = (0..columns / 2).map(|i| format!("mov.f32 %d{i}, 0f3F800000;\n")).collect();
    let mma = format!(
        "wgmma.mma_async.sync.aligned.m64n{columns}k16.f32.f16.f16 {{{d}}}, %l4, %l5, %q2, 1, -1, {}, {};",
        u8::from(across[0]),
        u8::from(across[1])
    );
    let body = body.replace("MMA", &mma);
    let module = kernel(
        2,
        &format!(
            ".shared .align 1024 .b8 s[32768]; .reg .f32 %d<{}>; mov.u32 %r0, s;
             mad.lo.u32 %r1, %t, 16, %r0; mad.wide.u32 %l0, %t, 16, %p0; mov.u32 %r2, 0;
             COPY: ld.global.v4.u32 {{%r4, %r5, %r6, %r7}}, [%l0]; st.shared.v4.u32 [%r1], {{%r4, %r5, %r6, %r7}};
             add.u32 %r1, %r1, 2048; add.u64 %l0, %l0, 2048; add.u32 %r2, %r2, 1;
             setp.lt.u32 %q0, %r2, 16; @%q0 bra COPY; fence.proxy.async; bar.sync 0;
             mov.u64 %l4, {}; mov.u64 %l5, {}; setp.eq.u32 %q2, %r2, 16;
             {zero} {body} mad.wide.u32 %l1, %t, {}, %p1; {stores} ret;",
            columns / 2,
            descriptors[0],
            descriptors[1],
            2 * columns
        ),
    );
    run(&module, vec![Buffer::Bytes(image), Buffer::Blank(128 * 2 * columns)], 128)
}

fn element(which: usize, mn: usize, k: usize) -> f64 {
    ((mn * 7 + k * 3 + which * 5) % 23) as f64 - 11.0
}

const WHOLE: &str = "wgmma.fence.sync.aligned; MMA wgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned 0;";

#[test]
fn warpgroup_products_of_every_layout() {
    for columns in [8, 64, 256] {
        for swizzle in 0..4 {
            for across in [[false, false], [true, false], [false, true], [true, true]] {
                if columns == 256 && across[1] != (swizzle == 1) {
                    // B would not fit its part of the image.
                    continue;
                }
                let ran = product(columns, swizzle, across, WHOLE).clean();
                let words = ran.words(1, 64 * columns);
                for (index, word) in words.into_iter().enumerate() {
                    let (thread, i) = (index / (columns / 2), index % (columns / 2));
                    let row = thread / 32 * 16 + thread % 32 / 4 + i / 2 % 2 * 8;
                    let column = i / 4 * 8 + thread % 4 * 2 + i % 2;
                    let sum: f64 =
                        (0..16).map(|k| element(0, row, k) * element(1, column, k)).sum();
                    let found = f64::from(f32::from_bits(word));
                    assert_eq!(found, 1.0 - sum, "{columns} {swizzle} {across:?} {row} {column}");
                }
            }
        }
    }
}

#[test]
fn products_that_are_not_fenced_committed_or_waited_for() {
    let bugs = [
        "MMA wgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned 0;",
        "wgmma.fence.sync.aligned; mov.f32 %d1, 0f00000000; MMA wgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned 0;",
        "wgmma.fence.sync.aligned; MMA wgmma.wait_group.sync.aligned 0;",
        "wgmma.fence.sync.aligned; MMA wgmma.commit_group.sync.aligned;",
        "wgmma.fence.sync.aligned; MMA wgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned 1;",
    ];
    for bug in bugs {
        assert_eq!(check(&product(8, 0, [false; 2], bug)), Check::AsyncHazard, "{bug}");
    }
}
