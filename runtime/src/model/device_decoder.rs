//! A whole model on a device: weights and activations in the element type of the cache, what layers
//! add to in f32, products of matrices by the vendor's library, attention by an artifact's kernel, and
//! small kernels between them. A step uploads its tokens and places, queues all its work, and waits
//! once, for the logits. Its work depends on little, so it is kept and, where the device can, recorded:
//! on a GPU a step is one launch of a CUDA graph.

use super::attend::{AttendError, Step};
use super::config::ModelConfig;
use super::decoder::Decoder;
use super::linear::Matrix;
use super::llama::{Layer, Llama, turns};
use crate::attention::{DecodeStep, SpanAttention, StepOperands};
use crate::cache::{CacheError, CacheSize, PagedCache};
use crate::memory::DeviceMemory;
use crate::pages::Pages;
use spanforge_device::{
    Buffer, Device, DeviceError, Element, Image, ModuleId, Product, RecordingId, Work,
};
use spanforge_kernels::{KernelSpec, KvStrides, ModelKernels};
use spanforge_spans::{Dtype, SpanBatch};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A model, its cache and the attention over it on one device.
pub struct DeviceDecoder {
    device: Arc<dyn Device>,
    config: ModelConfig,
    /// Radians per position, by pair of elements.
    angles: Vec<f64>,
    attention: SpanAttention,
    cache: PagedCache,
    code: Code,
    weights: Weights,
    scratch: Scratch,
    kept: BTreeMap<StepKind, KeptStep>,
}

/// Loaded code, unloaded on drop.
struct Code {
    device: Arc<dyn Device>,
    module: ModuleId,
}

impl Drop for Code {
    fn drop(&mut self) {
        // Nothing to be done about a device that is gone.
        let _ = self.device.unload(self.module);
    }
}

struct Weights {
    embedding: DeviceMemory,
    layers: Vec<LayerWeights>,
    norm: DeviceMemory,
    /// The output matrix, where it is not the embedding.
    output: Option<DeviceMemory>,
}

struct LayerWeights {
    attention_norm: DeviceMemory,
    qkv: DeviceMemory,
    o: DeviceMemory,
    mlp_norm: DeviceMemory,
    gate_up: DeviceMemory,
    down: DeviceMemory,
}

/// Activations of a step, for as many rows as the attention was loaded for.
struct Scratch {
    /// `[rows]` i32.
    tokens: DeviceMemory,
    /// `[rows, head_dim / 2, 2]` f32.
    turns: DeviceMemory,
    /// `[rows]` i64.
    places: DeviceMemory,
    /// `[rows]` i32: all rows in order.
    rows: DeviceMemory,
    /// `[rows]` i32: those whose logits are wanted.
    wanted: DeviceMemory,
    /// `[rows, hidden]` f32: what layers add to.
    x: DeviceMemory,
    /// `[rows, hidden]`.
    normed: DeviceMemory,
    /// `[rows, query_heads + 2 kv_heads, head_dim]`.
    qkv: DeviceMemory,
    /// `[rows, query_heads, head_dim]`.
    q: DeviceMemory,
    /// `[rows, query_heads, head_dim]`.
    attended: DeviceMemory,
    /// `[rows, query_heads]` f32.
    lse: DeviceMemory,
    /// `[rows, 2 inner]`.
    gate_up: DeviceMemory,
    /// `[rows, inner]`.
    activated: DeviceMemory,
    /// `[rows, vocabulary]` f32.
    logits: DeviceMemory,
}

impl DeviceDecoder {
    /// Copies a model to the device of `attention`, which was loaded for its shape, and makes a cache.
    /// `image` is the code of [`render_model`](spanforge_kernels::render_model) for the cache's element
    /// type.
    ///
    /// # Errors
    /// A model whose sizes are odd, and what the device cannot hold or load.
    pub fn new(
        model: &Llama,
        device: &Arc<dyn Device>,
        attention: SpanAttention,
        image: &Image,
        size: CacheSize,
    ) -> Result<Self, AttendError> {
        let config = model.config().clone();
        let ModelConfig { hidden_size, intermediate_size, head_dim, .. } = config;
        for (what, size, multiple) in [
            ("hidden_size", hidden_size, 2),
            ("intermediate_size", intermediate_size, 2),
            ("head_dim", head_dim, 4),
        ] {
            if !size.is_multiple_of(multiple) {
                let fault = format!("{size} is no multiple of {multiple}");
                return Err(AttendError::Step { what, fault });
            }
        }
        let shape = *attention.attention();
        let cache = PagedCache::new(device, shape, size)?;
        let rows = attention.limits().rows;
        let (weights, scratch) = (
            Weights::upload(model, device, shape.dtype).map_err(CacheError::from)?,
            Scratch::allocate(&config, device, rows).map_err(CacheError::from)?,
        );
        let module = device.load(image).map_err(CacheError::from)?;
        let code = Code { device: device.clone(), module };
        let (device, angles) = (device.clone(), model.angles.clone());
        let kept = BTreeMap::new();
        Ok(Self { device, config, angles, attention, cache, code, weights, scratch, kept })
    }

