//! A trained model as an [`Encoder`].
//!
//! One thread owns the network, so callers on any thread share it without a lock and a GPU sees one
//! stream of work; pictures are decoded and resized on rayon before they reach it. A picture that cannot
//! be decoded, or whose logits are not finite, is an error of its own and leaves its batch alone.
//! Leaves out caching and queues: those are the writer's.

use std::path::Path;
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, bounded};
use rayon::prelude::*;

use crate::code::{CodeLen, Codes, HashCode, binarize};
use crate::data::{PictureSet, PictureShape};
use crate::deep::augment::bytes_tensor;
use crate::deep::checkpoint::{Checkpoint, ModelConfig};
use crate::deep::device::{self, Device};
use crate::encode::{EncodeError, EncodeStage, Encoder, Payload, Prepared, on_pool};
use crate::error::{Error, ErrorKind, Result};
use crate::media::{self, Limits, Resize};

/// Pictures that the network sees at once.
const BATCH_PICTURES: usize = 256;

/// Batches that may wait for the network; enough to keep it busy while the next is decoded.
const QUEUED_BATCHES: usize = 4;

/// Pictures to encode, and where their logits go.
struct Request {
    /// N x side x side x channels bytes.
    pixels: Vec<u8>,
    /// N x K code logits, row-major.
    reply: Sender<Result<Vec<f32>>>,
}

/// Encodes pictures with a trained network, on the CPU or a GPU.
///
/// The code of a picture does not depend on the pictures beside it. Across devices and thread counts
/// sums round differently, so a bit whose logit is within rounding of zero can differ.
pub struct TorchEncoder {
    config: ModelConfig,
    code_len: CodeLen,
    limits: Limits,
    /// `None` only while the encoder is dropped.
    requests: Option<Sender<Request>>,
    thread: Option<JoinHandle<()>>,
}

impl TorchEncoder {
    /// Opens the model file at `path` on `device`, with the default limits for pictures.
    ///
    /// # Errors
    /// `Io` if the file cannot be read; `Corrupt` or `UnsupportedVersion` if it is not exactly a model
    /// file of ours; `Unsupported` for an absent GPU; `Torch`.
    pub fn open(path: impl AsRef<Path>, device: Device) -> Result<TorchEncoder> {
        TorchEncoder::with_limits(path, device, Limits::default())
    }

    /// As [`TorchEncoder::open`], with other limits for pictures.
    ///
    /// # Errors
    /// As [`TorchEncoder::open`].
    pub fn with_limits(
        path: impl AsRef<Path>,
        device: Device,
        limits: Limits,
    ) -> Result<TorchEncoder> {
        let checkpoint = Checkpoint::load(path.as_ref(), device.resolve()?)?;
        let config = checkpoint.config.clone();
        let code_len = config.code_len()?;
        let (requests, received) = bounded(QUEUED_BATCHES);
        let thread = std::thread::Builder::new()
            .name("tanhash-model".into())
            .spawn(move || serve(&checkpoint, &received))
            .map_err(|error| Error::io("thread of the model", error))?;
        Ok(TorchEncoder {
            config,
            code_len,
            limits,
            requests: Some(requests),
            thread: Some(thread),
        })
    }

    /// What the model is: its method, its classes, how it was trained.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The shape of the pictures that the network reads.
    pub fn picture_shape(&self) -> PictureShape {
        self.config.picture_shape()
    }

    /// Encodes a whole set, one code a picture, in order. `progress` gets the number of pictures done,
    /// after every batch.
    ///
    /// # Errors
    /// `InvalidArgument` for pictures of another shape than the model's; `Encoder` for a picture whose
    /// logits are not finite (the text names it), or if the model failed.
    pub fn encode_pixels(
        &self,
        set: &PictureSet,
        progress: &mut dyn FnMut(usize),
    ) -> Result<Codes> {
        let shape = self.picture_shape();
        if set.shape != shape {
            return Err(Error::invalid(format!(
                "the model reads pictures of {} pixels with {} channels, the set has {} with {}",
                shape.side, shape.channels, set.shape.side, set.shape.channels
            )));
        }
        let batch_bytes = BATCH_PICTURES * picture_bytes(shape);
        let mut codes = Codes::with_capacity(self.code_len, set.labels.len());
        let mut chunks = set.pixels.chunks(batch_bytes);
        // One batch ahead: the network works on it while the last one is packed.
        let mut waiting = chunks.next().map(|chunk| self.send(chunk.to_vec()));
        while let Some(reply) = waiting.take() {
            let reply = reply?;
            waiting = chunks.next().map(|chunk| self.send(chunk.to_vec()));
            for code in self.receive(&reply)? {
                let code = code.map_err(|error| {
                    let picture = codes.n_codes();
                    Error::new(ErrorKind::Encoder(format!("picture {picture}: {error}")))
                })?;
                codes.push(&code)?;
            }
            progress(codes.n_codes());
        }
        Ok(codes)
    }

    /// What the network reads of one payload.
    fn pixels(&self, payload: &Payload) -> Result<Vec<u8>, EncodeError> {
        match payload {
            Payload::Image(bytes) => {
                media::decode_to_shape(bytes, &self.limits, self.picture_shape(), Resize::default())
            }
            Payload::Vector(values) => Err(EncodeError {
                stage: EncodeStage::Preprocess,
                reason: format!(
                    "the model {} reads pictures, got a vector of {} numbers",
                    self.config.model_id,
                    values.len()
                ),
            }),
        }
    }

