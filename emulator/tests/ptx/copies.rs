//! Copies of registers, many of which the emulator turns into nothing: against an interpreter of
//! random programs with guards, branches and a loop, where a copy and what it copies may part.

use std::fmt::Write;

use proptest::collection::vec;
use proptest::prelude::*;
use spanforge_emulator::Options;

use crate::kernels::{Buffer, kernel, run_with};

/// Registers that have a value from the start.
const FIRST: usize = 2;
const ROUNDS: u32 = 3;

/// Who does something: everyone, or the threads whose number plus the round is even or odd.
#[derive(Clone, Copy, Debug)]
enum Who {
    All,
    Even,
    Odd,
}

impl Who {
    fn has(self, thread: u32, round: u32) -> bool {
        match self {
            Who::All => true,
            Who::Even => (thread + round).is_multiple_of(2),
            Who::Odd => !(thread + round).is_multiple_of(2),
        }
    }

    fn guard(self) -> &'static str {
        match self {
            Who::All => "",
            Who::Even => "@%q0 ",
            Who::Odd => "@!%q0 ",
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Copy {
        to: usize,
        from: usize,
        who: Who,
    },
    Constant {
        to: usize,
        value: u32,
        who: Who,
    },
    Thread {
        to: usize,
    },
    Add {
        to: usize,
        from: usize,
        value: u32,
    },
    Xor {
        to: usize,
        from: usize,
        distance: u32,
    },
    /// Lanes for which `who` is false skip the next few steps.
    Skip {
        who: Who,
        steps: usize,
    },
}

/// Registers stand for what `placed` makes of them.
fn step() -> impl Strategy<Value = Step> {
    let register = || 0..1000usize;
    let who = || prop_oneof![6 => Just(Who::All), 1 => Just(Who::Even), 1 => Just(Who::Odd)];
    prop_oneof![
        6 => (register(), register(), who()).prop_map(|(to, from, who)| Step::Copy { to, from, who }),
        1 => (register(), 0..9u32, who())
            .prop_map(|(to, value, who)| Step::Constant { to, value, who }),
        1 => register().prop_map(|to| Step::Thread { to }),
        3 => (register(), register(), 1..99u32)
            .prop_map(|(to, from, value)| Step::Add { to, from, value }),
        2 => (register(), register(), 0..32u32)
            .prop_map(|(to, from, distance)| Step::Xor { to, from, distance }),
        1 => (who(), 1..4usize).prop_map(|(who, steps)| Step::Skip { who, steps }),
    ]
}

/// Steps before a loop, in it, and after it, and the registers that are stored at the end.
#[derive(Clone, Debug)]
struct Program {
    parts: [Vec<Step>; 3],
    stored: Vec<usize>,
    registers: usize,
}

fn program() -> impl Strategy<Value = Program> {
    let part = || vec(step(), 0..8);
    let stored = vec(0..1000usize, 1..4);
    ([part(), part(), part()], stored).prop_map(|(parts, stored)| placed(parts, stored))
}

/// Most steps write a new register, as a compiler has it, and read one that was written before; some
/// write one again, or read one that is only written later, which a loop makes of use.
fn placed(mut parts: [Vec<Step>; 3], mut stored: Vec<usize>) -> Program {
    let mut registers = FIRST;
    let all = FIRST + parts.iter().map(Vec::len).sum::<usize>();
    for step in parts.iter_mut().flatten() {
        if let Step::Copy { from, .. } | Step::Add { from, .. } | Step::Xor { from, .. } = step {
            *from %= if *from < 100 { all } else { registers };
        }
        if let Step::Copy { to, .. }
        | Step::Constant { to, .. }
        | Step::Thread { to }
        | Step::Add { to, .. }
        | Step::Xor { to, .. } = step
        {
            *to = if *to < 200 { *to % registers } else { registers };
            registers = registers.max(*to + 1);
        }
    }
    stored.iter_mut().for_each(|register| *register %= registers);
    Program { parts, stored, registers: all }
}

impl Program {
    fn text(&self) -> String {
        let mut text = String::from(
            "add.u32 %v0, %t, 100; mov.u32 %v1, 5;
             and.b32 %r1, %t, 1; setp.eq.u32 %q0, %r1, 0; mov.u32 %r0, 0;\n",
        );
        for (which, part) in self.parts.iter().enumerate() {
            if which == 1 {
                text +=
                    "LOOP: add.u32 %r1, %t, %r0; and.b32 %r1, %r1, 1; setp.eq.u32 %q0, %r1, 0;\n";
            }
            let mut open: Vec<usize> = Vec::new();
            for (at, step) in part.iter().enumerate() {
                let label = |until: usize| format!("P{which}_{until}");
                for _ in open.extract_if(.., |until| *until == at) {
                    writeln!(text, "{}_{at}:", label(at)).expect("a string");
                }
                let inside = !open.is_empty();
                match *step {
                    Step::Copy { to, from, who } => {
                        writeln!(text, "{}mov.b32 %v{to}, %v{from};", who.guard())
                    }
                    Step::Constant { to, value, who } => {
                        writeln!(text, "{}mov.u32 %v{to}, {value};", who.guard())
                    }
                    Step::Thread { to } => writeln!(text, "mov.u32 %v{to}, %tid.x;"),
                    Step::Add { to, from, value } => {
                        writeln!(text, "add.u32 %v{to}, %v{from}, {value};")
                    }
                    // Not every lane comes where some skip.
                    Step::Xor { to, from, .. } if inside => {
                        writeln!(text, "mov.b32 %v{to}, %v{from};")
                    }
                    Step::Xor { to, from, distance } => writeln!(
                        text,
                        "mov.u32 %x0, {distance}; mov.u32 %x1, 31; mov.u32 %x2, -1;
                         shfl.sync.bfly.b32 %v{to}, %v{from}, %x0, %x1, %x2;"
                    ),
                    Step::Skip { .. } if inside => Ok(()),
                    Step::Skip { who, steps } => {
                        let until = (at + 1 + steps).min(part.len());
                        open.push(until);
                        let skips = match who {
                            Who::All => "",
                            Who::Even => "@!%q0 bra",
                            Who::Odd => "@%q0 bra",
                        };
                        match skips {
                            "" => writeln!(text, "// nobody skips"),
                            skips => writeln!(text, "{skips} {}_{until};", label(until)),
                        }
                    }
                }
                .expect("a string");
            }
            for until in open {
                writeln!(text, "P{which}_{until}_{until}:").expect("a string");
            }
            if which == 1 {
                writeln!(
                    text,
                    "add.u32 %r0, %r0, 1; setp.lt.u32 %q1, %r0, {ROUNDS}; @%q1 bra LOOP;"
                )
                .expect("a string");
            }
        }
        for (at, register) in self.stored.iter().enumerate() {
            writeln!(
                text,
                "mad.wide.u32 %l0, %t, 4, %p0; st.global.u32 [%l0+{}], %v{register};",
                128 * at
            )
            .expect("a string");
        }
        format!(".reg .b32 %v<{}>; .reg .b32 %x<3>;\n{text} ret;", self.registers)
    }

