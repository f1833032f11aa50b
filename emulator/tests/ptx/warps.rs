//! Control flow, barriers, exchange between lanes, atomics, memory spaces and calls.

use spanforge_emulator::{BlockSelection, Module, Options};

use crate::kernels::{Buffer, kernel, run, run_with, source};

const MY_WORD: &str = "mad.wide.u32 %l0, %t, 4, %p0;\n";

#[test]
fn lanes_diverge_and_meet_again() {
    // Even lanes loop as often as their number, odd ones take another path; all meet at the store.
    let module = kernel(
        1,
        &format!(
            "{MY_WORD} mov.u32 %r0, 0; mov.u32 %r1, 0; and.b32 %r2, %t, 1; setp.ne.u32 %q0, %r2, 0;
             @%q0 bra ODD;
             LOOP: setp.ge.u32 %q1, %r1, %t; @%q1 bra END; add.u32 %r0, %r0, 2; add.u32 %r1, %r1, 1; bra LOOP;
             ODD: mov.u32 %r0, 1000;
             END: activemask.b32 %r3; st.global.u32 [%l0], %r0; st.global.u32 [%l0+256], %r3; ret;"
        ),
    );
    let ran = run(&module, vec![Buffer::Blank(512)], 64).clean();
    let wanted: Vec<u32> = (0..64).map(|t| if t % 2 == 1 { 1000 } else { 2 * t }).collect();
    assert_eq!(ran.words(0, 64), wanted);
    assert_eq!(ran.words(0, 128)[64..], [u32::MAX; 64]);
    assert!(ran.report.counters.divergent_branches >= 2);
}

#[test]
fn a_spinning_lane_does_not_starve_the_one_it_waits_for() {
    // Lane 0 spins, at a lower address, on a flag that lane 1 sets.
    let module = kernel(
        1,
        "setp.eq.u32 %q0, %t, 0; @!%q0 bra SET;
         SPIN: ld.volatile.global.u32 %r0, [%p0]; setp.eq.u32 %q1, %r0, 0; @%q1 bra SPIN; bra DONE;
         SET: setp.eq.u32 %q2, %t, 1; @%q2 st.volatile.global.u32 [%p0], 7;
         DONE: ret;",
    );
    run(&module, vec![Buffer::Words(vec![0])], 32).clean();
}

#[test]
fn barriers_order_warps_whatever_the_schedule() {
    // Each thread writes its number to shared memory and reads that of its mirror image.
    let text = source(
        ".param .u64 o",
        ".reg .b32 %r<9>; .reg .b64 %l<4>; .shared .align 4 .b8 s[1024];
         mov.u32 %r0, %tid.x; shl.b32 %r1, %r0, 2; mov.u32 %r2, s; add.u32 %r3, %r2, %r1;
         st.shared.u32 [%r3], %r0; bar.sync 0;
         sub.u32 %r4, 1020, %r1; add.u32 %r4, %r4, %r2; ld.shared.u32 %r5, [%r4];
         ld.param.u64 %l0, [o]; mad.wide.u32 %l1, %r0, 4, %l0; st.global.u32 [%l1], %r5; ret;",
    );
    let module = Module::parse(&text).expect("valid");
    for seed in 0..20 {
        let options = Options { seed, ..Options::default() };
        let ran = run_with(&module, vec![Buffer::Blank(1024)], 1, 256, 0, &options).clean();
        assert_eq!(ran.words(0, 256), (0..256).rev().collect::<Vec<u32>>());
    }
}

#[test]
fn named_barriers_hand_work_from_producer_to_consumer() {
    // Warp 0 waits at barrier 1 for warp 1, which arrives without waiting.
    let text = source(
        ".param .u64 o",
        ".reg .pred %q; .reg .b32 %r<9>; .reg .b64 %l<4>; .shared .align 4 .u32 x;
         mov.u32 %r0, %tid.x; setp.ge.u32 %q, %r0, 32; @%q bra PRODUCE;
         bar.sync 1, 64; ld.shared.u32 %r1, [x]; ld.param.u64 %l0, [o]; st.global.u32 [%l0], %r1; ret;
         PRODUCE: mov.u32 %r2, 42; st.shared.u32 [x], %r2; bar.arrive 1, 64; ret;",
    );
    let module = Module::parse(&text).expect("valid");
    let ran = run_with(&module, vec![Buffer::Blank(4)], 1, 64, 0, &Options::default()).clean();
    assert_eq!(ran.words(0, 1), [42]);
}