    /// Fills the cache with random keys and values, to measure with.
    ///
    /// # Errors
    /// What the device finds.
    pub fn fill_random(&mut self, seed: u64) -> Result<(), AttendError> {
        Ok(self.cache.fill_random(seed)?)
    }

    /// The element type of weights and activations.
    fn dtype(&self) -> Dtype {
        self.attention.attention().dtype
    }

    /// `out = x w^T`, `[rows, inner]` to `[rows, columns]`.
    fn multiply(
        &self,
        [x, w, out]: [&DeviceMemory; 3],
        [rows, columns, inner]: [usize; 3],
        kind: Kind,
    ) -> Work {
        let element = element(self.dtype());
        let (out_element, accumulate) = match kind {
            Kind::Activations => (element, false),
            Kind::Single => (Element::F32, false),
            Kind::Added => (Element::F32, true),
        };
        let [x, w, out] = [x, w, out].map(DeviceMemory::buffer);
        let product = Product { x, w, out, rows, columns, inner, element, out_element, accumulate };
        Work::Multiply(product)
    }

    /// Uploads what a step's kernels read of it.
    fn upload(&self, tokens: &[u32], step: &Step, wanted: &[usize]) -> Result<(), DeviceError> {
        let strides = KvStrides::packed(self.attention.attention());
        let (requests, positions) = (step.requests.iter(), step.positions.iter());
        let places = requests.zip(positions).flat_map(|(request, position)| {
            let (page, slot) = self.cache.pages().place(*request, *position);
            (page as u64 * strides.page + slot as u64 * strides.token).to_le_bytes()
        });
        let turns = turns(&self.angles, &step.positions);
        let turns = turns.iter().flat_map(|(cos, sin)| [*cos, *sin]).flat_map(f32::to_le_bytes);
        let integers = |all: &mut dyn Iterator<Item = u32>| {
            all.flat_map(u32::to_le_bytes).collect::<Vec<u8>>()
        };
        let s = &self.scratch;
        s.tokens.upload(0, &integers(&mut tokens.iter().copied()))?;
        s.wanted.upload(0, &integers(&mut wanted.iter().map(|row| *row as u32)))?;
        s.places.upload(0, &places.collect::<Vec<u8>>())?;
        s.turns.upload(0, &turns.collect::<Vec<u8>>())
    }

    /// RMSNorm of the rows `chosen` of what layers add to.
    fn norm(&self, rows: usize, chosen: &DeviceMemory, gain: &DeviceMemory) -> Work {
        let s = &self.scratch;
        let buffers: [Buffer; 4] = [&s.x, chosen, gain, &s.normed].map(DeviceMemory::buffer);
        let ModelConfig { hidden_size, rms_norm_eps, .. } = self.config;
        let kernels = ModelKernels(self.code.module);
        Work::Launch(kernels.rms_norm(rows, hidden_size, rms_norm_eps, buffers))
    }

    /// The work of a planned step of so many rows, with the logits of so many.
    fn work(&self, rows: usize, wanted: usize) -> Result<Vec<Work>, AttendError> {
        let ModelConfig { hidden_size, vocab_size, .. } = self.config;
        let s = &self.scratch;
        let [table, ids, x] = [&self.weights.embedding, &s.tokens, &s.x].map(DeviceMemory::buffer);
        let kernels = ModelKernels(self.code.module);
        let mut work = vec![Work::Launch(kernels.embed(rows, hidden_size, table, ids, x))];
        for number in 0..self.config.layers {
            self.attend(number, rows, &mut work)?;
            self.mlp(number, rows, &mut work);
        }
        if wanted > 0 {
            work.push(self.norm(wanted, &s.wanted, &self.weights.norm));
            let output = self.weights.output.as_ref().unwrap_or(&self.weights.embedding);
            let into = [&s.normed, output, &s.logits];
            work.push(self.multiply(into, [wanted, vocab_size, hidden_size], Kind::Single));
        }
        Ok(work)
    }

