//! The emulator as a library: a kernel from a string, buffers, a launch with checks and counters, and
//! what the checks say of the same kernel without its barrier.
//!
//! `cargo run --release -p spanforge-emulator --example reverse`

use std::error::Error;

use spanforge_emulator::{Argument, Launch, Memory, Module, Options, Report, launch};

/// Each block reverses its 64 words of x in place: a thread reads one, waits for the others to have
/// read theirs, and writes it. What `nvcc --ptx` or NVRTC makes is taken as it is; with line
/// information, findings name CUDA lines.
const REVERSE: &str = "
.version 8.0
.target sm_80
.address_size 64
.visible .entry reverse(.param .u64 x)
{
    .reg .b32 %r<4>;
    .reg .b64 %rd<4>;
    ld.param.u64 %rd0, [x];
    mov.u32 %r0, %ctaid.x;
    mad.wide.u32 %rd0, %r0, 256, %rd0;
    mov.u32 %r1, %tid.x;
    mad.wide.u32 %rd1, %r1, 4, %rd0;
    ld.global.u32 %r2, [%rd1];
    bar.sync 0;
    sub.u32 %r3, 63, %r1;
    mad.wide.u32 %rd2, %r3, 4, %rd0;
    st.global.u32 [%rd2], %r2;
    ret;
}
";

const BLOCKS: u32 = 4;
const THREADS: u32 = 64;

/// Runs the kernel of this text on 0, 1, 2, ... under a schedule. Gives the words and the report.
fn run(text: &str, seed: u64) -> Result<(Vec<u32>, Report), Box<dyn Error>> {
    // What the emulator does not know is refused here, with its line.
    let module = Module::parse(text)?;

    let bytes: Vec<u8> = (0..BLOCKS * THREADS).flat_map(u32::to_le_bytes).collect();
    let mut memory = Memory::new();
    let x = memory.allocate("x", bytes.len())?;
    // Bytes that nothing has written are uninitialised, and a kernel that reads them is reported.
    memory.write(x, &bytes)?;

    let what = Launch {
        kernel: "reverse",
        grid: [BLOCKS, 1, 1],
        block: [THREADS, 1, 1],
        dynamic_shared_bytes: 0,
        arguments: &[Argument::U64(x)],
    };
    // Checks and counters are on by default; other seeds pick other orders of warps and blocks.
    let options = Options { seed, ..Options::default() };
    let report = launch(&module, &mut memory, &what, &options)?;

    let mut bytes = vec![0; bytes.len()];
    memory.read(x, &mut bytes)?;
    let words = bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    Ok((words.collect(), report))
}

fn main() -> Result<(), Box<dyn Error>> {
    let (x, report) = run(REVERSE, 0)?;
    assert!(report.findings.is_empty());
    println!("x begins with {:?} and ends with {:?}", &x[..4], &x[x.len() - 4..]);

    let counters = &report.counters;
    println!("\n{} warps ran {} instructions:", counters.warps, counters.warp_instructions);
    println!("  {:<20}{:>6} instructions", "synchronisation", counters.mix.synchronise);
    for (name, traffic) in
        [("global loads", &counters.global_load), ("global stores", &counters.global_store)]
    {
        println!(
            "  {name:<20}{:>6} requests, {} bytes in {} sectors",
            traffic.requests, traffic.bytes, traffic.sectors
        );
    }

    // The same without the barrier: a race, whatever order the warps happen to run in.
    let racy = REVERSE.replace("    bar.sync 0;\n", "");
    for seed in 0..3 {
        let (_, report) = run(&racy, seed)?;
        let finding = report.findings.first().ok_or("the race was not found")?;
        println!("\nwithout the barrier, seed {seed}:\n{finding}");
    }
    Ok(())
}