#[test]
fn reducing_barriers_count_predicates() {
    let module = kernel(
        1,
        &format!(
            "{MY_WORD} setp.lt.u32 %q0, %t, 37; bar.red.popc.u32 %r0, 0, %q0; bar.red.and.pred %q1, 0, %q0;
             bar.red.or.pred %q2, 0, %q0; selp.u32 %r1, 100, 0, %q1; selp.u32 %r2, 1000, 0, %q2;
             add.u32 %r0, %r0, %r1; add.u32 %r0, %r0, %r2; st.global.u32 [%l0], %r0; ret;"
        ),
    );
    let ran = run(&module, vec![Buffer::Blank(256)], 64).clean();
    assert_eq!(ran.words(0, 64), vec![1037; 64]);
}

#[test]
fn shuffles() {
    for (mode, by, segment, wanted) in [
        ("bfly", 5u32, 0x1f, (0..32).map(|l| l ^ 5).collect::<Vec<u32>>()),
        ("down", 3, 0x1f, (0..32).map(|l| if l + 3 < 32 { l + 3 } else { l }).collect()),
        ("up", 3, 0, (0..32).map(|l| if l >= 3 { l - 3 } else { l }).collect()),
        ("idx", 9, 0x1f, vec![9; 32]),
        // Segments of eight lanes: the upper bits of the lane stay.
        ("idx", 1, 0x181f, (0..32).map(|l| (l & 24) + 1).collect()),
        ("down", 2, 0x181f, (0..32).map(|l| if l % 8 < 6 { l + 2 } else { l }).collect()),
    ] {
        let module = kernel(
            1,
            &format!(
                "{MY_WORD} shfl.sync.{mode}.b32 %r0|%q0, %t, {by}, {segment}, 0xffffffff; st.global.u32 [%l0], %r0; ret;"
            ),
        );
        let ran = run(&module, vec![Buffer::Blank(128)], 32).clean();
        assert_eq!(ran.words(0, 32), wanted, "{mode} {by} {segment:#x}");
    }
}

#[test]
fn shuffles_wait_for_members_on_another_path() {
    // Odd lanes do more work before they come to the same shuffle.
    let module = kernel(
        1,
        &format!(
            "{MY_WORD} mov.u32 %r1, %t; and.b32 %r2, %t, 1; setp.eq.u32 %q0, %r2, 0; @%q0 bra MEET;
             add.u32 %r1, %r1, 100; bra MEET;
             MEET: shfl.sync.bfly.b32 %r0, %r1, 1, 0x1f, 0xffffffff; st.global.u32 [%l0], %r0; ret;"
        ),
    );
    let ran = run(&module, vec![Buffer::Blank(128)], 32).clean();
    let wanted: Vec<u32> = (0..32).map(|l: u32| if l & 1 == 0 { l + 101 } else { l - 1 }).collect();
    assert_eq!(ran.words(0, 32), wanted);
}

#[test]
fn votes_matches_and_reductions() {
    let module = kernel(
        1,
        &format!(
            "{MY_WORD} setp.lt.u32 %q0, %t, 5; vote.sync.ballot.b32 %r0, %q0, 0xffffffff; st.global.u32 [%l0], %r0;
             vote.sync.any.pred %q1, %q0, 0xffffffff; vote.sync.all.pred %q2, %q0, 0xffffffff;
             selp.u32 %r1, 1, 0, %q1; selp.u32 %r2, 2, 0, %q2; or.b32 %r1, %r1, %r2; st.global.u32 [%l0+128], %r1;
             and.b32 %r3, %t, 3; match.any.sync.b32 %r4, %r3, 0xffffffff; st.global.u32 [%l0+256], %r4;
             redux.sync.add.s32 %r5, %t, 0xffffffff; st.global.u32 [%l0+384], %r5;
             redux.sync.add.u32 %r6, 1, %r4; st.global.u32 [%l0+512], %r6; ret;"
        ),
    );
    let ran = run(&module, vec![Buffer::Blank(640)], 32).clean();
    let words = ran.words(0, 160);
    assert_eq!(words[..32], [0x1f; 32]);
    assert_eq!(words[32..64], [1; 32]);
    assert!((0..32).all(|l| words[64 + l] == 0x1111_1111 << (l % 4)));
    assert_eq!(words[96..128], [496; 32]);
    // Each lane's own mask: four sets of eight lanes, in one instruction.
    assert_eq!(words[128..160], [8; 32]);
}