    /// Hands pictures to the model's thread.
    fn send(&self, pixels: Vec<u8>) -> Result<Receiver<Result<Vec<f32>>>> {
        let (reply, receiver) = bounded(1);
        let requests = self.requests.as_ref().ok_or_else(stopped)?;
        requests
            .send(Request { pixels, reply })
            .map_err(|_| stopped())?;
        Ok(receiver)
    }

    /// The codes of pictures in the model's shape.
    fn encode_pictures(&self, pictures: &[&[u8]]) -> Result<Vec<Result<HashCode, EncodeError>>> {
        let expected = picture_bytes(self.picture_shape());
        if let Some(wrong) = pictures.iter().find(|pixels| pixels.len() != expected) {
            return Err(Error::invalid(format!(
                "expected pictures of {expected} bytes, got one of {}",
                wrong.len()
            )));
        }
        match pictures.is_empty() {
            true => Ok(Vec::new()),
            false => self.receive(&self.send(pictures.concat())?),
        }
    }

    /// Waits for the logits and packs them.
    fn receive(
        &self,
        reply: &Receiver<Result<Vec<f32>>>,
    ) -> Result<Vec<Result<HashCode, EncodeError>>> {
        let logits = reply.recv().map_err(|_| stopped())??;
        let codes = logits.chunks_exact(self.code_len.bits()).map(|logits| {
            binarize(self.code_len, logits).map_err(|error| EncodeError {
                stage: EncodeStage::Encode,
                reason: error.to_string(),
            })
        });
        Ok(codes.collect())
    }
}

impl Encoder for TorchEncoder {
    fn code_len(&self) -> CodeLen {
        self.code_len
    }

    fn model_id(&self) -> &str {
        &self.config.model_id
    }

    fn max_batch(&self) -> usize {
        BATCH_PICTURES
    }

    fn encode(&self, batch: &[Payload]) -> Result<Vec<Result<HashCode, EncodeError>>> {
        let mut encoded = Vec::with_capacity(batch.len());
        for part in batch.chunks(BATCH_PICTURES) {
            let pixels: Vec<Result<Vec<u8>, EncodeError>> = on_pool(|| {
                part.par_iter()
                    .map(|payload| self.pixels(payload))
                    .collect()
            });
            let readable: Vec<&[u8]> = pixels.iter().flatten().map(Vec::as_slice).collect();
            let mut codes = self.encode_pictures(&readable)?.into_iter();
            encoded.extend(pixels.into_iter().map(|pixels| match pixels {
                Ok(_) => codes.next().expect("a row of logits for every picture"),
                Err(error) => Err(error),
            }));
        }
        Ok(encoded)
    }

    fn prepares(&self) -> bool {
        true
    }

    fn prepare(&self, payload: &Payload) -> Result<Prepared, EncodeError> {
        self.pixels(payload).map(Prepared::Pixels)
    }

    fn prepare_bytes(&self, payload: &Payload) -> usize {
        match payload {
            Payload::Image(bytes) => {
                let shape = self.picture_shape();
                media::working_bytes(bytes, &self.limits, shape, Resize::default())
            }
            Payload::Vector(_) => 0,
        }
    }

    fn encode_prepared(&self, batch: &[Prepared]) -> Result<Vec<Result<HashCode, EncodeError>>> {
        let pictures = batch.iter().map(|prepared| match prepared {
            Prepared::Pixels(pixels) => Ok(pixels.as_slice()),
            other => Err(Error::invalid(format!(
                "expected what TorchEncoder::prepare makes, got {other:?}"
            ))),
        });
        self.encode_pictures(&pictures.collect::<Result<Vec<&[u8]>>>()?)
    }
}

impl Drop for TorchEncoder {
    fn drop(&mut self) {
        // The thread ends when no sender is left.
        self.requests = None;
        if let Some(thread) = self.thread.take() {
            // A panic there has reached every caller as an error.
            let _ = thread.join();
        }
    }
}

fn picture_bytes(shape: PictureShape) -> usize {
    shape.side * shape.side * shape.channels
}

fn stopped() -> Error {
    ErrorKind::Encoder("the model's thread has stopped".into()).into()
}

/// The model's thread: answers requests until the encoder is dropped.
fn serve(checkpoint: &Checkpoint, requests: &Receiver<Request>) {
    let _no_grad = tch::no_grad_guard();
    // OpenMP counts threads per thread; asking makes libtorch apply the process's choice to this one.
    let _ = device::threads();
    for request in requests {
        // Nobody waits any more if the caller gave up; that is its business.
        let logits = logits(checkpoint, &request.pixels).map_err(device_error);
        let _ = request.reply.send(logits);
    }
}

/// libtorch says by its message alone what a failure means for the calls after it.
fn device_error(error: Error) -> Error {
    let ErrorKind::Torch(message) = error.kind() else {
        return error;
    };
    let kind = match () {
        _ if message.contains("out of memory") || message.contains("can't allocate memory") => {
            ErrorKind::DeviceMemory(message.clone())
        }
        // What a kernel does to the context of its process is not undone.
        _ if message.contains("CUDA error") => ErrorKind::DeviceLost(message.clone()),
        _ => return error,
    };
    Error::new(kind).with_source(error)
}

/// N x K code logits of N pictures, row-major.
fn logits(checkpoint: &Checkpoint, pixels: &[u8]) -> Result<Vec<f32>> {
    let config = &checkpoint.config;
    let device = checkpoint.network.weights().device();
    let bytes = bytes_tensor(pixels, config.picture_shape())?.f_to_device(device)?;
    let pictures = config.normalization.apply(&bytes)?;
    let logits = checkpoint.network.forward(&pictures, false)?;
    let mut values = vec![0f32; logits.numel()];
    logits.f_copy_data(&mut values, logits.numel())?;
    Ok(values)
}
