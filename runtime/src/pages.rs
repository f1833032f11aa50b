//! Which pages of a KV cache each request has: a fixed number of pages that requests take as their
//! tokens come and give back when they end. It knows nothing of where the pages are.

use crate::attention::PageMap;
use crate::cache::{CacheError, CacheSize};
use std::ops::Range;

/// What the page table says where a request has no page: no page at all, so that a plan that needed
/// it would be refused.
const NO_PAGE: i32 = -1;

/// The pages of all requests.
#[derive(Debug)]
pub struct Pages {
    page_size: usize,
    pages: usize,
    max_pages: usize,
    /// Free pages; the last is taken first.
    free: Vec<i32>,
    page_table: Vec<i32>,
    kv_len: Vec<i32>,
}

impl Pages {
    /// Pages of `page_size` tokens, of which no request has one.
    ///
    /// # Errors
    /// [`CacheError::Size`] for pages without tokens, and more than the kernels' integers count.
    pub fn new(page_size: u32, size: &CacheSize) -> Result<Self, CacheError> {
        let CacheSize { pages, requests, max_pages, .. } = *size;
        let failed = |fault| CacheError::Size { pages, page_size, fault };
        if page_size == 0 {
            return Err(failed("a page holds at least one token"));
        }
        if pages > i32::MAX as usize {
            return Err(failed("the kernels count pages in 32 bits"));
        }
        let (entries, room) =
            (requests.checked_mul(max_pages), max_pages.checked_mul(page_size as usize));
        let (Some(entries), Some(_)) = (entries, room) else {
            return Err(failed("its size is no number"));
        };
        Ok(Self {
            page_size: page_size as usize,
            pages,
            max_pages,
            free: (0..pages as i32).rev().collect(),
            page_table: vec![NO_PAGE; entries],
            kv_len: vec![0; requests],
        })
    }

    /// Requests at a time.
    pub fn requests(&self) -> usize {
        self.kv_len.len()
    }

    /// Pages in all.
    pub fn count(&self) -> usize {
        self.pages
    }

    /// Pages that so many tokens of a request need.
    pub fn needed(&self, tokens: usize) -> usize {
        tokens.div_ceil(self.page_size)
    }

    /// Tokens that one request may have, were it alone.
    pub fn room(&self) -> usize {
        (self.max_pages.min(self.pages).saturating_mul(self.page_size)).min(i32::MAX as usize)
    }

    /// Pages that no request has.
    pub fn free_pages(&self) -> usize {
        self.free.len()
    }

    /// Tokens of a request.
    pub fn tokens(&self, request: usize) -> Result<usize, CacheError> {
        let tokens = self.kv_len.get(request).copied();
        let requests = self.kv_len.len();
        tokens.map(|t| t as usize).ok_or(CacheError::NoSuchRequest { request, requests })
    }

    /// Makes room for `tokens` more tokens of a request, in all layers, and returns their
    /// positions. Takes nothing where not all of them fit.
    pub fn extend(&mut self, request: usize, tokens: usize) -> Result<Range<usize>, CacheError> {
        let from = self.tokens(request)?;
        let Self { page_size, max_pages, .. } = *self;
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
        let pages = self.tokens(request)?.div_ceil(self.page_size);
        for entry in &mut self.page_table[request * self.max_pages..][..pages] {
            self.free.push(std::mem::replace(entry, NO_PAGE));
        }
        self.kv_len[request] = 0;
        Ok(())
    }

    /// Page and slot of a position that the request has.
    pub(crate) fn place(&self, request: usize, position: usize) -> (usize, usize) {
        // Positions that a request has are on pages that there are.
        let page = self.page_table[request * self.max_pages + position / self.page_size];
        (page as usize, position % self.page_size)
    }

    /// Where tokens lie, for [`SpanAttention::plan`](crate::SpanAttention::plan).
    pub fn page_map(&self) -> PageMap<'_> {
        PageMap {
            page_table: &self.page_table,
            max_pages: self.max_pages,
            kv_len: &self.kv_len,
            pages: self.pages,
        }
    }
}