    /// What a warp stores, with registers that begin at 0.
    fn interpreted(&self) -> Vec<u32> {
        let begin = |thread: u32| {
            let mut lane = vec![0; self.registers];
            lane[..FIRST].copy_from_slice(&[thread + 100, 5]);
            lane
        };
        let mut lanes: Vec<Vec<u32>> = (0..32).map(begin).collect();
        let rounds = [1, ROUNDS, 1];
        for (which, part) in self.parts.iter().enumerate() {
            for round in 0..rounds[which] {
                // After the loop the guard is that of its last round.
                let round = if which == 2 { ROUNDS - 1 } else { round };
                let mut skip: Option<(Who, usize)> = None;
                for (at, step) in part.iter().enumerate() {
                    skip = skip.filter(|(_, until)| *until != at);
                    let before = lanes.clone();
                    for (thread, lane) in (0u32..).zip(&mut lanes) {
                        if skip.is_some_and(|(who, _)| !who.has(thread, round)) {
                            continue;
                        }
                        match *step {
                            Step::Copy { to, from, who } if who.has(thread, round) => {
                                lane[to] = lane[from];
                            }
                            Step::Constant { to, value, who } if who.has(thread, round) => {
                                lane[to] = value;
                            }
                            Step::Thread { to } => lane[to] = thread,
                            Step::Add { to, from, value } => {
                                lane[to] = lane[from].wrapping_add(value);
                            }
                            Step::Xor { to, from, .. } if skip.is_some() => lane[to] = lane[from],
                            Step::Xor { to, from, distance } => {
                                lane[to] = before[(thread ^ distance) as usize][from];
                            }
                            _ => {}
                        }
                    }
                    if let (Step::Skip { who, steps }, None) = (step, skip) {
                        skip = Some((*who, (at + 1 + steps).min(part.len())));
                    }
                }
            }
        }
        let of = |register: usize| lanes.iter().map(move |lane| lane[register]);
        self.stored.iter().flat_map(|&register| of(register)).collect()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn copies_are_what_they_copied(program in program()) {
        let module = kernel(1, &program.text());
        // Registers that nothing has written are part of the game; the sanitizer would report them.
        let options = Options { checks: false, ..Options::default() };
        let bytes = 128 * program.stored.len();
        let ran = run_with(&module, vec![Buffer::Blank(bytes)], 1, 32, 0, &options);
        prop_assert_eq!(ran.words(0, bytes / 4), program.interpreted(), "{}", program.text());
    }
}

/// The copy is read in the next round, when what it copied has another value. Its reader comes first,
/// so it is alive at the start and keeps a register of its own.
#[test]
fn a_copy_outlives_the_next_value_of_what_it_copied() {
    let module = kernel(
        1,
        "mov.u32 %r0, 0; mov.u32 %r3, 0;
         LOOP: mul.lo.u32 %r1, %r0, 10; setp.eq.u32 %q0, %r0, 0; @%q0 bra FIRST; add.u32 %r3, %r3, %r2;
         FIRST: mov.b32 %r2, %r1; add.u32 %r0, %r0, 1; setp.lt.u32 %q1, %r0, 4; @%q1 bra LOOP;
         st.global.u32 [%p0], %r3; ret;",
    );
    let ran = run_with(&module, vec![Buffer::Blank(4)], 1, 1, 0, &Options::default()).clean();
    assert_eq!(ran.words(0, 1), [10 + 20]);
}
