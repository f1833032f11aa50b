//! What a kernel trusts of buffers and limits, besides what is checked of each step.

use super::{AttentionError, SpanAttentionLimits};
use spanforge_device::Buffer;
use spanforge_kernels::ProblemError;
use spanforge_kernels::configuration::AttentionShape;

/// Checks buffers: name, buffer, alignment and bytes that it needs.
pub(super) fn check_buffers(
    buffers: impl IntoIterator<Item = (&'static str, Buffer, u64, u64)>,
) -> Result<(), AttentionError> {
    let fault = |operand, fault: String| Err(AttentionError::Operand { operand, fault });
    for (operand, buffer, alignment, bytes) in buffers {
        if (buffer.bytes as u64) < bytes {
            return fault(
                operand,
                format!("the buffer has {} bytes, expected {bytes}", buffer.bytes),
            );
        }
        if !buffer.address.is_multiple_of(alignment) {
            return fault(
                operand,
                format!("address {:#x} is not {alignment}-byte aligned", buffer.address),
            );
        }
    }
    Ok(())
}

pub(super) fn check_limits(
    attention: &AttentionShape,
    limits: &SpanAttentionLimits,
) -> Result<(), AttentionError> {
    if attention.page_size == 0 {
        return Err(ProblemError::PageSize.into());
    }
    for (what, found) in [
        ("rows x KV heads", limits.rows.checked_mul(attention.kv_heads as usize)),
        ("spans", limits.spans.checked_mul(2)),
        ("page table entries", limits.requests.checked_mul(limits.max_pages)),
    ] {
        // Four bytes each are still a size.
        if found.is_none_or(|found| found >= i32::MAX as usize) {
            return Err(AttentionError::Limits { what, found: found.unwrap_or(usize::MAX) });
        }
    }
    Ok(())
}
