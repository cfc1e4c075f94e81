//! How much forgotten knowledge a quantized unlearned arm has back.