    fn attend(&self, number: usize, rows: usize, work: &mut Vec<Work>) -> Result<(), AttendError> {
        let shape = *self.attention.attention();
        let kv = self.cache.layer(number)?;
        let layer = &self.weights.layers[number];
        let (hidden, s) = (self.config.hidden_size, &self.scratch);
        let (query, width) =
            (self.config.query_size(), self.config.query_size() + 2 * self.config.kv_size());
        work.push(self.norm(rows, &s.rows, &layer.attention_norm));
        let into = [&s.normed, &layer.qkv, &s.qkv];
        work.push(self.multiply(into, [rows, width, hidden], Kind::Activations));
        let buffers = [&s.qkv, &s.turns, &s.places, &s.q].map(DeviceMemory::buffer);
        let [qkv, turns, places, q] = buffers;
        let kernels = ModelKernels(self.code.module);
        let buffers = [qkv, turns, places, q, kv.k, kv.v];
        work.push(Work::Launch(kernels.rotate_and_keep(rows, &shape, kv.strides.head, buffers)));
        let launches = self.attention.launches(&StepOperands {
            q,
            kv,
            out: s.attended.buffer(),
            lse: s.lse.buffer(),
            scale: 1.0 / (shape.head_dim as f32).sqrt(),
            soft_cap: 0.0,
            sinks: None,
        })?;
        work.extend(launches.into_iter().map(Work::Launch));
        let into = [&s.attended, &layer.o, &s.x];
        work.push(self.multiply(into, [rows, hidden, query], Kind::Added));
        Ok(())
    }

    fn mlp(&self, number: usize, rows: usize, work: &mut Vec<Work>) {
        let (layer, s) = (&self.weights.layers[number], &self.scratch);
        let ModelConfig { hidden_size: hidden, intermediate_size: inner, .. } = self.config;
        work.push(self.norm(rows, &s.rows, &layer.mlp_norm));
        let into = [&s.normed, &layer.gate_up, &s.gate_up];
        work.push(self.multiply(into, [rows, 2 * inner, hidden], Kind::Activations));
        let kernels = ModelKernels(self.code.module);
        let (gate_up, activated) = (s.gate_up.buffer(), s.activated.buffer());
        work.push(Work::Launch(kernels.swiglu(rows, inner, gate_up, activated)));
        let into = [&s.activated, &layer.down, &s.x];
        work.push(self.multiply(into, [rows, hidden, inner], Kind::Added));
    }

    /// Queues the work of a planned step: the first time one by one, which loads what it takes, and
    /// from the second time on as one recording, where the device makes one.
    fn queue(&mut self, rows: usize, wanted: usize) -> Result<(), AttendError> {
        let (tiles, kernel) = (self.attention.tiles(), *self.attention.spec());
        let kind = StepKind { rows, tiles, wanted, kernel };
        if let Some(kept) = self.kept.get_mut(&kind) {
            if kept.recording == Recording::NotTried {
                let made = self.device.record(&kept.work).map_err(CacheError::from)?;
                kept.recording = made.map_or(Recording::Refused, Recording::Made);
            }
            let queued = match kept.recording {
                Recording::Made(id) => self.device.replay(id),
                _ => self.device.queue(&kept.work),
            };
            return Ok(queued.map_err(CacheError::from)?);
        }
        if self.kept.len() >= MOST_KEPT {
            self.forget_kept();
        }
        let work = self.work(rows, wanted)?;
        self.device.queue(&work).map_err(CacheError::from)?;
        self.kept.insert(kind, KeptStep { work, recording: Recording::NotTried });
        Ok(())
    }

    fn forget_kept(&mut self) {
        for kept in std::mem::take(&mut self.kept).into_values() {
            if let Recording::Made(id) = kept.recording {
                // Nothing to be done about a device that is gone.
                let _ = self.device.forget(id);
            }
        }
    }
}

impl Drop for DeviceDecoder {
    fn drop(&mut self) {
        self.forget_kept();
    }
}

/// Steps whose work is kept; prompts come in many lengths.
const MOST_KEPT: usize = 64;

/// What the work of a step depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct StepKind {
    rows: usize,
    tiles: usize,
    wanted: usize,
    kernel: KernelSpec,
}

/// The work of steps of one kind.
struct KeptStep {
    work: Vec<Work>,
    recording: Recording,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Recording {
    NotTried,
    /// The device makes none of this work.
    Refused,
    Made(RecordingId),
}

/// What a product makes.
enum Kind {
    /// Activations, in the element type of the weights.
    Activations,
    /// Numbers in f32.
    Single,
    /// The same, added to what is there.
    Added,
}

impl Decoder for DeviceDecoder {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn pages_mut(&mut self) -> &mut Pages {
        self.cache.pages_mut()
    }

