//! The forward pass on the GPU, as a list of kernel calls.

mod head;
mod layer;
mod scratch;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use self::head::Head;
use self::layer::{Kernels, Layer};
use self::scratch::Scratch;
use super::rope::rotary_table;
use super::weights::{EMBEDDING, FINAL_NORM, head_name};
use super::{Batch, Capacity, Counters, Folded, Forward, PAGE};
use crate::checkpoint::{Checkpoint, Config, Tensor};
use crate::error::{Error, Result};
use crate::gpu::{Buffer, Commands, Gpu};
use crate::kernels::{Packer, Stored};
use crate::quant::Precision;

/// Tokens in a batch, and wanted rows, where the device's limits allow: bounds the activations.
const MAX_TOKENS: usize = 1024;

/// One arm on the GPU: a checkpoint's weights, packed, and a KV cache.
///
/// A row's bits depend on nothing but the tokens before it and on whether they came as prompt or
/// were generated: not on the batch.
#[derive(Debug)]
pub struct Llama {
    gpu: Arc<Gpu>,
    path: PathBuf,
    config: Config,
    /// `[v, d]` as stored; its rows are gathered on the host.
    embedding: Tensor,
    layers: Vec<Layer>,
    head: Head,
    kernels: Kernels,
    /// `[positions, e / 2]`.
    rotary: Buffer,
    scratch: Scratch,
    capacity: Capacity,
    counters: Counters,
    /// The device's own counters when this arm was loaded; other arms may share the device.
    before: DeviceCounters,
}

#[derive(Clone, Copy, Debug)]
struct DeviceCounters {
    uploaded: u64,
    dispatches: u64,
    submissions: u64,
}

impl DeviceCounters {
    fn of(gpu: &Gpu) -> Self {
        Self { uploaded: gpu.uploaded_bytes(), dispatches: gpu.dispatches(), submissions: gpu.submissions() }
    }
}

impl Llama {
    /// Loads a checkpoint and packs it at `precision`, with room for `cache_tokens` tokens in the cache (rounded
    /// up to whole pages, less if the device cannot bind that much). No sequence can be longer than that.
    ///
    /// The matrices of the layers are quantized; embedding and norms stay as stored, and so does
    /// the head unless `quantize_head` (a tied head is then quantized apart from the embedding).
    ///
    /// # Errors
    ///
    /// If a tensor is missing, has another shape than `config.json` asks for, or holds NaN or infinity; if the
    /// device cannot hold the model.
    pub fn load(
        gpu: &Arc<Gpu>,
        checkpoint: &Checkpoint,
        precision: Precision,
        quantize_head: bool,
        cache_tokens: usize,
    ) -> Result<Self> {
        let start = Instant::now();
        let before = DeviceCounters::of(gpu);
        let read_before = checkpoint.tensors().bytes_read();
        let config = checkpoint.config().clone();
        let capacity = capacity(gpu, &config, cache_tokens);
        let (v, d) = (config.vocab_size, config.hidden_size);

        let embedding = checkpoint.tensors().read(EMBEDDING, &[v, d])?;
        let name = head_name(checkpoint)?;
        let untied = (name != EMBEDDING).then(|| checkpoint.tensors().read(name, &[v, d])).transpose()?;
        let stored = untied.as_ref().unwrap_or(&embedding);
        let scheme = if quantize_head { precision.scheme(stored.dtype) } else { stored.dtype };
        let stored = Stored { name, dtype: stored.dtype, bytes: &stored.bytes, n: v, k: d };
        let matrix = Packer::default().pack_one(gpu, scheme, stored)?;
        let norm = layer::vector(gpu, checkpoint, FINAL_NORM, d)?;
        let head = Head::new(gpu, matrix, norm)?;

        let kernels = Kernels::new(gpu, &config)?;
        let layers = (0..config.layers)
            .map(|index| Layer::load(gpu, checkpoint, index, precision, capacity.pages * PAGE))
            .collect::<Result<_>>()?;
        let rotary = gpu.upload("rotary table", &rotary_table(&config, capacity.pages * PAGE))?;
        let scratch = Scratch::new(gpu, &config, capacity)?;
        gpu.wait("loading")?;

        let mut counters =
            Counters { disk_bytes: checkpoint.tensors().bytes_read() - read_before, ..Counters::default() };
        counters.seconds.load = start.elapsed().as_secs_f64();
        let path = checkpoint.path().to_path_buf();
        let gpu = Arc::clone(gpu);
        Ok(Self {
            gpu,
            path,
            config,
            embedding,
            layers,
            head,
            kernels,
            rotary,
            scratch,
            capacity,
            counters,
            before,
        })
    }

