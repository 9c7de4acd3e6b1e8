// beam_candidates: the best continuations of every image's beams, so that logits need not leave the device.
// Math:      score(r, v) = log_softmax(logits[r])[v] + scores[r]; of each image's rows the `count` largest, largest
//            first, the lower row and then the lower token first on ties
// Tensors:   logits (R, V) row-major f32; scores (R) f32; starts (B + 1): the first row of each image and R;
//            y (B, count, 2): the bits of the score, row in the image * V + token. NaN comes first if there is any
// Numerics:  f32; sums over V by one warp, in an order that depends on V only: a row's scores depend on nothing else
// Requires:  rows of an image * V below 2^31; places beyond them are left unwritten
// Tiling:    a block for each image: a warp per row finds its maximum and sum, then the whole block takes the largest
//            score again and again, `count` times (see select.cuh); scores are computed anew from the cached logits
// Roofline:  4 * R * V bytes; the rounds take longer: latency-bound
// Measured:  NVIDIA H200, driver 580.159.04, commit 449c6ab: `im2sp doctor --op =beam_candidates` (cold L2, lightly
//            contended), with its copies from and to the host: 10 of 9 rows of 203 in 40 us, 5 of 4 rows of 700 in 37
#include "select.cuh"

struct BeamCandidatesParams {
    const float* logits;
    const float* scores;
    const unsigned* starts;
    unsigned* y;
    int vocabulary;
    int count;
};
SIZE_OF(BeamCandidatesParams, 40);

// The terms that make a score of a logit of a row.
struct BeamRow {
    float maximum;
    float log_sum;
    float score;
};
SIZE_OF(BeamRow, 12);

namespace {

// By one warp.
DEVICE BeamRow measure(const float* logits, int vocabulary, float score) {
    float maximum = -INFINITY;
    for (int v = lane_index(); v < vocabulary; v += WARP) maximum = fmaxf(maximum, logits[v]);
    maximum = warp_max(maximum);
    float sum = 0.0f;
    for (int v = lane_index(); v < vocabulary; v += WARP) sum += expf(logits[v] - maximum);
    return {maximum, logf(warp_sum(sum)), score};
}

}  // namespace

// Grid: a block for each image. Shared memory: SelectShared, then a BeamRow for each row of the image with the most rows.
KERNEL(beam_candidates_forward_f32, BeamCandidatesParams, 256, 8) {
    SelectShared& shared = shared_memory<SelectShared>();
    BeamRow* beams = reinterpret_cast<BeamRow*>(&shared + 1);
    const int first = int(params.starts[blockIdx.x]), rows = int(params.starts[blockIdx.x + 1]) - first;
    const int vocabulary = params.vocabulary;
    const float* logits = params.logits + int64_t(first) * vocabulary;
    for (int row = warp_index(); row < rows; row += SELECT_WARPS) {
        const BeamRow beam = measure(logits + int64_t(row) * vocabulary, vocabulary, params.scores[first + row]);
        if (lane_index() == 0) beams[row] = beam;
    }
    sync_block();
    const auto scan = [&](Key bound) {
        Key best = 0;
        for (int row = 0; row < rows; row++) {
            const BeamRow beam = beams[row];
            for (int v = threadIdx.x; v < vocabulary; v += SELECT_BLOCK) {
                const float log = logits[int64_t(row) * vocabulary + v] - beam.maximum - beam.log_sum;
                const Key key = key_of(log + beam.score, row * vocabulary + v);
                if (key < bound) best = larger(best, key);
            }
        }
        return best;
    };
    unsigned* y = params.y + int64_t(blockIdx.x) * params.count * 2;
    select(min(params.count, rows * vocabulary), shared, scan, [&](int rank, Key key) {
        y[2 * rank] = value_bits(key);
        y[2 * rank + 1] = place_of(key);
    });
}
