//! A paged KV cache on a device. All layers of a model share one page table; see [`Pages`].

use crate::attention::PagedKv;
use crate::memory::DeviceMemory;
use crate::pages::Pages;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use spanforge_device::{Device, DeviceError};
use spanforge_kernels::KvStrides;
use spanforge_kernels::configuration::{AttentionShape, ShapeError};
use spanforge_spans::KvLayout;
use std::sync::Arc;

/// What can go wrong with a cache.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CacheError {
    /// The device is at fault.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// No kernel serves the shape.
    #[error(transparent)]
    Shape(#[from] ShapeError),
    /// A cache that is too large to be addressed, or whose pages hold nothing.
    #[error("a cache of {pages} pages of {page_size} tokens cannot be made: {fault}")]
    Size {
        /// Pages.
        pages: usize,
        /// Tokens per page.
        page_size: u32,
        /// Why.
        fault: &'static str,
    },
    /// No such request.
    #[error("there is no request {request}: the cache has {requests}, numbered from 0")]
    NoSuchRequest {
        /// As given.
        request: usize,
        /// Requests.
        requests: usize,
    },
    /// No such layer.
    #[error("there is no layer {layer}: the cache has {layers}, numbered from 0")]
    NoSuchLayer {
        /// As given.
        layer: usize,
        /// Layers.
        layers: usize,
    },
    /// All pages are taken.
    #[error(
        "{needed} more page(s) are needed for {tokens} more tokens of request {request}, and {free} are free; end another request first"
    )]
    NoPages {
        /// The request.
        request: usize,
        /// Tokens to add.
        tokens: usize,
        /// Pages they need.
        needed: usize,
        /// Pages there are.
        free: usize,
    },
    /// A request longer than its row of the page table.
    #[error("request {request} would have {tokens} tokens, and its {max_pages} pages hold {room}")]
    TooLong {
        /// The request.
        request: usize,
        /// Tokens it would have.
        tokens: usize,
        /// Entries of its row of the page table.
        max_pages: usize,
        /// Tokens that they hold.
        room: usize,
    },
    /// Data that is not a whole number of tokens, or of other positions than the request has.
    #[error("{tensor} of request {request}: {fault}")]
    Data {
        /// `k` or `v`.
        tensor: &'static str,
        /// The request.
        request: usize,
        /// What is wrong and what was expected.
        fault: String,
    },
}

/// How large a cache is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheSize {
    /// Layers, each with keys and values of its own.
    pub layers: usize,
    /// Pages of each layer.
    pub pages: usize,
    /// Requests at a time.
    pub requests: usize,
    /// Pages that one request may take.
    pub max_pages: usize,
}

/// The keys and values of all requests.
pub struct PagedCache {
    attention: AttentionShape,
    strides: KvStrides,
    layers: Vec<(DeviceMemory, DeviceMemory)>,
    pages: Pages,
}

impl PagedCache {
    /// Allocates a cache in which no request has tokens. Its memory is uninitialised: only selected
    /// tokens are ever read, and those were written.
    pub fn new(
        device: &Arc<dyn Device>,
        attention: AttentionShape,
        size: CacheSize,
    ) -> Result<Self, CacheError> {
        attention.kernel_shape()?;
        let failed =
            |fault| CacheError::Size { pages: size.pages, page_size: attention.page_size, fault };
        let pages = Pages::new(attention.page_size, &size)?;
        let strides = KvStrides::packed(&attention);
        if strides.page > i32::MAX as u64 {
            return Err(failed("the kernels count the elements of a page in 32 bits"));
        }
        let bytes = (size.pages as u64)
            .checked_mul(strides.page)
            .and_then(|elements| elements.checked_mul(attention.kv_bytes() as u64))
            .and_then(|bytes| usize::try_from(bytes).ok())
            .ok_or_else(|| failed("its size is no number"))?;
        let layers = (0..size.layers)
            .map(|layer| {
                let k = DeviceMemory::allocate(device, &format!("k of layer {layer}"), bytes)?;
                let v = DeviceMemory::allocate(device, &format!("v of layer {layer}"), bytes)?;
                Ok((k, v))
            })
            .collect::<Result<_, DeviceError>>()?;
        Ok(Self { attention, strides, layers, pages })
    }

    /// Shape of the tokens.
    pub fn attention(&self) -> &AttentionShape {
        &self.attention
    }