    /// The logits of every wanted row, `[wanted, v]`, for tests; the given tokens do not matter.
    ///
    /// # Errors
    ///
    /// As [`Forward::forward`].
    pub fn logits(&mut self, batch: &Batch) -> Result<Vec<f32>> {
        let commands = self.layers(batch)?;
        commands.submit(&self.gpu)?;
        self.head.logits(&self.gpu, &self.scratch, &self.config, batch)
    }

    /// Records all layers, handing over what is enough for the device; what is left goes before the head.
    fn layers(&mut self, batch: &Batch) -> Result<Commands> {
        self.check(batch)?;
        let rows = self.embedding_rows(&batch.tokens);
        self.scratch.write_batch(&self.gpu, batch, &rows)?;
        let lengths: Vec<u32> = batch.places.iter().map(|place| place.position + 1).collect();
        let mut commands = Commands::paced(&self.gpu);
        for layer in &self.layers {
            let scratch = &self.scratch;
            layer.record(&mut commands, &self.kernels, scratch, &self.rotary, &self.config, batch, &lengths);
            if commands.is_full(&self.gpu) {
                commands.submit(&self.gpu)?;
                commands = Commands::paced(&self.gpu);
            }
        }
        self.counters.weight_passes += 1;
        Ok(commands)
    }

    /// The embedding of each token, widened, `[t, d]`.
    fn embedding_rows(&self, tokens: &[u32]) -> Vec<f32> {
        let row_bytes = self.embedding.bytes.len() / self.config.vocab_size;
        let bytes =
            tokens.iter().flat_map(|token| &self.embedding.bytes[*token as usize * row_bytes..][..row_bytes]);
        let shape = vec![tokens.len(), self.config.hidden_size];
        Tensor { dtype: self.embedding.dtype, shape, bytes: bytes.copied().collect() }.to_f32()
    }

    /// Refuses batches that the buffers, the embedding or the rotary table have no room for.
    fn check(&self, batch: &Batch) -> Result<()> {
        let vocab = self.config.vocab_size;
        let ids = batch.tokens.iter().chain(batch.wanted.iter().map(|wanted| &wanted.given));
        if let Some(&id) = ids.into_iter().find(|id| **id as usize >= vocab) {
            return Err(Error::TokenId { path: self.path.clone(), id, vocab });
        }
        let too_large = |what, got, limit: usize| {
            Err(Error::Shape { kernel: "forward", what, got, expected: format!("at most {limit}") })
        };
        let Capacity { tokens, wanted, pages } = self.capacity;
        if batch.tokens.len() > tokens {
            return too_large("tokens", batch.tokens.len(), tokens);
        }
        if batch.wanted.len() > wanted {
            return too_large("wanted rows", batch.wanted.len(), wanted);
        }
        let farthest = batch.places.iter().map(|place| place.position.max(place.slot) as usize).max();
        match farthest {
            Some(slot) if slot >= pages * PAGE => too_large("position or slot", slot, pages * PAGE - 1),
            _ => Ok(()),
        }
    }
}

/// What fits the device: every activation and each layer's keys and values must be bound as a whole.
fn capacity(gpu: &Gpu, config: &Config, cache_tokens: usize) -> Capacity {
    let floats = usize::try_from(gpu.max_binding_bytes() / 4).unwrap_or(usize::MAX);
    let widest = config.hidden_size.max(config.intermediate_size).max(config.heads * config.head_dim);
    let tokens = MAX_TOKENS.min(floats / widest).max(1);
    let kept = PAGE * config.kv_heads * config.head_dim;
    Capacity { tokens, wanted: tokens, pages: cache_tokens.div_ceil(PAGE).min(floats / kept) }
}

impl Forward for Llama {
    fn capacity(&self) -> Capacity {
        self.capacity
    }

    fn forward(&mut self, batch: &Batch) -> Result<Vec<Folded>> {
        let mut commands = self.layers(batch)?;
        if batch.wanted.is_empty() {
            commands.submit(&self.gpu)?;
            return Ok(Vec::new());
        }
        self.head.record(&mut commands, &self.scratch, &self.config, batch);
        commands.submit(&self.gpu)?;
        self.head.read(&self.gpu, &self.scratch, batch)
    }

    fn counters(&self) -> Counters {
        let now = DeviceCounters::of(&self.gpu);
        Counters {
            upload_bytes: now.uploaded - self.before.uploaded,
            dispatches: now.dispatches - self.before.dispatches,
            submissions: now.submissions - self.before.submissions,
            peak_device_bytes: self.gpu.peak_bytes(),
            ..self.counters.clone()
        }
    }
}
