//! A paged KV cache on a device: a fixed number of pages that requests take as their tokens come
//! and give back when they end. All layers of a model share one page table.

use crate::attention::{PageMap, PagedKv};
use crate::memory::DeviceMemory;
use spanforge_device::{Device, DeviceError};
use spanforge_kernels::KvStrides;
use spanforge_kernels::configuration::{AttentionShape, ShapeError};
use spanforge_spans::KvLayout;
use std::ops::Range;
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
    size: CacheSize,
    strides: KvStrides,
    layers: Vec<(DeviceMemory, DeviceMemory)>,
    /// Free pages; the last is taken first.
    free: Vec<i32>,
    page_table: Vec<i32>,
    kv_len: Vec<i32>,
}

/// What the page table says where a request has no page: no page at all, so that a plan that needed
/// it would be refused.
const NO_PAGE: i32 = -1;

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
        if attention.page_size == 0 {
            return Err(failed("a page holds at least one token"));
        }
        let strides = KvStrides::packed(&attention);
        if strides.page > i32::MAX as u64 || size.pages > i32::MAX as usize {
            return Err(failed("the kernels count pages and the elements of a page in 32 bits"));
        }
        let too_large = "its size is no number";
        let bytes = (size.pages as u64)
            .checked_mul(strides.page)
            .and_then(|elements| elements.checked_mul(attention.dtype.bytes() as u64))
            .and_then(|bytes| usize::try_from(bytes).ok())
            .ok_or_else(|| failed(too_large))?;
        let entries = size.requests.checked_mul(size.max_pages);
        let room = size.max_pages.checked_mul(attention.page_size as usize);
        let (Some(entries), Some(_)) = (entries, room) else { return Err(failed(too_large)) };
        let layers = (0..size.layers)
            .map(|layer| {
                let k = DeviceMemory::allocate(device, &format!("k of layer {layer}"), bytes)?;
                let v = DeviceMemory::allocate(device, &format!("v of layer {layer}"), bytes)?;
                Ok((k, v))
            })
            .collect::<Result<_, DeviceError>>()?;
        Ok(Self {
            attention,
            size,
            strides,
            layers,
            free: (0..size.pages as i32).rev().collect(),
            page_table: vec![NO_PAGE; entries],
            kv_len: vec![0; size.requests],
        })
    }

    /// Shape of the tokens.
    pub fn attention(&self) -> &AttentionShape {
        &self.attention
    }

    /// Pages that no request has.
    pub fn free_pages(&self) -> usize {
        self.free.len()
    }

    /// Tokens of a request.
    pub fn tokens(&self, request: usize) -> Result<usize, CacheError> {
        let tokens = self.kv_len.get(request).copied();
        let requests = self.size.requests;
        tokens.map(|t| t as usize).ok_or(CacheError::NoSuchRequest { request, requests })
    }

    /// Makes room for `tokens` more tokens of a request, in all layers, and returns their
    /// positions. Takes nothing where not all of them fit.
    pub fn extend(&mut self, request: usize, tokens: usize) -> Result<Range<usize>, CacheError> {
        let from = self.tokens(request)?;
        let page_size = self.attention.page_size as usize;
        let max_pages = self.size.max_pages;
        let room = (max_pages * page_size).min(i32::MAX as usize);
        let to = from.saturating_add(tokens);
        if to > room {
            return Err(CacheError::TooLong { request, tokens: to, max_pages, room });
        }
        let (has, needs) = (from.div_ceil(page_size), to.div_ceil(page_size));
        let (needed, free) = (needs - has, self.free.len());
        if needed > free {
            return Err(CacheError::NoPages { request, tokens, needed, free });
        }
        let taken = self.free.drain(free - needed..).rev();
        for (entry, page) in
            self.page_table[request * max_pages..][has..needs].iter_mut().zip(taken)
        {
            *entry = page;
        }
        self.kv_len[request] = to as i32;
        Ok(from..to)
    }

    /// Gives the pages of a request back; it has no tokens then.
    pub fn release(&mut self, request: usize) -> Result<(), CacheError> {
        let pages = self.tokens(request)?.div_ceil(self.attention.page_size as usize);
        for entry in &mut self.page_table[request * self.size.max_pages..][..pages] {
            self.free.push(std::mem::replace(entry, NO_PAGE));
        }
        self.kv_len[request] = 0;
        Ok(())
    }

    /// Writes keys and values `[tokens, kv_heads, head_dim]` of one layer, for the positions from
    /// `first` on, which the request must have.
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
        let has = self.tokens(request)?;
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
        let table = &self.page_table[request * self.size.max_pages..][..self.size.max_pages];
        let mut data = data;
        let mut position = first;
        while !data.is_empty() {
            let slot = position % page_size;
            let tokens = (page_size - slot).min(data.len() / token);
            let (run, rest) = data.split_at(tokens * token);
            // Positions that the request has are on pages that the cache has.
            let page = table[position / page_size] as usize;
            let row = |head| a.layout.row_index(page, slot, head, page_size, kv_heads);
            match a.layout {
                KvLayout::Nhd => upload(to, row(0) * head_dim, run.iter())?,
                KvLayout::Hnd => {
                    for head in 0..kv_heads {
                        let of_head =
                            run.chunks_exact(token).flat_map(|t| &t[head * head_dim..][..head_dim]);
                        upload(to, row(head) * head_dim, of_head)?;
                    }
                }
            }
            data = rest;
            position += tokens;
        }
        Ok(())
    }

    /// Where tokens lie, for [`SpanAttention::plan`](crate::SpanAttention::plan).
    pub fn page_map(&self) -> PageMap<'_> {
        PageMap {
            page_table: &self.page_table,
            max_pages: self.size.max_pages,
            kv_len: &self.kv_len,
            pages: self.size.pages,
        }
    }

    /// The cache of one layer, for [`SpanAttention::run`](crate::SpanAttention::run).
    pub fn layer(&self, layer: usize) -> Result<PagedKv, CacheError> {
        let layers = self.layers.len();
        let (k, v) = self.layers.get(layer).ok_or(CacheError::NoSuchLayer { layer, layers })?;
        Ok(PagedKv { k: k.buffer(), v: v.buffer(), strides: self.strides })
    }
}

fn upload<'a>(
    to: &DeviceMemory,
    element: usize,
    data: impl Iterator<Item = &'a u16>,
) -> Result<(), DeviceError> {
    let bytes: Vec<u8> = data.flat_map(|bits| bits.to_le_bytes()).collect();
    to.upload(2 * element, &bytes)
}