    /// Which pages requests have.
    pub fn pages(&self) -> &Pages {
        &self.pages
    }

    /// The same, to give requests room and take it back. What was written stays where it is.
    pub fn pages_mut(&mut self) -> &mut Pages {
        &mut self.pages
    }

    /// Writes keys and values `[tokens, kv_heads, head_dim]` of one layer, for the positions from
    /// `first` on, which the request must have. Elements are raw bits, of 8 bits in the lower byte.
    pub fn write(
        &self,
        layer: usize,
        request: usize,
        first: usize,
        k: &[u16],
        v: &[u16],
    ) -> Result<(), CacheError> {
        let layers = self.layers.len();
        let no_layer = CacheError::NoSuchLayer { layer, layers };
        let (keys, values) = self.layers.get(layer).ok_or(no_layer)?;
        let has = self.pages.tokens(request)?;
        let token = self.attention.kv_heads as usize * self.attention.head_dim as usize;
        let tokens = k.len() / token;
        for (tensor, data) in [("k", k), ("v", v)] {
            let fault = if data.len() != tokens * token {
                format!("{} elements, expected {tokens} tokens of {token}", data.len())
            } else if first.checked_add(tokens).is_none_or(|end| end > has) {
                format!("{tokens} tokens from {first} on, and the request has {has}")
            } else {
                continue;
            };
            return Err(CacheError::Data { tensor, request, fault });
        }
        self.write_tokens(keys, request, first, k)?;
        Ok(self.write_tokens(values, request, first, v)?)
    }

    /// Fills all pages with random keys and values between -1 and 1, to measure with: some megabytes of
    /// them over and over.
    pub fn fill_random(&self, seed: u64) -> Result<(), CacheError> {
        const ELEMENTS: usize = 1 << 21;
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let a = &self.attention;
        let random = (0..ELEMENTS).map(|_| a.encode_kv(rng.random_range(-1.0_f32..1.0)));
        let random = bytes_of(random, a.kv_bytes());
        for memory in self.layers.iter().flat_map(|(k, v)| [k, v]) {
            for offset in (0..memory.buffer().bytes).step_by(random.len()) {
                let bytes = random.len().min(memory.buffer().bytes - offset);
                memory.upload(offset, &random[..bytes])?;
            }
        }
        Ok(())
    }

    /// One copy per page (NHD) or per page and head (HND).
    fn write_tokens(
        &self,
        to: &DeviceMemory,
        request: usize,
        first: usize,
        data: &[u16],
    ) -> Result<(), DeviceError> {
        let a = &self.attention;
        let [page_size, kv_heads, head_dim] =
            [a.page_size, a.kv_heads, a.head_dim].map(|n| n as usize);
        let token = kv_heads * head_dim;
        let size = a.kv_bytes();
        let upload = |element: usize, run: &mut dyn Iterator<Item = &u16>| {
            to.upload(size * element, &bytes_of(run.copied(), size))
        };
        let mut data = data;
        let mut position = first;
        while !data.is_empty() {
            let (page, slot) = self.pages.place(request, position);
            let tokens = (page_size - slot).min(data.len() / token);
            let (run, rest) = data.split_at(tokens * token);
            let row = |head| a.layout.row_index(page, slot, head, page_size, kv_heads);
            match a.layout {
                KvLayout::Nhd => upload(row(0) * head_dim, &mut run.iter())?,
                KvLayout::Hnd => {
                    for head in 0..kv_heads {
                        let mut of_head =
                            run.chunks_exact(token).flat_map(|t| &t[head * head_dim..][..head_dim]);
                        upload(row(head) * head_dim, &mut of_head)?;
                    }
                }
            }
            data = rest;
            position += tokens;
        }
        Ok(())
    }

    /// The cache of one layer, for [`SpanAttention::run`](crate::SpanAttention::run).
    pub fn layer(&self, layer: usize) -> Result<PagedKv, CacheError> {
        let layers = self.layers.len();
        let (k, v) = self.layers.get(layer).ok_or(CacheError::NoSuchLayer { layer, layers })?;
        Ok(PagedKv::new(k.buffer(), v.buffer(), self.strides))
    }
}

/// Elements in memory: of `size` bytes, the lower ones of their bits.
fn bytes_of(elements: impl Iterator<Item = u16>, size: usize) -> Vec<u8> {
    elements.flat_map(|bits| bits.to_le_bytes().into_iter().take(size)).collect()
}
