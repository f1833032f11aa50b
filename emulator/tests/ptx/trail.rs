//! Trails: small kernels with one mistake each, which shows elsewhere. The trail must lead to its
//! line, and by the right way.

use spanforge_emulator::{Argument, Check, Finding, Launch, Memory, Module, Options, Why, launch};

/// A module of kernels with two pointers each; `line N` stands for line information.
fn module(kernels: &[(&str, &str)]) -> Module {
    let mut text = ".version 8.0\n.target sm_80\n.address_size 64\n.file 1 \"a.cu\"\n".to_owned();
    for (name, body) in kernels {
        let mut parts = body.split("line ");
        let mut lines = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            let (number, rest) = part.split_once(';').expect("`line N;`");
            lines += &format!("\n.loc 1 {number} 0\n{rest}");
        }
        text += &format!(
            ".visible .entry {name}(.param .u64 a, .param .u64 b)\n{{\n.reg .pred %q<4>;\n\
             .reg .b32 %r<16>;\n.reg .b64 %l<16>;\n.reg .b64 %a;\n.reg .b64 %b;\n\
             ld.param.u64 %a, [a];\nld.param.u64 %b, [b];\n{lines}\n}}\n"
        );
    }
    Module::parse(&text).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

/// Launches kernels one after the other on `a`, 64 words of which the first `written` are zero, and
/// `b`, 32 zeros, up to the first finding.
fn found(module: &Module, kernels: &[&str], threads: u32, written: usize) -> Finding {
    let mut memory = Memory::new();
    let a = memory.allocate("a", 256).expect("small");
    let b = memory.allocate("b", 128).expect("small");
    memory.write(a, &vec![0; 4 * written]).expect("in range");
    memory.write(b, &[0; 128]).expect("in range");
    let arguments = [Argument::U64(a), Argument::U64(b)];
    for &kernel in kernels {
        let what = Launch {
            kernel,
            grid: [1, 1, 1],
            block: [threads, 1, 1],
            dynamic_shared_bytes: 0,
            arguments: &arguments,
        };
        let options = Options { instruction_budget: 10_000, ..Options::default() };
        let report = launch(module, &mut memory, &what, &options).expect("launch");
        if let Some(finding) = report.findings.first() {
            return finding.clone();
        }
    }
    panic!("nothing was found");
}

fn trail(finding: &Finding) -> Vec<(u32, Why)> {
    finding.trail.iter().map(|step| (step.line.line, step.why)).collect()
}

#[test]
fn an_index_that_is_off_by_one_leads_to_its_computation() {
    // The register is used again afterwards, for something that has nothing to do with it.
    let body = "line 10; mov.u32 %r0, %tid.x; line 11; add.u32 %r1, %r0, 1; line 12; \
                mul.wide.u32 %l0, %r1, 4; add.u64 %l1, %b, %l0; line 13; ld.global.u32 %r1, [%a]; \
                line 14; st.global.u32 [%l1], %r1; ret;";
    let finding = found(&module(&[("k", body)]), &["k"], 32, 64);
    assert_eq!(finding.check, Check::OutOfBounds);
    assert_eq!(trail(&finding), [(12, Why::Address), (11, Why::Address)]);
    let text = finding.to_string();
    assert!(text.ends_with("\n  from: a.cu:12 (address), a.cu:11 (address)"), "{text}");
    let json = serde_json::to_value(&finding).expect("JSON");
    let second = serde_json::json!({"file": "a.cu", "line": 11, "why": "address"});
    assert_eq!(json["trail"][1], second);
}

#[test]
fn a_wrong_guard_leads_to_its_comparison() {
    // Threads up to 32 are let through to 32 words; line 22 is for others.
    let body = "mov.u32 %r0, %tid.x; line 20; setp.gt.u32 %q0, %r0, 32; line 21; @%q0 bra ELSE; \
                mul.wide.u32 %l0, %r0, 4; add.u64 %l1, %b, %l0; st.global.u32 [%l1], 1; ret; \
                ELSE: line 22; setp.gt.u32 %q1, %r0, 40; line 23; @%q1 st.global.u32 [%b], 1; ret;";
    let finding = found(&module(&[("k", body)]), &["k"], 64, 64);
    assert_eq!((finding.check, &finding.lanes[..]), (Check::OutOfBounds, &[0][..]));
    assert_eq!(trail(&finding), [(20, Why::Condition)]);
}

