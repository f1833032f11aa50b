// Span-attention decode kernels, one configuration.
#include "decode.cuh"

namespace {

struct Configuration {
    using Element = spanforge::${ element }$;  // of q and the output
    using Kv = spanforge::${ kv_element }$;
    static constexpr int HEAD_DIM = ${ head_dim }$;
    static constexpr int GROUP = ${ group_size }$;
    static constexpr int QUERY_ROWS = ${ query_rows }$;
    static constexpr bool TENSOR_CORES = ${ tensor_cores }$;
    static constexpr bool WARPGROUPS = ${ warpgroups }$;
    static constexpr bool STAGED = ${ staged }$;
    static constexpr int TILE = ${ tile_tokens }$;
    static constexpr int STAGES = ${ stages }$;
    static constexpr int TOKEN_WARPS = ${ token_warps }$;
    static constexpr int HEADS_PER_WARP = ${ heads_per_warp }$;
    static constexpr int VECTOR_BYTES = ${ vector_bytes }$;
    static constexpr int UNROLL = ${ unroll }$;
    static constexpr bool QUERY_SHARED = ${ query_shared }$;
    static constexpr int L2_PREFETCH = ${ l2_prefetch }$;
    static constexpr int MIN_BLOCKS = ${ min_blocks }$;
    static constexpr int BEGINNING = ${ beginning }$;  // tokens that a block reads while it begins with a set
    static constexpr bool LAST_ARRIVER_MERGES = ${ last_arriver_merges }$;
    static constexpr int SHARED_BYTES = ${ shared_bytes }$;
};

}  // namespace

#include "kernels.cuh"
