//! Building small kernels and running them.

use spanforge_emulator::{Argument, Launch, Memory, Module, Options, Report, launch};

/// A module with one kernel `k` of these parameters and this body.
pub fn source(parameters: &str, body: &str) -> String {
    format!(
        ".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry k({parameters})\n{{\n{body}\n}}\n"
    )
}

/// A kernel with pointers %p0, %p1, ... as parameters, a few registers declared, and the thread
/// index in %tid.
pub fn kernel(pointers: usize, body: &str) -> Module {
    let parameters: Vec<String> = (0..pointers).map(|i| format!(".param .u64 a{i}")).collect();
    let loads: String = (0..pointers).map(|i| format!("ld.param.u64 %p{i}, [a{i}];\n")).collect();
    let text = source(
        &parameters.join(", "),
        &format!(
            ".reg .pred %q<16>;\n.reg .b16 %h<16>;\n.reg .b32 %r<32>;\n.reg .b64 %l<32>;\n\
             .reg .f32 %f<16>;\n.reg .b64 %p<8>;\n.reg .b32 %t;\n\
             mov.u32 %t, %tid.x;\n{loads}{body}"
        ),
    );
    Module::parse(&text).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

pub struct Ran {
    pub memory: Memory,
    pub addresses: Vec<u64>,
    pub report: Report,
}

impl Ran {
    /// The words of a buffer.
    pub fn words(&self, buffer: usize, count: usize) -> Vec<u32> {
        let mut bytes = vec![0; 4 * count];
        self.memory.read(self.addresses[buffer], &mut bytes).expect("in range");
        bytes.chunks(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
    }

    /// The report has no findings.
    pub fn clean(self) -> Self {
        assert!(self.report.findings.is_empty(), "{}", self.report.findings[0]);
        self
    }
}

/// What a buffer holds at the start.
pub enum Buffer {
    Words(Vec<u32>),
    Bytes(Vec<u8>),
    Blank(usize),
}

/// Runs `k` with one buffer per parameter.
pub fn run_with(
    module: &Module,
    buffers: Vec<Buffer>,
    grid: u32,
    block: u32,
    dynamic: u32,
    options: &Options,
) -> Ran {
    let mut memory = Memory::new();
    let mut addresses = Vec::new();
    for (index, buffer) in buffers.into_iter().enumerate() {
        let (length, bytes) = match buffer {
            Buffer::Words(words) => {
                let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
                (bytes.len(), bytes)
            }
            Buffer::Bytes(bytes) => (bytes.len(), bytes),
            Buffer::Blank(length) => (length, Vec::new()),
        };
        let address = memory.allocate(&format!("buffer{index}"), length).expect("small");
        memory.write(address, &bytes).expect("in range");
        addresses.push(address);
    }
    let arguments: Vec<Argument> = addresses.iter().map(|&a| Argument::U64(a)).collect();
    let what = Launch {
        kernel: "k",
        grid: [grid, 1, 1],
        block: [block, 1, 1],
        dynamic_shared_bytes: dynamic,
        arguments: &arguments,
    };
    let report = launch(module, &mut memory, &what, options).expect("launch");
    Ran { memory, addresses, report }
}

pub fn run(module: &Module, buffers: Vec<Buffer>, block: u32) -> Ran {
    run_with(module, buffers, 1, block, 0, &Options::default())
}

/// One instruction as a function of up to three values, run for every triple of `inputs`.
pub struct Function {
    module: Module,
    bytes: [usize; 4],
}

impl Function {
    /// `text` computes `%d` from `%a`, `%b`, `%c`, whose sizes in bytes are `bytes`, d last. It
    /// may use the predicates %q0 to %q3 and the words %r0 to %r3.
    pub fn new(text: &str, bytes: [usize; 4]) -> Self {
        let [a, b, c, d] = bytes.map(|n| 8 * n);
        let [sa, sb, sc, sd] = bytes;
        let text = source(
            ".param .u64 pa, .param .u64 pb, .param .u64 pc, .param .u64 pd",
            &format!(
                ".reg .pred %q<4>;\n.reg .b{a} %a;\n.reg .b{b} %b;\n.reg .b{c} %c;\n.reg .b{d} %d;\n\
                 .reg .b32 %r<4>;\n.reg .b32 %t;\n.reg .b64 %l;\n.reg .b64 %o;\n\
                 mov.u32 %t, %ctaid.x;\nshl.b32 %t, %t, 6;\nmov.u32 %r0, %tid.x;\nadd.u32 %t, %t, %r0;\n\
                 ld.param.u64 %l, [pa];\nmad.wide.u32 %l, %t, {sa}, %l;\nld.global.b{a} %a, [%l];\n\
                 ld.param.u64 %l, [pb];\nmad.wide.u32 %l, %t, {sb}, %l;\nld.global.b{b} %b, [%l];\n\
                 ld.param.u64 %l, [pc];\nmad.wide.u32 %l, %t, {sc}, %l;\nld.global.b{c} %c, [%l];\n\
                 {text}\n\
                 ld.param.u64 %o, [pd];\nmad.wide.u32 %o, %t, {sd}, %o;\nst.global.b{d} [%o], %d;\nret;"
            ),
        );
        let module = Module::parse(&text).unwrap_or_else(|error| panic!("{error}\n{text}"));
        Self { module, bytes }
    }

    pub fn apply(&self, inputs: &[[u64; 3]]) -> Vec<u64> {
        let padded = inputs.len().div_ceil(64) * 64;
        let column = |index: usize| {
            let mut bytes = Vec::new();
            for row in 0..padded {
                let value = inputs.get(row).map_or(0, |row| row[index]);
                bytes.extend_from_slice(&value.to_le_bytes()[..self.bytes[index]]);
            }
            Buffer::Bytes(bytes)
        };
        let size = self.bytes[3];
        let buffers = vec![column(0), column(1), column(2), Buffer::Blank(padded * size)];
        let grid = (padded / 64) as u32;
        let ran = run_with(&self.module, buffers, grid, 64, 0, &Options::default()).clean();
        let mut bytes = vec![0; padded * size];
        ran.memory.read(ran.addresses[3], &mut bytes).expect("in range");
        bytes
            .chunks(size)
            .take(inputs.len())
            .map(|chunk| {
                let mut word = [0; 8];
                word[..size].copy_from_slice(chunk);
                u64::from_le_bytes(word)
            })
            .collect()
    }
}
