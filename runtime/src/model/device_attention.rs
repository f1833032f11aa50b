//! Attention by an artifact's kernel, on a GPU or on an emulated one, behind a model on the host:
//! queries, keys and values are rounded to the kernel's element type and copied.

use super::attend::{Attend, AttendError, Step};
use crate::attention::{DecodeStep, SpanAttention, SpanAttentionLimits, StepOperands};
use crate::cache::{CacheError, CacheSize, PagedCache};
use crate::memory::DeviceMemory;
use crate::pages::Pages;
use half::{bf16, f16};
use spanforge_device::Device;
use spanforge_spans::{Dtype, SpanBatch};
use std::sync::Arc;

/// A paged cache on a device and the attention of one step over it.
pub struct DeviceAttention {
    attention: SpanAttention,
    cache: PagedCache,
    q: DeviceMemory,
    out: DeviceMemory,
    lse: DeviceMemory,
    step: Step,
}

impl DeviceAttention {
    /// Makes the cache for an attention that was loaded on the same device.
    ///
    /// # Errors
    /// A cache that the device cannot hold.
    pub fn new(
        device: &Arc<dyn Device>,
        attention: SpanAttention,
        size: CacheSize,
    ) -> Result<Self, AttendError> {
        let shape = *attention.attention();
        let cache = PagedCache::new(device, shape, size)?;
        let SpanAttentionLimits { rows, .. } = *attention.limits();
        let heads = rows * shape.query_heads as usize;
        let bytes = heads * shape.head_dim as usize * shape.dtype.bytes();
        let allocate =
            |name, bytes| DeviceMemory::allocate(device, name, bytes).map_err(CacheError::Device);
        let (q, out, lse) =
            (allocate("q", bytes)?, allocate("out", bytes)?, allocate("lse", 4 * heads)?);
        Ok(Self { attention, cache, q, out, lse, step: Step::default() })
    }
}

impl Attend for DeviceAttention {
    fn pages_mut(&mut self) -> &mut Pages {
        self.cache.pages_mut()
    }

    fn begin(&mut self, step: &Step) -> Result<(), AttendError> {
        let fault = |fault: String| AttendError::Step { what: "spans", fault };
        let spans = SpanBatch::from_sets(&step.spans).map_err(|error| fault(error.to_string()))?;
        // Requests of a cache are counted in 32 bits.
        let row_request: Vec<i32> = step.requests.iter().map(|request| *request as i32).collect();
        let pages = self.cache.pages().page_map();
        self.attention.plan(&DecodeStep { spans: &spans, row_request: &row_request, pages })?;
        self.step = step.clone();
        Ok(())
    }

    fn attend(
        &mut self,
        layer: usize,
        q: &[f32],
        k: &[f32],
        v: &[f32],
    ) -> Result<Vec<f32>, AttendError> {
        let shape = *self.attention.attention();
        let token = (shape.kv_heads * shape.head_dim) as usize;
        let [k, v] = [k, v].map(|of| of.iter().map(|x| shape.encode_kv(*x)).collect::<Vec<u16>>());
        // Rows of one request that follow each other are written together.
        let (requests, positions) = (&self.step.requests, &self.step.positions);
        let mut row = 0;
        while row < requests.len() {
            let follows = |next: &usize| {
                requests[*next] == requests[row] && positions[*next] == positions[row] + next - row
            };
            let end =
                (row + 1..requests.len()).take_while(follows).last().map_or(row + 1, |l| l + 1);
            let range = row * token..end * token;
            let (k, v) = (&k[range.clone()], &v[range]);
            self.cache.write(layer, requests[row], positions[row], k, v)?;
            row = end;
        }
        let bytes: Vec<u8> = q.iter().flat_map(|x| shape.dtype.encode(*x).to_le_bytes()).collect();
        self.q.upload(0, &bytes).map_err(CacheError::Device)?;
        self.attention.run(&StepOperands {
            q: self.q.buffer(),
            kv: self.cache.layer(layer)?,
            out: self.out.buffer(),
            lse: self.lse.buffer(),
            scale: 1.0 / (shape.head_dim as f32).sqrt(),
            soft_cap: 0.0,
            sinks: None,
        })?;
        let mut out = vec![0; bytes.len()];
        self.out.download(0, &mut out).map_err(CacheError::Device)?;
        let wide = |bits: &[u8; 2]| match shape.dtype {
            Dtype::F16 => f16::from_le_bytes(*bits).to_f32(),
            Dtype::Bf16 => bf16::from_le_bytes(*bits).to_f32(),
        };
        Ok(out.as_chunks::<2>().0.iter().map(wide).collect())
    }
}
