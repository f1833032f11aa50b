// A tensor in and out by tensor copies, for the tests of tensor maps as arguments.
struct __align__(64) Map { unsigned long long opaque[16]; };

// Copies a box of 32 by 4 words from (8, 1) of one tensor to (0, 0) of another.
extern "C" __global__ void carry(const __grid_constant__ Map from, const __grid_constant__ Map to) {
    __shared__ __align__(1024) int tile[4][32];
    __shared__ __align__(8) unsigned long long arrived;
    unsigned at = (unsigned)__cvta_generic_to_shared(tile);
    unsigned bar = (unsigned)__cvta_generic_to_shared(&arrived);
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" :: "r"(bar) : "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], 512;" :: "r"(bar) : "memory");
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
                 " [%0], [%1, {8, 1}], [%2];" :: "r"(at), "l"(&from), "r"(bar) : "memory");
    asm volatile("{ .reg .pred p; W: mbarrier.try_wait.parity.shared::cta.b64 p, [%0], 0;"
                 " @!p bra W; }" :: "r"(bar) : "memory");
    asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%1, {0, 0}], [%0];"
                 :: "r"(at), "l"(&to) : "memory");
    asm volatile("cp.async.bulk.commit_group; cp.async.bulk.wait_group 0;" ::: "memory");
}
