//! The decoder as its users meet it: from a folder to tokens. Weights are random, so what is written
//! is nonsense; what it is held against is candle, or another way to the same.

mod attention;
mod candle;
mod engine;
mod folder;
mod refusals;