#[test]
fn atomics_on_global_and_shared_memory() {
    let text = source(
        ".param .u64 o",
        ".reg .b32 %r<9>; .reg .f32 %f<4>; .reg .b64 %l<9>; .shared .align 8 .u64 s; .reg .pred %q;
         mov.u32 %r0, %tid.x; ld.param.u64 %l0, [o]; mov.u64 %l5, 0; setp.eq.u32 %q, %r0, 0; @%q st.shared.u64 [s], %l5; bar.sync 0;
         red.global.add.u32 [%l0], %r0; atom.global.max.s32 %r1, [%l0+4], %r0; atom.global.inc.u32 %r2, [%l0+8], 4;
         atom.global.cas.b32 %r3, [%l0+12], 0, %r0; atom.global.add.f32 %f0, [%l0+16], 0f3F000000;
         cvt.u64.u32 %l1, %r0; atom.shared.add.u64 %l2, [s], %l1; atom.add.noftz.f16x2 %r4, [%l0+20], 1006632960;
         bar.sync 0; ld.shared.u64 %l3, [s]; @%q st.global.u64 [%l0+24], %l3; ret;",
    );
    let module = Module::parse(&text).expect("valid");
    let ran =
        run_with(&module, vec![Buffer::Words(vec![0; 8])], 1, 64, 0, &Options::default()).clean();
    // inc wraps to 0 after 4: 64 steps leave 64 % 5. 1006632960 is the pair (0, 1.0) of halves.
    assert_eq!(ran.words(0, 8), [2016, 63, 4, 1, 32.0f32.to_bits(), 0x5400_0000, 2016, 0]);
}

#[test]
fn local_and_generic_memory() {
    // Each lane fills a local array, through local and through generic addresses.
    let text = source(
        ".param .u64 o",
        ".reg .b32 %r<9>; .reg .b64 %l<9>; .local .align 4 .b8 a[32]; .shared .align 4 .b8 s[512];
         mov.u32 %r0, %tid.x; mov.u64 %l0, a; cvta.local.u64 %l1, %l0; and.b32 %r1, %r0, 7; mad.wide.u32 %l2, %r1, 4, %l0;
         st.local.u32 [%l2], %r0; mad.wide.u32 %l3, %r1, 4, %l1; ld.u32 %r2, [%l3]; add.u32 %r2, %r2, 1;
         mov.u64 %l4, s; cvta.shared.u64 %l4, %l4; mad.wide.u32 %l4, %r0, 4, %l4; st.u32 [%l4], %r2; ld.u32 %r3, [%l4];
         ld.param.u64 %l5, [o]; mad.wide.u32 %l5, %r0, 4, %l5; st.u32 [%l5], %r3; ret;",
    );
    let module = Module::parse(&text).expect("valid");
    let ran = run_with(&module, vec![Buffer::Blank(256)], 1, 64, 0, &Options::default()).clean();
    assert_eq!(ran.words(0, 64), (1..65).collect::<Vec<u32>>());
}

#[test]
fn calls_pass_parameters_and_return_where_they_came_from() {
    let text = ".version 8.0\n.target sm_80\n.address_size 64
        .global .align 4 .u32 calls = 5;
        .const .align 4 .b8 table[8] = {1, 0, 0, 0, 10, 0, 0, 0};
        .func (.param .b32 ret) twice(.param .align 4 .b8 p[8]) {
          .reg .b32 %r<4>; ld.param.u32 %r1, [p+4]; ld.const.u32 %r2, [table+4]; mad.lo.u32 %r1, %r1, 2, %r2; st.param.b32 [ret], %r1; ret; }
        .visible .entry k(.param .u64 o) {
          .reg .b32 %r<9>; .reg .b64 %l<4>; .reg .pred %q;
          mov.u32 %r0, %tid.x; and.b32 %r1, %r0, 1; setp.eq.u32 %q, %r1, 0; @%q bra EVEN;
          { .param .align 4 .b8 p0[8]; st.param.b32 [p0+0], 0; st.param.b32 [p0+4], %r0; .param .b32 v; call.uni (v), twice, (p0); ld.param.b32 %r2, [v]; }
          bra OUT;
          EVEN: { .reg .b32 %r2; mov.u32 %r2, 3; .param .align 4 .b8 p0[8]; st.param.b32 [p0+4], %r2; .param .b32 v; call (v), twice, (p0); ld.param.b32 %r5, [v]; }
          mov.u32 %r2, %r5;
          OUT: ld.param.u64 %l0, [o]; mad.wide.u32 %l1, %r0, 4, %l0; st.global.u32 [%l1], %r2;
          mov.u64 %l2, calls; atom.global.add.u32 %r7, [%l2], 1; ret; }";
    let module = Module::parse(text).unwrap_or_else(|e| panic!("{e}"));
    let ran = run_with(&module, vec![Buffer::Blank(128)], 1, 32, 0, &Options::default()).clean();
    let wanted: Vec<u32> = (0..32).map(|t| if t % 2 == 0 { 16 } else { 2 * t + 10 }).collect();
    assert_eq!(ran.words(0, 32), wanted);
}

