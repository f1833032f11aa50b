//! The launches of a decoder step besides attention and products of matrices; their source is that of
//! [`render_model`](crate::render::render_model). All have one block per row.

use crate::configuration::AttentionShape;
use spanforge_device::{Argument, Buffer, Launch, ModuleId};

/// Threads of each block; `MODEL_THREADS` of the device code.
const THREADS: u32 = 256;

/// Makes the launches of the kernels in one loaded module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModelKernels(pub ModuleId);

impl ModelKernels {
    fn launch(&self, kernel: &str, rows: usize, arguments: Vec<Argument>) -> Launch {
        Launch {
            module: self.0,
            kernel: format!("spanforge_{kernel}"),
            grid: [rows as u32, 1, 1],
            block: [THREADS, 1, 1],
            shared_bytes: 0,
            arguments,
        }
    }

    /// Rows `tokens` `[rows]` of `table` `[vocabulary, size]`, to `x` `[rows, size]` in f32. `size` is
    /// even, and tokens are below the vocabulary's size.
    pub fn embed(
        &self,
        rows: usize,
        size: usize,
        table: Buffer,
        tokens: Buffer,
        x: Buffer,
    ) -> Launch {
        let arguments = vec![table.at(0), tokens.at(0), x.at(0), Argument::I32(size as i32)];
        self.launch("embed", rows, arguments)
    }

    /// RMSNorm of the rows `chosen` `[rows]` of `x` `[., size]` in f32 with a gain `[size]` in f32, to
    /// `y` `[rows, size]`. `size` is even.
    pub fn rms_norm(
        &self,
        rows: usize,
        size: usize,
        eps: f32,
        [x, chosen, gain, y]: [Buffer; 4],
    ) -> Launch {
        let pointers = [x, chosen, gain, y].map(|buffer| buffer.at(0));
        let scalars = [Argument::I32(size as i32), Argument::F32(eps)];
        self.launch("rms_norm", rows, pointers.into_iter().chain(scalars).collect())
    }

    /// Turns queries and keys of `qkv` `[rows, query_heads + 2 kv_heads, head_dim]` by `turns`
    /// `[rows, head_dim / 2, 2]` (cosine, sine; f32) and writes queries to `q` `[rows, query_heads,
    /// head_dim]`, keys and values to `k` and `v`, where the token of a row begins at element
    /// `places` `[rows]` (i64) and heads lie `head_stride` elements apart.
    pub fn rotate_and_keep(
        &self,
        rows: usize,
        shape: &AttentionShape,
        head_stride: u64,
        [qkv, turns, places, q, k, v]: [Buffer; 6],
    ) -> Launch {
        let pointers = [qkv, turns, places, q, k, v].map(|buffer| buffer.at(0));
        let sizes = [shape.query_heads, shape.kv_heads, shape.head_dim];
        let sizes = sizes.map(|size| Argument::I32(size as i32));
        let stride = [Argument::I64(head_stride as i64)];
        let arguments = pointers.into_iter().chain(sizes).chain(stride).collect();
        self.launch("rotate_and_keep", rows, arguments)
    }

    /// silu(gate) * up of `gate_up` `[rows, 2 size]`, gates first, to `y` `[rows, size]`. `size` is
    /// even.
    pub fn swiglu(&self, rows: usize, size: usize, gate_up: Buffer, y: Buffer) -> Launch {
        let arguments = vec![gate_up.at(0), y.at(0), Argument::I32(size as i32)];
        self.launch("swiglu", rows, arguments)
    }
}