#[test]
fn a_value_from_memory_leads_to_what_wrote_it() {
    let writer = "line 30; ld.global.u32 %r0, [%b]; line 31; add.u32 %r1, %r0, 99; line 32; \
                  st.global.u32 [%a], %r1; ret;";
    let other = "line 35; ld.global.u32 %r0, [%b+4]; add.u32 %r0, %r0, 3; \
                 line 36; st.global.u32 [%b+8], %r0; ret;";
    let reader = "line 40; ld.global.u32 %r0, [%a]; line 41; mul.wide.u32 %l0, %r0, 4; \
                  add.u64 %l1, %b, %l0; line 42; ld.global.u32 %r1, [%l1]; ret;";
    let module = module(&[("w", writer), ("o", other), ("r", reader)]);
    let finding = found(&module, &["w", "o", "r"], 1, 64);
    assert_eq!(finding.check, Check::OutOfBounds);
    let trail = trail(&finding);
    assert_eq!(trail[0], (41, Why::Address));
    assert!(trail.contains(&(32, Why::WrittenBy)), "{trail:?}");
    assert!(trail.contains(&(31, Why::WrittenBy)), "{trail:?}");
    // What the writer loaded was not written by the kernel that came after it.
    assert!(trail.iter().all(|(line, _)| ![35, 36].contains(line)), "{trail:?}");
}

#[test]
fn a_loop_that_does_not_end_leads_to_its_condition() {
    // The inner loop ends every time. The outer one adds what it loads, which is zero.
    let body = "mov.u32 %r0, 0; OUTER: line 50; mov.u32 %r1, 0; \
                INNER: line 51; add.u32 %r1, %r1, 1; line 52; setp.lt.u32 %q0, %r1, 9; @%q0 bra INNER; \
                line 53; ld.global.u32 %r2, [%a]; line 54; add.u32 %r0, %r0, %r2; \
                line 55; setp.lt.u32 %q1, %r0, 5; @%q1 bra OUTER; ret;";
    let finding = found(&module(&[("k", body)]), &["k"], 32, 64);
    assert_eq!(finding.check, Check::Deadlock);
    let trail = trail(&finding);
    assert_eq!(trail[..2], [(55, Why::Loop), (54, Why::Loop)], "{finding}");
}

#[test]
fn what_was_never_written_leads_to_the_store_that_was_passed_over() {
    let body = "mov.u32 %r0, %tid.x; line 60; ld.global.u32 %r1, [%b]; setp.ne.u32 %q0, %r1, 5; \
                line 61; @%q0 bra SKIP; mul.wide.u32 %l0, %r0, 4; add.u64 %l1, %a, %l0; \
                line 62; st.global.u32 [%l1], %r0; SKIP: line 63; bar.sync 0; \
                line 64; ld.global.u32 %r3, [%a]; ret;";
    let finding = found(&module(&[("k", body)]), &["k"], 1, 0);
    assert_eq!(finding.check, Check::Uninitialised);
    let trail = trail(&finding);
    assert_eq!(trail[..2], [(62, Why::StoredBy), (60, Why::Condition)], "{finding}");
    assert!(trail.iter().all(|(line, _)| *line != 63), "{trail:?}");
}

#[test]
fn a_race_leads_to_the_barriers_before_it() {
    // The warps come by different barriers, then each writes its number to one word.
    let body = ".shared .align 4 .b8 s[128]; mov.u32 %r0, %tid.x; line 70; setp.lt.u32 %q0, %r0, 32; \
                @%q0 bra ELSE; line 71; bar.sync 0; bra MEET; ELSE: line 72; bar.sync 0; \
                MEET: line 73; shr.u32 %r1, %r0, 5; \
                st.shared.u32 [s], %r1; ret;";
    let finding = found(&module(&[("k", body)]), &["k"], 64, 64);
    assert_eq!(finding.check, Check::Race);
    let barriers: Vec<_> =
        trail(&finding).into_iter().filter(|(_, why)| *why == Why::Barrier).collect();
    assert_eq!(barriers, [(71, Why::Barrier), (72, Why::Barrier)], "{finding}");
}

#[test]
fn without_lines_there_is_no_trail() {
    let body = "mov.u32 %r0, %tid.x; add.u32 %r1, %r0, 1; mul.wide.u32 %l0, %r1, 4; \
                add.u64 %l1, %b, %l0; st.global.u32 [%l1], %r1; ret;";
    let finding = found(&module(&[("k", body)]), &["k"], 32, 64);
    assert_eq!(finding.trail, []);
    assert!(!finding.to_string().contains('\n'));
}
