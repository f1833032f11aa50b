//! The paged cache against a plain list of tokens per request.

mod recording;

use proptest::prelude::*;
use recording::Recording;
use spanforge_device::Device;
use spanforge_kernels::configuration::AttentionShape;
use spanforge_runtime::{CacheError, CacheSize, PagedCache};
use spanforge_spans::{Dtype, KvDtype, KvLayout};
use std::sync::Arc;

fn shape(page_size: u32, layout: KvLayout, kv_dtype: KvDtype) -> AttentionShape {
    AttentionShape {
        dtype: Dtype::Bf16,
        kv_dtype,
        query_heads: 4,
        kv_heads: 2,
        head_dim: 64,
        page_size,
        layout,
    }
}

const SIZE: CacheSize = CacheSize { layers: 2, pages: 6, requests: 3, max_pages: 4 };

/// K of a token, or V with all bits turned: its elements tell layer, head and token apart, their lower
/// bytes too.
fn token(serial: u16, layer: usize, head: usize) -> [u16; 64] {
    std::array::from_fn(|d| serial * (256 + 37) + (layer * 128 + head * 64 + d) as u16)
}

fn data(serials: &[u16], layer: usize) -> Vec<u16> {
    serials.iter().flat_map(|s| [token(*s, layer, 0), token(*s, layer, 1)]).flatten().collect()
}

/// Reads a token's head back from where the page table says it lies.
fn read(
    device: &Recording,
    cache: &PagedCache,
    layer: usize,
    request: usize,
    position: usize,
    head: usize,
    values: bool,
) -> Vec<u16> {
    let a = cache.attention();
    let (map, kv) = (cache.pages().page_map(), cache.layer(layer).unwrap());
    let page_size = a.page_size as usize;
    let page = map.page_table[request * map.max_pages + position / page_size] as usize;
    let row = a.layout.row_index(page, position % page_size, head, page_size, 2);
    let size = a.kv_bytes();
    let mut bytes = vec![0; 64 * size];
    device.download(if values { kv.v } else { kv.k }, row * 64 * size, &mut bytes).unwrap();
    let element = |b: &[u8]| b.iter().rev().fold(0, |bits, byte| bits << 8 | u16::from(*byte));
    bytes.chunks_exact(size).map(element).collect()
}

#[derive(Clone, Debug)]
enum Step {
    Append { request: usize, tokens: usize },
    Release { request: usize },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        5 => (0..3usize, 0..12usize).prop_map(|(request, tokens)| Step::Append { request, tokens }),
        1 => (0..3usize).prop_map(|request| Step::Release { request }),
    ];
    prop::collection::vec(step, 1..24)
}