    fn step(
        &mut self,
        tokens: &[u32],
        step: &Step,
        wanted: &[usize],
    ) -> Result<Vec<f32>, AttendError> {
        step.check(&self.config, tokens, wanted)?;
        step.check_room(self.cache.pages())?;
        if wanted.is_empty() && tokens.is_empty() {
            return Ok(Vec::new());
        }
        let fault = |fault: String| AttendError::Step { what: "spans", fault };
        let spans = SpanBatch::from_sets(&step.spans).map_err(|error| fault(error.to_string()))?;
        // Requests of a cache are counted in 32 bits.
        let row_request: Vec<i32> = step.requests.iter().map(|request| *request as i32).collect();
        let pages = self.cache.pages().page_map();
        self.attention.plan(&DecodeStep { spans: &spans, row_request: &row_request, pages })?;
        self.upload(tokens, step, wanted).map_err(CacheError::from)?;
        let queued = self.queue(tokens.len(), wanted.len());
        if queued.is_err() {
            self.attention.forget();
        }
        queued?;
        let vocab_size = self.config.vocab_size;
        let mut bytes = vec![0; 4 * wanted.len() * vocab_size];
        self.scratch.logits.download(0, &mut bytes).map_err(CacheError::from)?;
        Ok(bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
    }
}

fn element(dtype: Dtype) -> Element {
    match dtype {
        Dtype::F16 => Element::F16,
        Dtype::Bf16 => Element::Bf16,
    }
}

impl Weights {
    fn upload(model: &Llama, device: &Arc<dyn Device>, dtype: Dtype) -> Result<Self, DeviceError> {
        let keep = |name: &str, bytes: &[u8]| {
            let memory = DeviceMemory::allocate(device, name, bytes.len())?;
            memory.upload(0, bytes).map(|()| memory)
        };
        let matrices = |name: &str, parts: &[&Matrix]| {
            let bytes: Vec<u8> = parts.iter().flat_map(|part| part.halves(dtype)).collect();
            keep(name, &bytes)
        };
        let vector = |name: &str, gain: &[f32]| {
            keep(name, &gain.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>())
        };
        let layer = |layer: &Arc<Layer>| {
            Ok(LayerWeights {
                attention_norm: vector("attention_norm", &layer.attention_norm)?,
                qkv: matrices("qkv", &[&layer.q, &layer.k, &layer.v])?,
                o: matrices("o", &[&layer.o])?,
                mlp_norm: vector("mlp_norm", &layer.mlp_norm)?,
                gate_up: matrices("gate_up", &[&layer.gate, &layer.up])?,
                down: matrices("down", &[&layer.down])?,
            })
        };
        Ok(Self {
            embedding: matrices("embedding", &[&model.embedding])?,
            layers: model.layers.iter().map(layer).collect::<Result<_, DeviceError>>()?,
            norm: vector("norm", &model.norm)?,
            output: model
                .output
                .as_ref()
                .map(|output| matrices("output", &[output]))
                .transpose()?,
        })
    }
}

impl Scratch {
    fn allocate(
        config: &ModelConfig,
        device: &Arc<dyn Device>,
        rows: usize,
    ) -> Result<Self, DeviceError> {
        let ModelConfig { hidden_size, intermediate_size, head_dim, vocab_size, .. } = *config;
        let (query, kv) = (config.query_size(), config.kv_size());
        let allocate = |name: &str, of_row: usize| {
            DeviceMemory::allocate(device, name, rows.saturating_mul(of_row))
        };
        let all = allocate("rows", 4)?;
        let numbers: Vec<u8> = (0..rows as u32).flat_map(u32::to_le_bytes).collect();
        all.upload(0, &numbers)?;
        Ok(Self {
            tokens: allocate("tokens", 4)?,
            turns: allocate("turns", 4 * head_dim)?,
            places: allocate("places", 8)?,
            rows: all,
            wanted: allocate("wanted", 4)?,
            x: allocate("x", 4 * hidden_size)?,
            normed: allocate("normed", 2 * hidden_size)?,
            qkv: allocate("qkv", 2 * (query + 2 * kv))?,
            q: allocate("q", 2 * query)?,
            attended: allocate("attended", 2 * query)?,
            lse: allocate("lse", 4 * config.query_heads)?,
            gate_up: allocate("gate_up", 4 * intermediate_size)?,
            activated: allocate("activated", 2 * intermediate_size)?,
            logits: allocate("logits", 4 * vocab_size)?,
        })
    }
}
