/* Whether the machine multiplies bfloat16 values in tiles. */
#include "tiles.h"

/* granted: set to 1 if the kernels' `bf16` may be IN_TILES for speed, else to 0, where IN_TILES is slow and for tests. */
int tiles(int64_t *granted) {
    *granted = HAS_TILES && tiles_granted();
    return 0;
}