proptest! {
    #[test]
    fn tokens_are_where_the_page_table_says(
        steps in steps(),
        page_size in prop::sample::select(vec![1u32, 3, 4, 16]),
        hnd in any::<bool>(),
        of_8_bits in any::<bool>(),
    ) {
        let layout = if hnd { KvLayout::Hnd } else { KvLayout::Nhd };
        let (kv_dtype, mask) =
            if of_8_bits { (KvDtype::E4m3, 0xff) } else { (KvDtype::Same, 0xffff) };
        let device = Arc::new(Recording::new());
        let dynamic: Arc<dyn Device> = device.clone();
        let mut cache = PagedCache::new(&dynamic, shape(page_size, layout, kv_dtype), SIZE).unwrap();
        let mut lists: [Vec<u16>; 3] = Default::default();
        let mut serial = 0;
        for step in steps {
            match step {
                Step::Append { request, tokens } => {
                    let pages = |lists: &[Vec<u16>]| -> usize {
                        lists.iter().map(|l| l.len().div_ceil(page_size as usize)).sum()
                    };
                    let before = lists.clone();
                    let serials: Vec<u16> = (0..tokens as u16).map(|i| serial + i).collect();
                    lists[request].extend(&serials);
                    let fits = lists[request].len() <= 4 * page_size as usize && pages(&lists) <= 6;
                    let extended = cache.pages_mut().extend(request, tokens);
                    prop_assert_eq!(extended.is_ok(), fits, "{:?}", extended);
                    let Ok(positions) = extended else { lists = before; continue };
                    serial += tokens as u16;
                    prop_assert_eq!(positions.clone(), before[request].len()..lists[request].len());
                    for layer in 0..2 {
                        let k = data(&serials, layer);
                        let v: Vec<u16> = k.iter().map(|x| !x).collect();
                        cache.write(layer, request, positions.start, &k, &v).unwrap();
                    }
                }
                Step::Release { request } => {
                    cache.pages_mut().release(request).unwrap();
                    lists[request].clear();
                }
            }
            let used: usize = lists.iter().map(|l| l.len().div_ceil(page_size as usize)).sum();
            prop_assert_eq!(cache.pages().free_pages(), 6 - used);
            let lengths: Vec<i32> = lists.iter().map(|l| l.len() as i32).collect();
            prop_assert_eq!(cache.pages().page_map().kv_len, lengths);
        }
        for (request, list) in lists.iter().enumerate() {
            for (position, serial) in list.iter().enumerate() {
                for (layer, head) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                    let k = read(&device, &cache, layer, request, position, head, false);
                    let v = read(&device, &cache, layer, request, position, head, true);
                    prop_assert_eq!(&k, &token(*serial, layer, head).map(|bits| bits & mask));
                    prop_assert!(k.iter().zip(&v).all(|(k, v)| *v == !*k & mask));
                }
            }
        }
    }
}

#[test]
fn what_does_not_fit_is_refused_and_takes_nothing() {
    let device: Arc<dyn Device> = Arc::new(Recording::new());
    let mut cache = PagedCache::new(&device, shape(4, KvLayout::Nhd, KvDtype::Same), SIZE).unwrap();
    assert_eq!(cache.pages_mut().extend(0, 13).unwrap(), 0..13);
    assert!(matches!(
        cache.pages_mut().extend(1, 9).unwrap_err(),
        CacheError::NoPages { request: 1, tokens: 9, needed: 3, free: 2 }
    ));
    assert!(matches!(
        cache.pages_mut().extend(0, 4).unwrap_err(),
        CacheError::TooLong { tokens: 17, room: 16, .. }
    ));
    assert!(matches!(
        cache.pages_mut().extend(0, usize::MAX).unwrap_err(),
        CacheError::TooLong { .. }
    ));
    assert!(matches!(
        cache.pages_mut().extend(3, 1).unwrap_err(),
        CacheError::NoSuchRequest { .. }
    ));
    assert_eq!(
        (
            cache.pages().free_pages(),
            cache.pages().tokens(0).unwrap(),
            cache.pages().tokens(1).unwrap()
        ),
        (2, 13, 0)
    );

    let token = [0; 128];
    let write = |layer, request, first, k: &[u16], v: &[u16]| {
        cache.write(layer, request, first, k, v).unwrap_err().to_string()
    };
    assert_eq!(
        write(2, 0, 0, &token, &token),
        "there is no layer 2: the cache has 2, numbered from 0"
    );
    assert!(
        write(0, 0, 13, &token, &token).contains("1 tokens from 13 on, and the request has 13")
    );
    assert!(write(0, 1, 0, &token, &token).contains("the request has 0"));
    assert!(write(0, 0, usize::MAX, &token, &token).contains("the request has 13"));
    assert!(write(0, 0, 0, &token[1..], &token).contains("k of request 0: 127 elements"));
    assert!(write(0, 0, 0, &token, &token[1..]).contains("v of request 0: 127 elements"));

    for (page_size, pages) in [(0, 6), (16, usize::MAX), (u32::MAX, 6)] {
        let size = CacheSize { pages, ..SIZE };
        let made = PagedCache::new(&device, shape(page_size, KvLayout::Hnd, KvDtype::Same), size);
        assert!(matches!(made, Err(CacheError::Size { .. })), "{page_size} {pages}");
    }
}
