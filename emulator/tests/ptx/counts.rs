//! Counters against counts made by hand.

use crate::kernels::{Buffer, Ran, kernel, run};

fn counted(body: &str) -> Ran {
    let body = format!(".shared .align 16 .b8 s[8192]; mov.u32 %r20, s; {body} ret;");
    let words = Buffer::Words((0..8192).collect());
    run(&kernel(1, &body), vec![words], 32).clean()
}

#[test]
fn sectors_of_global_loads() {
    for (what, body, sectors, bytes) in [
        ("coalesced words", "mad.wide.u32 %l0, %t, 4, %p0; ld.global.u32 %r0, [%l0];", 4, 128),
        ("off by one word", "mad.wide.u32 %l0, %t, 4, %p0; ld.global.u32 %r0, [%l0+4];", 5, 128),
        ("one word", "ld.global.u32 %r0, [%p0];", 1, 128),
        (
            "16 bytes each",
            "mad.wide.u32 %l0, %t, 16, %p0; ld.global.v4.u32 {%r0, %r1, %r2, %r3}, [%l0];",
            16,
            512,
        ),
        ("a sector each", "mad.wide.u32 %l0, %t, 64, %p0; ld.global.u32 %r0, [%l0];", 32, 128),
        (
            "reversed words",
            "sub.u32 %r1, 31, %t; mad.wide.u32 %l0, %r1, 4, %p0; ld.global.u32 %r0, [%l0];",
            4,
            128,
        ),
        (
            "half of the lanes",
            "mad.wide.u32 %l0, %t, 4, %p0; setp.lt.u32 %q0, %t, 16; @%q0 ld.global.u32 %r0, [%l0];",
            2,
            64,
        ),
    ] {
        let ran = counted(body);
        let load = ran.report.counters.global_load;
        assert_eq!((load.requests, load.sectors, load.bytes), (1, sectors, bytes), "{what}");
        let buffer = &ran.report.counters.buffers[0];
        assert_eq!((buffer.name.as_str(), buffer.read_sectors), ("buffer0", sectors), "{what}");
    }
}

#[test]
fn wavefronts_of_shared_stores() {
    for (what, stride, store, passes, ideal) in [
        ("words in a row", 4, "st.shared.u32 [%r0], 1;", 1, 1),
        ("stride of 32 words", 128, "st.shared.u32 [%r0], 1;", 32, 1),
        ("stride of 2 words", 8, "st.shared.u32 [%r0], 1;", 2, 1),
        ("one address", 0, "st.shared.u32 [%r0], 1;", 1, 1),
        ("16 bytes in a row", 16, "st.shared.v4.u32 [%r0], {1, 1, 1, 1};", 4, 4),
        ("8 bytes in a row", 8, "st.shared.v2.u32 [%r0], {1, 1};", 2, 2),
        ("16 bytes, stride of 128", 128, "st.shared.v4.u32 [%r0], {1, 1, 1, 1};", 32, 4),
        ("bytes in a row", 1, "st.shared.u8 [%r0], 1;", 1, 1),
    ] {
        let ran = counted(&format!("mad.lo.u32 %r0, %t, {stride}, %r20; {store}"));
        let count = ran.report.counters.shared_store;
        assert_eq!(
            (count.requests, count.wavefronts, count.ideal_wavefronts),
            (1, passes, ideal),
            "{what}"
        );
    }
}

#[test]
fn matrix_loads_count_each_matrix() {
    // Rows of 128 bytes: the eight rows of a matrix start in one bank, or are spread by a swizzle.
    for (what, address, passes) in [
        ("rows 128 bytes apart", "shl.b32 %r1, %t, 7;", 32),
        (
            "swizzled",
            "shl.b32 %r1, %t, 7; and.b32 %r2, %t, 7; shl.b32 %r2, %r2, 4; or.b32 %r1, %r1, %r2;",
            4,
        ),
    ] {
        let fill = "mov.u32 %r3, 0; FILL: shl.b32 %r4, %t, 2; add.u32 %r4, %r4, %r3; add.u32 %r4, %r4, %r20; st.shared.u32 [%r4], 0; add.u32 %r3, %r3, 128; setp.lt.u32 %q0, %r3, 8192; @%q0 bra FILL; bar.warp.sync -1;";
        let ran = counted(&format!(
            "{fill} {address} and.b32 %r1, %r1, 4095; add.u32 %r1, %r1, %r20; ldmatrix.sync.aligned.m8n8.x4.shared.b16 {{%r5, %r6, %r7, %r8}}, [%r1];"
        ));
        let count = ran.report.counters.shared_load;
        assert_eq!(
            (count.requests, count.wavefronts, count.ideal_wavefronts),
            (1, passes, 4),
            "{what}"
        );
    }
}

#[test]
fn instructions_by_class_and_lane() {
    let ran = counted(
        "setp.lt.u32 %q0, %t, 3; @%q0 add.f32 %f0, %f1, %f2; fma.rn.f32 %f0, %f0, %f1, %f2; ex2.approx.ftz.f32 %f3, %f0; cvt.rn.f16.f32 %h0, %f3; shfl.sync.bfly.b32 %r0, %r1, 1, 31, -1;",
    );
    let counters = &ran.report.counters;
    // ld.param, mov tid, mov s, setp, add, fma, ex2, cvt, shfl, ret.
    assert_eq!(counters.warp_instructions, 10);
    assert_eq!(counters.thread_instructions, 9 * 32 + 3);
    let mix = &counters.mix;
    assert_eq!((mix.float32, mix.special, mix.convert, mix.exchange), (2, 1, 1, 1));
    assert_eq!((mix.integer, mix.moves, mix.control), (1, 3, 1));
}

#[test]
fn bytes_in_flight() {
    // Two loads before the first use, then one alone.
    let ran = counted(
        "mad.wide.u32 %l0, %t, 4, %p0; ld.global.u32 %r0, [%l0]; ld.global.u32 %r1, [%l0+128]; add.u32 %r2, %r0, %r1; ld.global.u32 %r3, [%l0+256]; add.u32 %r2, %r2, %r3;",
    );
    let counters = &ran.report.counters;
    assert_eq!(counters.load_bytes_in_flight, 2 * 128 * 256 + 128 * 128);
    // Two groups of 512 bytes; the first wait finds both in flight, the second one.
    let copy = "mad.lo.u32 %r0, %t, 16, %r20; mad.wide.u32 %l0, %t, 16, %p0; cp.async.cg.shared.global [%r0], [%l0], 16; cp.async.commit_group; cp.async.cg.shared.global [%r0+512], [%l0+512], 16; cp.async.commit_group; cp.async.wait_group 1; cp.async.wait_group 0;";
    let ran = counted(copy);
    let counters = &ran.report.counters;
    assert_eq!((counters.async_waits, counters.async_bytes_in_flight), (2, 1024 + 512));
    assert_eq!(counters.async_copy.sectors, 32);
}