#[test]
fn only_the_selected_blocks_run() {
    let module = kernel(
        1,
        "mov.u32 %r0, %ctaid.x; mad.wide.u32 %l0, %r0, 4, %p0; st.global.u32 [%l0], 1; ret;",
    );
    let options = Options { blocks: BlockSelection::Only(vec![5, 2]), ..Options::default() };
    let ran = run_with(&module, vec![Buffer::Words(vec![0; 8])], 8, 32, 0, &options).clean();
    assert_eq!(ran.words(0, 8), [0, 0, 1, 0, 0, 1, 0, 0]);
    assert_eq!(ran.report.counters.blocks, 2);
}

#[test]
fn matrix_products() {
    // A(i, k) = i + 1 on the diagonal i = k, else 0, so D = diag * B + C; all exact in f16.
    let fragment = |row: u32, column: u32, value: &dyn Fn(u32, u32) -> f32| {
        let bits = |r, c| u32::from(half::f16::from_f32(value(r, c)).to_bits());
        bits(row, column) | bits(row, column + 1) << 16
    };
    let a_value = |i: u32, k: u32| if i == k { i as f32 + 1.0 } else { 0.0 };
    // B is stored by columns: a register holds two neighbours in k.
    let b_value = |n: u32, k: u32| (k * 8 + n) as f32 / 8.0;
    let mut words = vec![0; 32 * 6];
    for lane in 0..32u32 {
        let (g, t) = (lane / 4, 2 * (lane % 4));
        let a = [(g, t), (g + 8, t), (g, t + 8), (g + 8, t + 8)];
        for (j, (row, column)) in a.into_iter().enumerate() {
            words[(lane * 6) as usize + j] = fragment(row, column, &a_value);
        }
        for j in 0..2 {
            words[(lane * 6) as usize + 4 + j] = fragment(g, t + 8 * j as u32, &b_value);
        }
    }
    let module = kernel(
        2,
        "mad.wide.u32 %l0, %t, 24, %p0; ld.global.v2.u32 {%r0, %r1}, [%l0]; ld.global.v2.u32 {%r2, %r3}, [%l0+8]; ld.global.v2.u32 {%r4, %r5}, [%l0+16];
         mov.f32 %f0, 0f3F800000; mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%f1, %f2, %f3, %f4}, {%r0, %r1, %r2, %r3}, {%r4, %r5}, {%f0, %f0, %f0, %f0};
         mad.wide.u32 %l1, %t, 16, %p1; st.global.v4.f32 [%l1], {%f1, %f2, %f3, %f4}; ret;",
    );
    let ran = run(&module, vec![Buffer::Words(words), Buffer::Blank(512)], 32).clean();
    for (at, word) in ran.words(1, 128).into_iter().enumerate() {
        let (lane, j) = (at as u32 / 4, at as u32 % 4);
        let (row, column) = (lane / 4 + 8 * (j / 2), 2 * (lane % 4) + j % 2);
        let wanted = (row as f32 + 1.0) * b_value(column, row) + 1.0;
        assert_eq!(f32::from_bits(word), wanted, "row {row}, column {column}");
    }
}

#[test]
fn lanes_meet_at_different_warp_barriers() {
    let module = kernel(
        1,
        &format!(
            "{MY_WORD} .shared .align 4 .b8 s[128]; mov.u32 %r1, s; mad.lo.u32 %r2, %t, 4, %r1; xor.b32 %r3, %r2, 4;
             and.b32 %r4, %t, 1; setp.eq.u32 %q0, %r4, 0; @%q0 bra EVEN;
             st.shared.u32 [%r2], %t; bar.warp.sync 0xffffffff; ld.shared.u32 %r0, [%r3]; bra END;
             EVEN: st.shared.u32 [%r2], %t; bar.warp.sync 0xffffffff; ld.shared.u32 %r0, [%r3];
             END: st.global.u32 [%l0], %r0; ret;"
        ),
    );
    let ran = run(&module, vec![Buffer::Blank(128)], 32).clean();
    assert_eq!(ran.words(0, 32), (0..32).map(|t| t ^ 1).collect::<Vec<u32>>());
}

#[test]
fn one_lane_is_elected() {
    let module = kernel(
        1,
        &format!(
            "{MY_WORD} mov.u32 %r0, 99; mov.u32 %r1, 7; setp.lt.u32 %q1, %t, 5; @%q1 bra END;
             elect.sync %r0|%q0, 0xffffffe0; selp.u32 %r1, 1, 0, %q0;
             END: mad.lo.u32 %r0, %r0, 256, %r1; st.global.u32 [%l0], %r0; ret;"
        ),
    );
    let ran = run(&module, vec![Buffer::Blank(128)], 32).clean();
    let wanted: Vec<u32> = (0..32)
        .map(|t| match t {
            0..5 => 99 * 256 + 7,
            5 => 5 * 256 + 1,
            _ => 5 * 256,
        })
        .collect();
    assert_eq!(ran.words(0, 32), wanted);
}
