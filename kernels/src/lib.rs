//! The span-attention kernel family: device code, configurations, rendering, launch, artifact.
